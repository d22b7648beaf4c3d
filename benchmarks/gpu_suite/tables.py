"""Markdown from results: the page beside a result, and the GPU sections of README.md and docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite import targets

Content = dict[str, Any]

NOTHING = "Nothing has been measured on a GPU yet: `benchmarks/results/` holds no result of `benchmarks.gpu_suite`."
UNITS = {"eager": "eager, fp16 autocast", "dynamic": "torch.compile, dynamic shapes", "static": "torch.compile, static"}


def newest(folder: Path) -> list[Content]:
    """The latest complete result of each GPU under benchmarks/results. Raises ValueError for one of a dry run."""
    found: dict[str, Content] = {}
    for path in sorted(folder.glob("*/*.json")):
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.get("suite") != "gpu":
            continue
        if content["dry_run"]:
            raise ValueError(f"{path.name}: a dry run is no measurement; remove {path}")
        latest = found.get(path.parent.name)
        if latest is None or moment(latest) < moment(content):
            found[path.parent.name] = content
    return list(found.values())


def moment(content: Content) -> tuple[str, str]:
    return content["date"], content["time"]


def where(content: Content) -> str:
    m = content["parts"].get("machine", {}).get("items", {}).get("facts", {})
    versions = f"torch {m.get('torch')}, Triton {m.get('triton')}, cuDNN {m.get('cudnn')}"
    return f"{m.get('gpu', 'unknown GPU')}, {versions}, commit {content['commit']}, {content['date']}"


def milliseconds(value: dict[str, Any], digits: int = 2) -> str:
    """Median and quartiles of seconds."""
    return f"{1e3 * value['median']:.{digits}f} ({1e3 * value['q1']:.{digits}f} to {1e3 * value['q3']:.{digits}f})"


def gigabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def rows(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a note where it has no rows."""
    names, found = list(header), [f"| {' | '.join(cells)} |" for cells in lines]
    if not found:
        return "Not measured."
    return "\n".join([f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}", *found])


def items(content: Content, part: str) -> dict[str, Any]:
    found: dict[str, Any] = content["parts"].get(part, {}).get("items", {})
    return found


def measured(content: Content, part: str) -> dict[str, Any]:
    """The items that gave numbers."""
    return {name: i for name, i in items(content, part).items() if i["status"] == "ok"}


def ceiling(content: Content, name: str, key: str) -> float | None:
    return targets.item(content, "machine", name).get(key)


# --- the engine --------------------------------------------------------------------------------------------


def engine_table(content: Content) -> str:
    peak = ceiling(content, "product fp16", "flop_per_s")

    def line(name: str, i: dict[str, Any]) -> list[str]:
        replay = milliseconds(i["replay_s"]) if "replay_s" in i else ""
        rate = i["flops"] / i["wall_s"]["median"]
        share = "" if peak is None else f"{rate / peak:.0%}"
        memory = [gigabytes(i.get("peak_bytes")), gigabytes(i.get("weights_bytes"))]
        return [name, milliseconds(i["wall_s"]), replay, f"{1e3 * i['per_image_s']:.2f}", share, *memory]

    header = ("engine", "ms", "of which the graph", "ms an image", "of the product's peak", "peak GB", "weights GB")
    found = measured(content, "engine").items()
    return rows(header, (line(name, i) for name, i in found if "wall_s" in i))


def baseline_table(content: Content) -> str:
    def line(i: dict[str, Any]) -> list[str]:
        ratio = f"{i['ratio']['median']:.2f} ({i['ratio']['q1']:.2f} to {i['ratio']['q3']:.2f})"
        return [UNITS[i["kind"]], str(i["batch"]), milliseconds(i["published_s"]), milliseconds(i["engine_s"]), ratio]

    header = ("published style", "batch", "ms", "engine ms", "times as fast")
    return rows(header, map(line, measured(content, "baselines").values()))


def stage_table(content: Content) -> str:
    def lines(i: dict[str, Any]) -> Iterable[list[str]]:
        for stage, value in i["stages"].items():
            rate, traffic = value["flops"] / value["median"] / 1e12, value["bytes"] / value["median"] / 1e9
            yield [str(i["batch"]), stage, f"{1e3 * value['median']:.3f}", f"{rate:.0f}", f"{traffic:.0f}"]

    found = [i for i in measured(content, "engine").values() if "stages" in i]
    header = ("batch", "stage, in the graph", "ms", "TFLOP/s", "GB/s at least")
    return rows(header, (line for i in found for line in lines(i)))


# --- what is right -----------------------------------------------------------------------------------------


def parity_table(content: Content) -> str:
    def line(i: dict[str, Any]) -> list[str]:
        cells = [i["case"], i["dtype"]]
        for way in ("fed", "free"):
            a = i[way]
            cells += [f"{a['tokens']:.2%}", decibel(a["latent_psnr"]), decibel(a["image_psnr"])]
        return cells

    header = ("case", "dtype", "tokens, golden fed", "latent dB", "image dB", "tokens, free", "latent dB", "image dB")
    found = [i for i in items(content, "parity").values() if "fed" in i]
    return rows(header, map(line, found))


def decibel(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"


def check_table(content: Content) -> str:
    """By op and backend: how many calls were checked, and the worst."""
    groups: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for name, i in items(content, "checks").items():
        groups.setdefault((name.split()[0], name.split()[-1]), []).append((name, i))

    def line(key: tuple[str, str], found: list[tuple[str, dict[str, Any]]]) -> list[str]:
        count = [sum(i["status"] == s for _, i in found) for s in ("ok", "FAILED", "not run")]
        errors = [i["error"] for _, i in found if isinstance(i.get("error"), float)]
        return [*key, *map(str, count), f"{max(errors):.2f}" if errors else ""]

    header = ("op", "backend", "ok", "failed", "not run", "worst error, of what is allowed")
    return rows(header, (line(key, found) for key, found in groups.items()))


# --- ops ---------------------------------------------------------------------------------------------------


def op_table(content: Content) -> str:
    """Every call: the engine's choice, its rates, its distance to what arithmetic and traffic leave, and the others."""
    product, copied = ceiling(content, "product fp16", "flop_per_s"), ceiling(content, "copy", "bytes_per_s")
    fp8, wrong = ceiling(content, "product fp8", "flop_per_s"), wrong_calls(content)

    def line(name: str, i: dict[str, Any]) -> list[str]:
        times, automatic = i["times"], i["automatic"]
        others = sorted((t["median"], n) for n, t in times.items() if n != automatic)
        rest = ", ".join(f"{n} {1e6 * t:.1f}" for t, n in others)
        mine = times.get(automatic)
        if name in wrong or mine is None:
            return [name, str(i["count"]), f"{automatic}: FAIL", "", "", "", rest]
        peak = fp8 if i["variant"] == "fp8" else product
        floors = [i["flops"] / peak if peak else 0.0, i["bytes"] / copied if copied else 0.0]
        t = mine["median"]
        spread = f"{1e6 * t:.1f} ({1e6 * mine['q1']:.1f} to {1e6 * mine['q3']:.1f})"
        rates = [
            f"{i['flops'] / t / 1e12:.1f}",
            f"{i['bytes'] / t / 1e9:.0f}",
            f"{max(floors) / t:.0%}" if max(floors) else "",
        ]
        return [name, str(i["count"]), f"{automatic} {spread}", *rates, rest]

    header = ("call", "an image", "engine's µs", "TFLOP/s", "GB/s", "of the ceiling", "others' µs")
    return rows(header, (line(name, i) for name, i in items(content, "ops").items() if "times" in i))


def wrong_calls(content: Content) -> set[str]:
    """Calls that a check of the same run found wrong: they get no time."""
    dtype = content["settings"]["compute_dtype"]
    failed = [n for n, i in items(content, "checks").items() if i["status"] == "FAILED"]
    return {n.rsplit(" ", 2)[0] for n in failed if n.rsplit(" ", 2)[1] == dtype}


def op_sums(content: Content) -> str:
    """What the calls of each op add up to in a forward pass, by the engine's choice and by torch's composition."""
    sums: dict[tuple[int, str], list[float]] = {}
    for i in measured(content, "ops").values():
        if i["count"] and not i["variant"] and i["automatic"] in i["times"]:
            total = sums.setdefault((i["batch"], i["op"]), [0.0, 0.0])
            total[0] += i["count"] * i["times"][i["automatic"]]["median"]
            total[1] += i["count"] * i["times"].get("torch eager", {"median": float("nan")})["median"]
    lines = ([str(b), op, f"{1e3 * mine:.3f}", f"{1e3 * plain:.3f}"] for (b, op), (mine, plain) in sums.items())
    return rows(("batch", "op", "ms a pass", "torch eager ms"), lines)


def machine_lines(content: Content) -> str:
    found = []
    for name, i in measured(content, "machine").items():
        if "flop_per_s" in i:
            found.append(f"{name}: {i['flop_per_s'] / 1e12:.0f} TFLOP/s")
        elif "bytes_per_s" in i:
            found.append(f"{name}: {i['bytes_per_s'] / 1e9:.0f} GB/s")
        elif "time" in i:
            found.append(f"{name}: {1e6 * i['time']['median']:.2f} µs")
    return "Ceilings of this run: " + (", ".join(found) or "none") + "."


def profile_table(content: Content) -> str:
    def lines(i: dict[str, Any]) -> Iterable[list[str]]:
        for kernel in i["kernels"][:25]:
            yield [str(i["batch"]), f"`{kernel['kernel'][:80]}`", str(kernel["calls"]), f"{kernel['us']:.0f}"]

    found = measured(content, "profile").values()
    return rows(("batch", "kernel", "calls", "µs"), (line for i in found for line in lines(i)))


def problems(content: Content) -> str:
    """What failed, was cut or was not run, by name: nothing is left out in silence."""
    lines = []
    for part, result in content["parts"].items():
        for name in result["failed"]:
            error = str(result["items"][name].get("error", "")).replace("\n", " ")[:300]
            lines.append(f"- FAILED {part}: {name}: {error}")
        if result["status"] == "FAILED" and not result["failed"]:
            lines.append(f"- FAILED {part}: no item was run")
        if result["cut"]:
            named = ", ".join(result["cut"][:8]) + (", ..." if len(result["cut"]) > 8 else "")
            lines.append(f"- cut {part}, after {result['seconds']:.0f} s: {len(result['cut'])} items: {named}")
        elif result["status"] == "cut":
            lines.append(f"- cut {part}: no time was left")
        notes: dict[str, int] = {}
        for i in result["items"].values():
            if i["status"] == "not run":
                notes[i["note"]] = notes.get(i["note"], 0) + 1
        lines += [f"- not run, {part}: {count} items: {note[:200]}" for note, count in notes.items()]
    return "\n".join(lines) or "Everything ran, and nothing failed."


def page(content: Content) -> str:
    """The whole result as Markdown, most telling first; the end is what a terminal shows last."""
    state = "" if content["finished"] else " **Not finished.**"
    title = "Dry run: no measurement" if content["dry_run"] else where(content)
    parts = [f"# {title}", f"{content['seconds']} s of {content['minutes']} minutes.{state} {machine_lines(content)}"]
    for heading, text in (
        ("Ops", op_table(content)),
        ("Ops, by kind", op_sums(content)),
        ("Kernels of an image", profile_table(content)),
        ("Stages", stage_table(content)),
        ("Checks against float64", check_table(content)),
        ("Golden parity", parity_table(content)),
        ("Published style", baseline_table(content)),
        ("Engine", engine_table(content)),
        ("Targets", targets.table(content)),
        ("Failed, cut, not run", problems(content)),
    ):
        parts += [f"## {heading}", text]
    return "\n\n".join(parts) + "\n"


# --- the repository's documents ----------------------------------------------------------------------------


def readme_section(results: list[Content]) -> str:
    """The engine and the baselines of each GPU, or that there are none."""
    if not results:
        return NOTHING
    return "\n\n".join(f"{where(c)}:\n\n{engine_table(c)}\n\n{baseline_table(c)}" for c in results)


def docs_section(results: list[Content]) -> str:
    """What docs/benchmarks.md says of GPUs."""
    if not results:
        return NOTHING
    parts = []
    for c in results:
        parts += [f"### {where(c)}", machine_lines(c), targets.table(c), engine_table(c), baseline_table(c)]
        parts += [parity_table(c), check_table(c), stage_table(c), op_sums(c), op_table(c), problems(c)]
    return "\n\n".join(parts)
