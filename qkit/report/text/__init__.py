"""What a report says: terms, sentences and tables, for pages and for text alike."""
