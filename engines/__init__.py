"""Runtimes other than PyTorch: what writes a model for them, and what runs it as any other model."""
