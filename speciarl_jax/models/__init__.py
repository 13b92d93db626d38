"""Models in Flax NNX; nothing here knows the rest of the package."""
