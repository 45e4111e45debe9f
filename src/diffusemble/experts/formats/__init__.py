"""What a file is: its header, what family it belongs to, and what it is when it only looks like a model."""
