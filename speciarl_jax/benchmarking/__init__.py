"""What `speciarl_jax.bench` measures, and what it is measured against."""
