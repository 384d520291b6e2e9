"""A model's residual stream over a corpus, and what it tells."""
