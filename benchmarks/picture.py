"""The goals as a picture: how many times as good as its bound each measured row is.

SVG as text, since a handful of lines and circles needs no plotting library. Colours follow the
reader's light or dark scheme; reached and missed differ in shape too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from goals import Goal, Kind
from pairs import Spread

WIDTH = 930
LABELS_END = 420
PLOT_BEGIN = 440
PLOT_END = 710
FIGURES_BEGIN = 730
LINE = 24
HEAD = 58

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .section { font-weight: 600; }
  .small { font-size: 11px; fill: #59636e; }
  .grid { stroke: #d1d9e0; }
  .goal { stroke: #59636e; stroke-dasharray: 4 3; }
  .reached { stroke: #1a7f37; fill: #1a7f37; }
  .missed { stroke: #cf222e; fill: none; }
  .spread { stroke-width: 3; stroke-linecap: round; opacity: 0.45; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .goal { stroke: #9198a1; }
    .reached { stroke: #3fb950; fill: #3fb950; }
    .missed { stroke: #f85149; fill: none; }
  }
"""


class Axis:
    """Logarithmic, from a power of two to another, with the goal between them."""

    def __init__(self, margins: Sequence[Spread]) -> None:
        low = min([0.5, *(margin["min"] for margin in margins)])
        high = max([2.0, *(margin["max"] for margin in margins)])
        self.first = math.floor(math.log2(low))
        self.last = math.ceil(math.log2(high))

    def at(self, margin: float) -> float:
        share = (math.log2(margin) - self.first) / (self.last - self.first)
        return PLOT_BEGIN + share * (PLOT_END - PLOT_BEGIN)


def _text(x: float, y: float, text: str, *, anchor: str = "start", style: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">'
        f"{escape(text.replace('`', ''))}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _ticks(axis: Axis, bottom: float) -> list[str]:
    drawn = []
    step = max(1, (axis.last - axis.first) // 6)
    for power in range(axis.first, axis.last + 1):
        if power % step == 0:
            x = axis.at(2.0**power)
            name = f"{2**power}×" if power >= 0 else f"1/{2**-power}"
            drawn.append(_line(x, HEAD - 8, x, bottom, "goal" if power == 0 else "grid"))
            drawn.append(_text(x, HEAD - 14, name, anchor="middle", style="small"))
    return drawn


def _mark(axis: Axis, goal: Goal, value: Spread, y: float) -> list[str]:
    margin = goal.margin(value)
    style = "reached" if goal.reached(value) else "missed"
    x, middle = axis.at(margin["median"]), y - 4
    mark = f'<circle cx="{x:.1f}" cy="{middle}" r="5" class="{style}"/>'
    if style == "missed":
        corners = f"{x - 5:.1f},{middle - 5} {x + 5:.1f},{middle + 5} "
        mark = (
            f'<path d="M {corners} M {x - 5:.1f},{middle + 5} L {x + 5:.1f},{middle - 5}" '
            f'stroke-width="2.5" class="{style}"/>'
        )
    low, high = axis.at(margin["min"]), axis.at(margin["max"])
    return [_line(low, middle, high, middle, f"{style} spread"), mark]


def svg(measured: Sequence[tuple[Goal, Spread]], caption: str) -> str:
    """One line for each goal that a clock measured, under the name of its section."""
    rows = [(goal, value) for goal, value in measured if goal.kind is not Kind.COUNT]
    axis = Axis([goal.margin(value) for goal, value in rows])
    drawn: list[str] = []
    section, y = "", HEAD
    for goal, value in rows:
        if goal.section != section:
            section = goal.section
            y += LINE
            drawn.append(_text(12, y, section, style="section"))
        y += LINE
        drawn.append(_text(LABELS_END, y, goal.measure, anchor="end"))
        drawn += _mark(axis, goal, value, y)
        shown = f"{value['median']:.3g}, goal {goal.text()}"
        drawn.append(_text(FIGURES_BEGIN, y, shown, style="small"))
    bottom = y + LINE / 2
    drawn.append(_text(12, bottom + LINE, caption, style="small"))
    title = _text(12, 22, "Times as good as the goal: median, smallest to largest", style="section")
    height = bottom + 2 * LINE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
            f'width="{WIDTH}" height="{height:.0f}" role="img">',
            "<title>Measured figures beside their goals</title>",
            f"<style>{STYLE}</style>",
            title,
            *_ticks(axis, bottom),
            *drawn,
            "</svg>",
            "",
        ]
    )
