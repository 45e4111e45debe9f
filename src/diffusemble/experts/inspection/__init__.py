"""What a file or folder is, without loading it."""
