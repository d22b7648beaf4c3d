"""Plots as SVG text, readable on light and dark pages: what the docs show of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 20, 50, 40
STYLE = (
    "text{font:13px sans-serif;fill:#777}.t{font-size:15px}.g{stroke:#8885;stroke-width:1}"
    ".l{fill:none;stroke:#2f81f7;stroke-width:2}.p{fill:#2f81f7}"
)


def line_plot(points: Sequence[tuple[float, float]], title: str, source: str) -> str:
    """An SVG of points joined by lines, both axes from 0, every point with its value; source: where they come from."""
    far, high = _ceiling(max(x for x, _ in points)), _ceiling(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / far,
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / high,
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="t" x="{LEFT}" y="20">{escape(title)}</text><text x="{LEFT}" y="38">{escape(source)}</text>',
    ]
    for i in range(5):
        (_, y), (x, _) = place(0, high * i / 4), place(far * i / 4, 0)
        parts.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{high * i / 4:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{far * i / 4:g}</text>')
    places = [place(x, y) for x, y in points]
    parts.append(f'<path class="l" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
    for (x, y), (_, value) in zip(places, points, strict=True):
        parts.append(f'<circle class="p" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{value:.0f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ceiling(value: float) -> float:
    """The next 1, 2, 4, 6 or 8 times a power of ten."""
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)
