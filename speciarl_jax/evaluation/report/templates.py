"""The environments of the templates of `report.html` and `report.md`."""

import pathlib
from collections.abc import Callable, Mapping

import jinja2

from speciarl_jax.evaluation.report import palette

# Heads of the columns of `shares`: every category, wrong answers among them.
SHARES = tuple(map(palette.name, palette.ORDER))
ASSETS = pathlib.Path(__file__).parent / "assets"


def environment(shown: Callable[[str], str]) -> jinja2.Environment:
    """Makes an environment that puts every text through a function.

    Args:
      shown: of a text that is no markup; returns text, which is then escaped for HTML, or
        `markupsafe.Markup`, which is not.
    """

    def put(value):
        return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=put,
        extensions=["jinja2.ext.do"],
    )
    found.filters |= {"fixed": fixed, "percent": percent, "shares": shares, "signed": signed}
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return found


def fixed(value: float | None, digits: int = 3) -> str:
    """Returns a number with so many decimals; nothing for None and for what is not known."""
    known = value is not None and not isinstance(value, jinja2.Undefined) and value != ""
    return f"{value:.{digits}f}" if known else ""


def percent(share: float) -> str:
    """Returns a share in per cent, with one decimal."""
    return f"{100 * share:.1f}%"


def signed(value: float) -> str:
    """Returns a number with its sign and three decimals; a minus is a true one."""
    return f"{value:+.3f}".replace("-", "−")


def shares(histogram: Mapping[str, int], unverified: float | None = None) -> list[str]:
    """Returns the share of each category in per cent, in the order of `SHARES`.

    Args:
      histogram: category -> answers with this verdict.
      unverified: share of the images without a verdict; left out if it is None.
    """
    total = max(sum(histogram.values()), 1)
    judged = [percent(histogram.get(name, 0) / total) for name in palette.ORDER[:-1]]
    return judged if unverified is None else [*judged, percent(unverified)]
