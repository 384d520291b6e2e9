"""What a feature is for: examples, logits, modes, function groups, pages."""
