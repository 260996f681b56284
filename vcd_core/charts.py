"""Charts as SVG text, for pages that open without a network and for pictures that a README shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#4269d0", "#d97706", "#3f9d6d", "#d6455d", "#8d5bb5", "#7a6a58", "#1f9bb0", "#b58900")
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 26, 34
_STYLE = "font:12px system-ui,sans-serif"
Points = Sequence[tuple[float, float]]


def lines(
    series: Mapping[str, Points],
    title: str = "",
    across: str = "",
    width: int = 460,
    height: int = 240,
    log: bool = False,
    low: float | None = None,
    ticks: Sequence[float] | None = None,
    bands: dict[str, Sequence[tuple[float, float, float]]] | None = None,
) -> str:
    """Curves over one axis as an ``<svg>``; what is not finite is left out.

    Args:
        series: for each curve its points (x, y); at most as many curves as there are ``COLOURS`` look different.
        title, across: what stands above and below.
        log: the distances across are those of the logarithms of x, which must be above 0.
        low: where the axis up begins; without it at the least value.
        ticks: which x are written; without it some even ones.
        bands: for a curve, areas (x, lowest, highest) around it, such as intervals.

    Example:
        >>> svg = lines({"a<b": [(0, 0.1), (1, 0.4)], "none": [(0, float("nan"))]})
        >>> svg.startswith("<svg"), "a&lt;b" in svg, svg.count("<polyline")
        (True, True, 1)
    """
    shown = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    areas = {name: [row for row in rows if all(map(math.isfinite, row))] for name, rows in (bands or {}).items()}
    xs = [x for points in shown.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in shown.values() for _, y in points] or [0.0, 1.0]
    ys += [y for rows in areas.values() for row in rows for y in row[1:]]
    up = nice_ticks(min(ys) if low is None else min(low, *ys), max(ys))
    place = math.log if log else float
    first, last = place(min(xs)), place(max(xs))

    def at(x: float, y: float) -> str:
        across = (place(x) - first) / (last - first) if last > first else 0.5
        above = (y - up[0]) / (up[-1] - up[0])
        right, down = across * (width - _LEFT - _RIGHT), above * (height - _TOP - _BOTTOM)
        return f"{_LEFT + right:.1f},{height - _BOTTOM - down:.1f}"

    parts = [_text(_LEFT, 15, title, "start", "font-weight:600")] if title else []
    for y in up:
        row = at(min(xs), y).split(",")[1]
        parts.append(f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{row}" y2="{row}" stroke="#8883"/>')
        parts.append(_text(_LEFT - 6, float(row) + 4, number(y), "end"))
    for x in nice_ticks(min(xs), max(xs)) if ticks is None else ticks:
        if min(xs) <= x <= max(xs):
            parts.append(_text(float(at(x, up[0]).split(",")[0]), height - _BOTTOM + 16, number(x), "middle"))
    if across:
        parts.append(_text((_LEFT + width - _RIGHT) / 2, height - 4, across, "middle"))
    for i, (name, points) in enumerate(shown.items()):
        colour = COLOURS[i % len(COLOURS)]
        if rows := areas.get(name):
            edge = " ".join([*(at(x, top) for x, _, top in rows), *(at(x, under) for x, under, _ in reversed(rows))])
            parts.append(f'<polygon points="{edge}" fill="{colour}" fill-opacity=".15"/>')
        if points:
            path = " ".join(at(x, y) for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    if len(shown) > 1 or not title:
        parts += _legend(list(shown), height)
        height += 18 * len(shown)
    return _page(width, height, parts)


def intervals(
    rows: dict[str, tuple[float, float, float]], title: str = "", unit: str = "", width: int = 460, zero: bool = True
) -> str:
    """Means with their intervals, one below the other, as an ``<svg>``.

    Args:
        rows: for each name the mean and the interval's ends; what is not finite is said to be so.
        zero: whether a line stands at 0, as for differences.

    Example:
        >>> intervals({"face": (0.1, 0.05, 0.15), "tiles": (float("nan"),) * 3}).count("<circle")
        1
    """
    known = [value for row in rows.values() for value in row if math.isfinite(value)] + ([0.0] if zero else [])
    steps = nice_ticks(min(known, default=0.0), max(known, default=1.0))
    left, step, top = 150, 24, _TOP
    height = top + step * len(rows) + _BOTTOM

    def at(x: float) -> float:
        return left + (x - steps[0]) / (steps[-1] - steps[0]) * (width - left - _RIGHT)

    parts = [_text(4, 15, title, "start", "font-weight:600")] if title else []
    for x in steps:
        strong = "#888" if x == 0 and zero else "#8883"
        parts.append(f'<line x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{top}" y2="{height - _BOTTOM}" stroke="{strong}"/>')
        parts.append(_text(at(x), height - _BOTTOM + 16, number(x), "middle"))
    if unit:
        parts.append(_text((left + width) / 2, height - 4, unit, "middle"))
    for i, (name, (mean, low, high)) in enumerate(rows.items()):
        y = top + step * (i + 0.5)
        parts.append(_text(left - 8, y + 4, name, "end"))
        if not math.isfinite(mean):
            parts.append(_text(left + 4, y + 4, "not computed", "start"))
            continue
        if math.isfinite(low) and math.isfinite(high):
            ends = f'x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y}" y2="{y}"'
            parts.append(f'<line {ends} stroke="{COLOURS[0]}" stroke-width="2"/>')
        parts.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="4" fill="{COLOURS[0]}"/>')
    return _page(width, height, parts)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers around ``low`` to ``high``, about ``count`` steps apart.

    Example:
        >>> nice_ticks(0.13, 0.94)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        >>> nice_ticks(2, 2)
        [1.0, 2.0, 3.0]
    """
    if high <= low:
        low, high, count = low - 1, low + 1, 2
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = min((size * nice for nice in (1, 2, 2.5, 5, 10)), key=lambda one: abs(math.log(one / rough)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(float(i * step), 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A value with as many digits as help: 1500, 0.25, 1e-06."""
    return f"{value:.10g}" if abs(value) >= 1 else f"{value:.3g}"


def _legend(names: list[str], below: float) -> list[str]:
    parts = []
    for i, name in enumerate(names):
        y = below + 18 * i + 8
        parts.append(f'<rect x="{_LEFT}" y="{y - 6}" width="14" height="4" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(_text(_LEFT + 22, y, name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    more = f' style="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _page(width: int, height: float, parts: list[str]) -> str:
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}"'
    return f'{start} height="{height:.0f}" style="{_STYLE}" fill="#777" role="img">{"".join(parts)}</svg>'
