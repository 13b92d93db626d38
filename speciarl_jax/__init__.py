"""SpeciaRL in JAX: as specific as the model truly can be, and never beyond (arXiv 2603.03197)."""
