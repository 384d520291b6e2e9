"""Sparse autoencoders: read, trained and judged."""
