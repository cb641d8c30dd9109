"""What comes at the door: a module, a program or a file, and a batch; what is refused is told why."""
