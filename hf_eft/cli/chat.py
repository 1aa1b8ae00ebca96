"""`hf-eft chat`."""
