"""Studies: several methods with several seeds each, run, aggregated and compared."""

from speciarl_jax.tools.study.definition import Row, Search, Study

__all__ = ["Row", "Search", "Study"]
