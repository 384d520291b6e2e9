"""The causal effect of features on decisions, and how well scores rank them by it."""
