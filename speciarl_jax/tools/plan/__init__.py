"""Whether a run fits on a machine, before there is one: used by `speciarl_jax.tools.plan`."""
