"""The report of a run: tables and examples in Markdown, a page with everything, and figures."""

from speciarl_jax.evaluation.report.build import THUMBNAIL_BYTES, write
from speciarl_jax.evaluation.report.folder import read_history
from speciarl_jax.evaluation.report.markdown import table

__all__ = ["THUMBNAIL_BYTES", "read_history", "table", "write"]
