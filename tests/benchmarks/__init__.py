"""How fast rollout is, how much memory it needs, and how far from float64: `make benchmark`."""
