"""What a report holds, as plain data."""
