"""Reasoning features of language models, found with sparse autoencoders: a companion to arXiv 2503.18878."""

import warnings

__version__ = "0.1.0"

# progress bars are plain text here, and a notebook need not open with advice to install others
warnings.filterwarnings("ignore", message="IProgress not found")
