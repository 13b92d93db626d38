"""What `speciarl_jax.tools.bench` measures, and what it is measured against."""
