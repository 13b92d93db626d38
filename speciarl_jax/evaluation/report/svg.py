"""Small pieces of SVG: elements, axes, lines. All text is escaped; colours are CSS variables."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


def element(tag: str, *content: str, **attributes: object) -> str:
    """An element; `class_` is `class`, and an underscore in a name a hyphen.

    `content` is markup already; attributes are escaped, and None leaves one out.
    """
    parts = [
        f"{name.rstrip('_').replace('_', '-') if name != 'viewBox' else name}="
        f'"{html.escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    ]
    return f"<{' '.join([tag, *parts])}>{''.join(content)}</{tag}>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """A line of text."""
    return element("text", html.escape(words), x=x, y=y, **attributes)


def image(width: int, height: int, label: str, *content: str, class_: str = "chart") -> str:
    """The whole drawing, with the words that stand for it where it cannot be seen."""
    return element(
        "svg",
        *content,
        viewBox=f"0 0 {width} {height}",
        class_=class_,
        role="img",
        aria_label=label,
        style=f"--wide:{width}px",
    )


def path(points: Iterable[tuple[float, float]], **attributes: object) -> str:
    """A line through points."""
    d = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return element("path", d=d, **attributes)


def marker(x: float, y: float, number: int, size: float = 4.5, **attributes: object) -> str:
    """The marker of policy `number`: a shape of its own beside its colour."""
    shape = number % 4
    if shape == 0:
        return element("circle", cx=x, cy=y, r=size, **attributes)
    if shape == 1:
        s = size * 0.9
        return element("rect", x=x - s, y=y - s, width=2 * s, height=2 * s, **attributes)
    corners = {
        2: [(0, -1.3), (1.15, 0.8), (-1.15, 0.8)],
        3: [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
    }[shape]
    points = " ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in corners)
    return element("polygon", points=points, **attributes)


class Frame(NamedTuple):
    """A plotting area and its scales.

    Attributes:
      left, top, width, height: of the area, in units of the drawing.
      low_x, high_x, low_y, high_y: the values at its borders.
    """

    left: float
    top: float
    width: float
    height: float
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        """Where a value of the horizontal axis lies."""
        return self.left + self.width * (value - self.low_x) / (self.high_x - self.low_x)

    def y(self, value: float) -> float:
        """Where a value of the vertical axis lies."""
        return self.top + self.height * (self.high_y - value) / (self.high_y - self.low_y)

    def axes(
        self,
        ticks_x: Sequence[float],
        ticks_y: Sequence[float],
        name_x: str = "",
        name_y: str = "",
        show_x: Callable[[float], str] | None = None,
    ) -> str:
        """Grid lines, numbers and names of the axes."""
        bottom, right = self.top + self.height, self.left + self.width
        parts = []
        for tick in ticks_y:
            y = self.y(tick)
            parts.append(element("line", x1=self.left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(text(self.left - 7, y + 4, short(tick), class_="tick", text_anchor="end"))
        for tick in ticks_x:
            x, words = self.x(tick), (show_x or short)(tick)
            parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
            parts.append(text(x, bottom + 18, words, class_="tick", text_anchor="middle"))
        parts.append(element("line", x1=self.left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        if name_x:
            middle = self.left + self.width / 2
            parts.append(text(middle, bottom + 36, name_x, class_="name", text_anchor="middle"))
        if name_y:
            parts.append(text(self.left, self.top - 9, name_y, class_="name"))
        return "".join(parts)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next((m for m in (1, 2, 2.5, 5) if m * power >= rough), 10) * power
    first = math.ceil(low / unit - 1e-9)
    return [round(i * unit, 10) for i in range(first, math.floor(high / unit + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as an axis shows it."""
    return f"{value:.4g}".replace("-", "−")


def _number(value):
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
