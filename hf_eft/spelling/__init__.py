"""Models of tokens as models of the symbols that their tokens are spelled in: bytes, or tokens of another vocabulary."""
