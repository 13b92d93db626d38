"""What a person reads after a run: a table and examples in Markdown, and a page with everything."""

from speciarl_jax.report.build import THUMBNAIL_BYTES, write_figures, write_page
from speciarl_jax.report.folder import read_lines
from speciarl_jax.report.markdown import ORDER, table, write

__all__ = [
    "ORDER",
    "THUMBNAIL_BYTES",
    "read_lines",
    "table",
    "write",
    "write_figures",
    "write_page",
]
