"""`hf-eft compose` and `hf-eft card`: what is published."""
