"""Reasoning features of language models, found with sparse autoencoders: a companion to arXiv 2503.18878."""

__version__ = "0.1.0"
