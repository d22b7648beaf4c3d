"""One page with the tables of an evaluation and its pictures, two at a time with a line between them.

It asks for nothing from elsewhere: style and script are in it, pictures too, or in a folder beside it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from varsr_engine.atomic import atomic_writer, output_error
from varsr_engine.evaluation.luminance import Pixels
from varsr_engine.evaluation.scores import Findings, Row, gaps, shown, shown_spread

EMBEDDED_QUALITY = 90  # of WebP; in a folder pictures are PNG, without loss
_THUMB_SIDE = 128
_HERE = Path(__file__).parent


class Page:
    """Takes pictures as they come and writes the page at the end.

    target: an .html file, in which the pictures are embedded as WebP (tens of kilobytes each), or a folder that gets
    index.html and the pictures as PNG in images/.
    """

    def __init__(self, target: Path) -> None:
        self.embedded = target.suffix.lower() in (".html", ".htm")
        self.path = target if self.embedded else target / "index.html"
        self._entries: list[dict[str, object]] = []
        self._of_row: dict[int, int] = {}  # id of a row → its entry
        self._thumbs: list[str] = []

    def add(self, row: Row, views: Mapping[str, Pixels]) -> None:
        """The pictures of a row, (H, W, 3) uint8 by what they are called: the first is on the left, "result" right."""
        index = len(self._entries)
        height, width = views["result"].shape[:2]
        urls = {name: self._url(pixels, f"{index + 1:04d}-{name.replace(' ', '-')}") for name, pixels in views.items()}
        self._of_row[id(row)] = index
        self._thumbs.append(_data_url(_thumb(views["result"]), "WEBP", quality=75))
        self._entries.append({"name": row.name, "size": [width, height], "views": urls, "scores": ""})

    def write(self, findings: Findings) -> None:
        """Write the page. Raises OutputError."""
        for row in findings.rows:
            if id(row) in self._of_row:
                self._entries[self._of_row[id(row)]]["scores"] = _scores_line(findings, row)
        parts = {name: (_HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
        data = json.dumps(self._entries, ensure_ascii=False).replace("<", "\\u003c")
        fields = {
            "title": escape(f"varsr eval: {findings.facts['what']}"),
            "style": parts["css"],
            "content": self._content(findings),
            "data": data,
            "script": parts["js"],
        }
        before, *rest = parts["html"].split("{{")
        filled = [before]
        for part in rest:  # one pass: what is filled in is not looked at again
            name, after = part.split("}}", 1)
            filled += [fields[name], after]
        _create_folder(self.path.parent)
        with atomic_writer(self.path) as file:
            file.write("".join(filled).encode("utf-8", "backslashreplace"))

    def _url(self, pixels: Pixels, name: str) -> str:
        if self.embedded:
            return _data_url(pixels, "WEBP", quality=EMBEDDED_QUALITY)
        path = self.path.parent / "images" / f"{name}.png"
        _create_folder(path.parent)
        with atomic_writer(path) as file:
            Image.fromarray(pixels).save(file, "PNG")
        return f"images/{path.name}"

    def _content(self, findings: Findings) -> str:
        metrics = findings.suite.metrics
        parts = ["<dl>", *(_term(name, str(value)) for name, value in findings.facts.items()), "</dl>"]
        if findings.summaries():
            header = [_cell("th", "set", "text"), *(_cell("th", m.title) for m in metrics)]
            parts += ["<h2>Means ± deviation</h2>", _table(header, _mean_rows(findings))]
        if findings.of_sets:
            parts += ["<h2>Of whole sets</h2>", "<dl>"]
            for name, values in findings.of_sets.items():
                digits = {m.key: m.digits for m in findings.set_metrics}
                parts.append(_term(name, ", ".join(f"{k} {shown(v, digits[k])}" for k, v in values.items())))
            parts.append("</dl>")
        header = [_cell("th", "picture", "text", sort="text"), _cell("th", "set", "text", sort="text")]
        header += [_cell("th", m.title, sort="number") for m in metrics]
        header.append(_cell("th", "seconds", sort="number"))
        parts += ["<h2>Pictures</h2>", _table(header, (self._picture_row(findings, row) for row in findings.rows))]
        parts += ["<h2>Variants of the metrics</h2>", "<dl>"]
        parts += [_term(m.title, m.variant) for m in (*metrics, *findings.set_metrics)] + ["</dl>"]
        if missing := gaps(findings):
            parts += ["<h2>Skipped</h2>", "<dl>", *(_term(what, reason) for what, reason in missing), "</dl>"]
        if findings.warnings:
            parts += ["<h2>Warnings</h2>", "<ul>", *(f"<li>{escape(w)}</li>" for w in findings.warnings), "</ul>"]
        return "\n".join(parts)

    def _picture_row(self, findings: Findings, row: Row) -> str:
        name = escape(row.name)
        index = self._of_row.get(id(row))
        if index is not None:
            name = (
                f'<button type="button" class="thumb" data-open="{index}">'
                f'<img src="{self._thumbs[index]}" alt="" loading="lazy">{name}</button>'
            )
        cells = [f'<td class="text" data-value="{escape(row.name)}">{name}</td>', _cell("td", row.set_name, "text")]
        metrics = findings.suite.metrics
        if row.error is not None:
            message = escape(row.error["message"])
            return "".join([*cells, f'<td class="text error" colspan="{len(metrics) + 1}">{message}</td>'])
        for metric in metrics:
            cells.append(_score_cell(row.scores.get(metric.key), metric.digits, row.reasons.get(metric.key)))
        return "".join([*cells, _score_cell(row.seconds, 2, None)])


def _mean_rows(findings: Findings) -> Iterable[str]:
    for name, values in findings.summaries().items():
        cells = [_cell("td", name, "text")]
        cells += [_cell("td", shown_spread(values.get(m.key), m.digits)) for m in findings.suite.metrics]
        yield "".join(cells)


def _scores_line(findings: Findings, row: Row) -> str:
    scores = ((m, row.scores.get(m.key)) for m in findings.suite.metrics)
    return "  ".join(f"{m.heading} {shown(value, m.digits)}" for m, value in scores if value is not None)


def _score_cell(value: float | None, digits: int, reason: str | None) -> str:
    if value is None:
        return f'<td class="missing" data-value="" title="{escape(reason or "not measured")}">–</td>'
    sorted_by = str(value).replace("inf", "Infinity")  # as JavaScript spells it
    return f'<td data-value="{sorted_by}">{shown(value, digits)}</td>'


def _cell(tag: str, text: str, kind: str = "", sort: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' data-sort="{sort}"' if sort else ""
    attributes += f' data-value="{escape(text)}"' if tag == "td" else ' scope="col"'
    return f"<{tag}{attributes}>{escape(text)}</{tag}>"


def _term(name: str, text: str) -> str:
    return f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"


def _table(header: Iterable[str], rows: Iterable[str]) -> str:
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{"".join(header)}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _thumb(pixels: Pixels) -> Pixels:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMB_SIDE, _THUMB_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _data_url(pixels: Pixels, format: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
