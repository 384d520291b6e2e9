"""What a run leaves behind: figures and tables with their provenance, and claims beside the papers'."""
