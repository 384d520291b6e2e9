"""Steered answers to problems: made, graded, searched over, compared."""
