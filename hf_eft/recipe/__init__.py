"""What is combined and its arithmetic: pure tensors, no model."""
