"""Figures as SVG inside the page: its colours, its fonts, and no id twice."""

import re
from xml.etree import ElementTree

import markupsafe

from speciarl_jax.evaluation.report import palette
from speciarl_jax.evaluation.report.panel import Panel, to_svg

_VARIABLES = {
    colour: f"var(--{name})" for name, colour in palette.LIGHT.items() if not name.startswith("on-")
}
_FONT = re.compile(r"font-family: [^;]*;? ?")
_COLOUR = re.compile("#[0-9a-f]{6}")
_DECIMALS = re.compile(r"(\.\d\d)\d+")


def inline(panel: Panel, name: str) -> markupsafe.Markup:
    """Returns an `<svg>` element that follows the colour scheme and the width of the page.

    Args:
      name: unique in the page; the same name and panel give the same text.
    """
    root = ElementTree.fromstring(to_svg(panel, salt=name))
    root.remove(root.find("{*}metadata"))
    root.remove(root.find("{*}defs"))  # A style sheet, which would be that of the whole page.
    _simplify(root)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "class": "chart",
        "role": "img",
        "aria-label": panel.label,
        "style": f"--wide:{panel.width}px",
    }
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
    return markupsafe.Markup(text)


def _simplify(root: ElementTree.Element) -> None:
    """Removes namespaces and unused ids; moves the `gid` of an artist to a class and a title."""
    for node in root.iter():
        node.tag = node.tag.partition("}")[2]
        node.attrib = {key.partition("}")[2] or key: node.attrib[key] for key in node.attrib}
        for key in ("d", "x", "y", "transform"):
            if key in node.attrib:
                node.set(key, " ".join(_DECIMALS.sub(r"\1", node.get(key)).split()))
        if "style" in node.attrib:
            style = _FONT.sub("", node.get("style"))
            node.set("style", _COLOUR.sub(lambda found: _VARIABLES.get(found[0], found[0]), style))
    used = {node.get("href", "#")[1:] for node in root.iter()}
    for node in root.iter():
        own = node.get("id", "")
        if own not in used:
            node.attrib.pop("id", None)
        kind, bar, title = own.partition("|")
        if bar:
            node.set("class", kind)
        if bar and title:
            words = ElementTree.Element("title")
            words.text = title
            node.insert(0, words)
