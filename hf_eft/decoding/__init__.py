"""What `generate` asks of the members: one decoding loop for all strategies, drafts, continuous batching."""
