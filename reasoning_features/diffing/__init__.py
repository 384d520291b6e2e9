"""At which stage of model and data a feature appears."""
