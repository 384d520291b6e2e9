"""Notebooks run from the command line: planned, executed, rendered, compared."""
