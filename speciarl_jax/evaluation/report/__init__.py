"""What a person reads after a run: a table and examples in Markdown, and a page with everything."""

from speciarl_jax.evaluation.report.build import THUMBNAIL_BYTES, write
from speciarl_jax.evaluation.report.markdown import ORDER, table

__all__ = ["ORDER", "THUMBNAIL_BYTES", "table", "write"]
