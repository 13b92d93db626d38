"""One training step, put together in one place, and what a run keeps while it trains."""
