"""Plots as SVG text, readable on light and dark pages: what the docs show of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#2f81f7", "#e8853a", "#3fb950", "#a371f7", "#db61a2", "#d29922", "#39c5cf", "#8b949e")
LEGEND_COLUMNS = 3
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 30, 50, 40
STYLE = (
    "text{font:13px sans-serif;fill:#777}.t{font-size:15px}.g{stroke:#8885;stroke-width:1}"
    ".l{fill:none;stroke:#2f81f7;stroke-width:2}.p{fill:#2f81f7}"
)


def line_plot(points: Sequence[tuple[float, float]], title: str, source: str, digits: str = ".0f") -> str:
    """An SVG of points joined by lines, both axes from 0, every point with its value; source: where they come from."""
    far, high = _ceiling(max(x for x, _ in points)), _ceiling(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / far,
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / high,
        )

    parts = _frame(title, source, HEIGHT)
    for i in range(5):
        (_, y), (x, _) = place(0, high * i / 4), place(far * i / 4, 0)
        parts.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{high * i / 4:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{far * i / 4:g}</text>')
    places = [place(x, y) for x, y in points]
    parts.append(f'<path class="l" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
    for (x, y), (_, value) in zip(places, points, strict=True):
        parts.append(f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{value:{digits}}</text>')
    return "\n".join([*parts, "</svg>", ""])


def stacked_bars(bars: Mapping[str, Mapping[str, float]], title: str, source: str) -> str:
    """An SVG of a bar a name, cut into its parts; a part has one colour in all bars, the largest at the bottom.

    Parts beyond the number of colours are drawn together, as "others".
    """
    totals: dict[str, float] = {}
    for parts in bars.values():
        for part, value in parts.items():
            totals[part] = totals.get(part, 0.0) + value
    order = sorted(totals, key=lambda part: -totals[part])
    if len(order) > len(COLOURS):
        order, rest = [*order[: len(COLOURS) - 1], "others"], set(order[len(COLOURS) - 1 :])
        bars = {name: _merged(parts, rest) for name, parts in bars.items()}
    legend_rows = math.ceil(len(order) / LEGEND_COLUMNS)
    top = TOP + 12 + 18 * legend_rows
    height = HEIGHT + top - TOP
    high = _ceiling(max(sum(parts.values()) for parts in bars.values()))
    scale, width = (height - top - BOTTOM) / high, (WIDTH - LEFT - RIGHT) / len(bars)
    drawn = _frame(title, source, height)
    for i in range(5):
        y = height - BOTTOM - scale * high * i / 4
        drawn.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{high * i / 4:g}</text>')
    for n, part in enumerate(order):
        x, y = LEFT + (WIDTH - LEFT) // LEGEND_COLUMNS * (n % LEGEND_COLUMNS), TOP + 12 + 18 * (n // LEGEND_COLUMNS)
        colour = COLOURS[n]
        drawn.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 14}" y="{y}">{escape(part)}</text>')
    for n, (name, parts) in enumerate(bars.items()):
        x, y = LEFT + width * (n + 0.15), float(height - BOTTOM)
        for part in (part for part in order if part in parts):
            y -= scale * parts[part]
            colour, tall = COLOURS[order.index(part)], scale * parts[part]
            drawn.append(
                f'<rect x="{x:.1f}" y="{y:.2f}" width="{0.7 * width:.1f}" height="{tall:.2f}" fill="{colour}">'
                f"<title>{escape(part)}: {parts[part]:.3g}</title></rect>"
            )
        drawn.append(f'<text x="{x + 0.35 * width:.1f}" y="{height - 18}" text-anchor="middle">{escape(name)}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def _merged(parts: Mapping[str, float], rest: set[str]) -> dict[str, float]:
    kept = {part: value for part, value in parts.items() if part not in rest}
    return kept | {"others": sum(value for part, value in parts.items() if part in rest)}


def _frame(title: str, source: str, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="t" x="{LEFT}" y="20">{escape(title)}</text><text x="{LEFT}" y="38">{escape(source)}</text>',
    ]


def _ceiling(value: float) -> float:
    """The next 1, 2, 4, 6 or 8 times a power of ten."""
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)
