"""Markdown of a result: the page beside it, and the tables of docs/comparison.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.diffusion.results import Content, faults
from benchmarks.gpu_suite.tables import rows as markdown

SMOKE = (
    "**A smoke run: small networks, two steps, on a CPU. It proves that the program runs and measures nothing; it has "
    "no times.**"
)


def percentile(values: Sequence[float], share: float) -> float:
    """Of the sorted values, the nearest one."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def engine_row(rows: dict[str, Any]) -> dict[str, Any] | None:
    """The 16-bit engine of a group on the backend that it chooses itself, if it was timed."""
    for name, row in rows.items():
        if name.startswith("engine ") and "backend" not in name and "fp8" not in name and row.get("seconds"):
            return None if row["faults"] else dict(row)
    return None


def what_happened(row: dict[str, Any]) -> str | None:
    """Why a row has no time, in a few words; None: it has."""
    if "not_run" in row:
        return f"not run: {row['not_run'][:160]}"
    if "failed" in row:
        return f"FAILED: {row['failed'][:160]}"
    if row.get("faults"):
        return f"FAIL: {'; '.join(row['faults'])[:300]}"
    return None if row.get("seconds") else "no time was left"


def plain(text: str) -> str:
    """As a cell may hold it."""
    return text.replace("\n", " ").replace("|", "/")


HEADER = (
    "contestant",
    "ms a picture: median (p10 to p90)",
    "calls",
    "MP/s",
    "times as long as the engine",
    "TFLOP/s",
    "of the product's peak",
    "first call s",
    "weights GB",
    "above them GB",
    "J a picture",
    "how",
    "what it leaves out",
)


def line(name: str, row: dict[str, Any], group: dict[str, Any], engine: float | None, peak: float | None) -> list[str]:
    """engine: its median seconds a call. peak: FLOP/s of a large product."""
    left_out, happened = row.get("left_out", ""), what_happened(row)
    if happened is not None:
        return [name, plain(happened), *[""] * (len(HEADER) - 3), left_out]
    seconds, batch = row["seconds"], group["batch"]
    median = statistics.median(seconds)
    low, high = (1e3 * percentile(seconds, share) / batch for share in (0.1, 0.9))
    megapixels = batch * group["side"] ** 2 / 1e6
    rate = None if row["flops"] is None else row["flops"] * batch / median

    def giga(key: str) -> str:
        return "" if row.get(key) is None else f"{row[key] / 1e9:.2f}"

    return [
        name,
        f"{1e3 * median / batch:.2f} ({low:.2f} to {high:.2f})" + (", short" if row.get("short", True) else ""),
        str(len(seconds)),
        f"{megapixels / median:.2f}",
        "" if engine is None else f"{median / engine:.2f}",
        "" if rate is None else f"{rate / 1e12:.1f}",
        "" if rate is None or peak is None else f"{rate / peak:.0%}",
        f"{row['first_call_s']:.2f}",
        giga("weights_bytes"),
        giga("activation_bytes"),
        "" if row.get("joules") is None else f"{row['joules']:.2f}",
        row["how"],
        left_out,
    ]


def group_table(group: dict[str, Any], peaks: dict[str, float]) -> str:
    rows = group["rows"]
    mine = engine_row(rows)
    engine = None if mine is None else statistics.median(mine["seconds"])

    def peak_of(name: str) -> float | None:
        kinds = [kind for kind in peaks if (kind == "fp8") == ("fp8" in name)]
        return peaks[kinds[0]] if kinds else None

    text = markdown(HEADER, (line(name, row, group, engine, peak_of(name)) for name, row in rows.items()))
    if group.get("drifted"):
        text += f"\n\n**Flagged: turns of the last rounds took {group['drift']:+.1%} of those of the first.**"
    return text


def smoke_table(group: dict[str, Any]) -> str:
    """Who ran; no times."""
    lines = [
        [name, plain(what_happened(row) or "ran, passed the gates"), row.get("left_out", "")]
        for name, row in group["rows"].items()
    ]
    return markdown(("contestant", "what happened", "what it leaves out"), lines)


def quality_table(quality: dict[str, Any], smoke: bool) -> str:
    """Means over pairs; none of a smoke run."""
    if smoke:
        return f"{quality['pairs']} pairs ran."
    means = quality["means"].items()
    lines = [[who, f"{mean['psnr_y']:.2f}", f"{mean['ssim_y']:.4f}"] for who, mean in means]
    text = f"Means of {quality['pairs']} pairs, 8 bits, AdaIN colour fix, no border cut off."
    left_out = "".join(f"\n- left out: {plain(sentence)}" for sentence in quality["left_out"])
    return f"{text}\n{left_out}\n\n{markdown(('contestant', 'PSNR-Y, dB', 'SSIM-Y'), lines)}"


def where(content: Content) -> str:
    m = content["machine"]
    versions = f"torch {m.get('torch')}, diffusers {m.get('diffusers')}, Triton {m.get('triton')}"
    driver = f", driver {m['driver_version']}" if "driver_version" in m else ""
    return f"{m.get('processor')}{driver}, {versions}, commit {content['commit']}, {content['date']}"


def part_text(name: str, record: dict[str, Any], smoke: bool) -> str:
    """A part's groups, and what of it is missing."""
    parts = [f"## {name}"]
    if record["status"] != "ok":
        running = f", in: {record['running']}" if record.get("running") else ""
        missing = f"; left out: {', '.join(record['left_out'])}" if record.get("left_out") else ""
        parts.append(f"**Not complete ({record['status']}{running}){missing}.** {record.get('error', '')}".strip())
    parts += [note for note in (record.get("peak_note"), record.get("energy_note")) if note]
    if "quality" in record:
        parts.append(quality_table(record["quality"], smoke))
    for title, group in record["groups"].items():
        text = smoke_table(group) if smoke else group_table(group, record.get("peak_flop_per_s", {}))
        parts += [f"### {title}, {group['side']} x {group['side']} pixels", text]
    return "\n\n".join(parts)


def table(content: Content) -> str:
    """All groups of a result, part by part."""
    return "\n\n".join(part_text(name, record, content["smoke"]) for name, record in content["parts"].items())


def page(content: Content) -> str:
    """The result as Markdown."""
    title = "Smoke run: no measurement" if content["smoke"] else where(content)
    random = all(
        row.get("weights", "random") == "random"
        for record in content["parts"].values()
        for group in record["groups"].values()
        for row in group["rows"].values()
    )
    said = SMOKE if content["smoke"] else "Random weights: speed only." if random else "Some weights are real."
    wrong = "\n".join(f"- {plain(text)}" for text in faults(content)) or "Nothing."
    return "\n\n".join([f"# {title}", said, table(content), "## What is wrong", wrong]) + "\n"
