"""What the companion's bulk work costs, as ratios to other ways of doing it: `make bench`."""
