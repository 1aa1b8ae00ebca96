"""What a combination is as files: what is written, what is read, and what a file may decide."""
