"""Runs of notebooks: what determines one, what it reads and writes, and the command that makes it."""
