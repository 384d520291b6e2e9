"""Language models: where they are read, how they write under an intervention."""
