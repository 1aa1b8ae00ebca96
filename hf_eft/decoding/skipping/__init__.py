"""Members that are not run: left out of steps whose choice they cannot change."""
