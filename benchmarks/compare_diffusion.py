"""VARSR on this engine against diffusion super-resolution models, built here with random weights.

    python -m benchmarks.compare_diffusion                    # all parts, on the GPU that torch sees
    python -m benchmarks.compare_diffusion --part one-step    # one of them; later ones go on in the same file
    python -m benchmarks.compare_diffusion --check            # parameters and arithmetic of every peer; no GPU
    python -m benchmarks.compare_diffusion --smoke            # small networks on a CPU: proves that it runs, no times
    python -m benchmarks.compare_diffusion --docs             # rewrites docs/comparison.md from what is committed

Needs diffusers (pip install 'varsr-engine[bench]'). Each part runs in a process of its own, for --minutes at most, and
saves what it has as it goes: <out>/<date>-<commit>.json, and Markdown beside it. The exit status is 1 if anything
failed. docs/comparison.md has the rules of the comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import ROOT

GRACE = 20.0  # seconds past its limit that a part gets to end the call that it is in
SMOKE_FOLDER = ROOT / "out" / "diffusion"


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.compare_diffusion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", type=words, help="parts to run, by name, with commas; all if not given")
    parser.add_argument("--peers", type=words, help="only these peers, by name, with commas")
    parser.add_argument("--minutes", type=float, default=7.0, help="of each part, at most")
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), help="of both sides (fp16)")
    parser.add_argument("--batches", type=integers, help="of the part of that name: 1,4,8,16")
    parser.add_argument("--rounds", type=int, help="timed calls of each contestant, at most")
    parser.add_argument("--weights", action="append", default=[], metavar="PEER=FOLDER", help="real weights, offline")
    parser.add_argument("--model", help="VARSR's folder or file; random weights if not given")
    parser.add_argument("--pairs", help="folder of pictures and their truths: also PSNR-Y and SSIM-Y of real weights")
    parser.add_argument("--out", type=Path, help="folder for the result (benchmarks/results/diffusion)")
    parser.add_argument("--commit", help="where there is no git: the commit that is measured")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--check", action="store_true", help="count parameters and arithmetic, and hold them to the table"
    )
    mode.add_argument("--smoke", action="store_true", help="small networks on the CPU; the result is no measurement")
    mode.add_argument("--docs", action="store_true", help="rewrite docs/comparison.md")
    parser.add_argument("--worker", nargs=3, metavar=("SETTINGS", "FILE", "COMMAND"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def check(names: tuple[str, ...] | None) -> int:
    """Count, print, and where all peers were counted and are right, keep the counts."""
    import diffusers
    import torch

    from benchmarks.diffusion import costs
    from benchmarks.diffusion.results import COUNTS

    found, wrong = costs.check(names)
    for name, amount in found.items():
        print(f"{name:12} {amount['parameters'] / 1e6:9.2f} M {amount['macs'] / 1e9:10.1f} GMAC", flush=True)
    print("\n".join(wrong) or "all as in the table")
    if not wrong and names is None:
        content = {"diffusers": diffusers.__version__, "torch": torch.__version__, "peers": found}
        COUNTS.parent.mkdir(parents=True, exist_ok=True)
        COUNTS.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    """0 if all is well, 1 if anything failed. What was cut or could not run is in the result, and fails nothing."""
    args = arguments(argv)
    try:
        import diffusers  # noqa: F401
    except ImportError:
        sys.exit(
            "compare_diffusion: diffusers is not installed; expected it beside torch: pip install 'varsr-engine[bench]'"
        )
    if args.docs:
        from benchmarks.diffusion.docs import PAGE, document

        PAGE.write_text(document())
        return 0
    if args.check:
        return check(args.peers)
    if args.worker:
        return work(args)
    return measure(args, shlex.join(sys.argv[1:] if argv is None else argv))


def measure(args: argparse.Namespace, command: str) -> int:
    """All parts one after another, each in a process of its own. This process never touches the GPU."""
    import torch

    from benchmarks.diffusion.groups import PARTS, QUALITY, groups_of
    from benchmarks.diffusion.peers import PEERS
    from benchmarks.diffusion.results import FOLDER, Results, faults
    from benchmarks.diffusion.settings import Settings

    named = tuple(entry.partition("=")[0] for entry in args.weights)
    for entry in args.weights:
        if not all(entry.partition("=")):
            sys.exit(f"compare_diffusion: --weights must be PEER=FOLDER, got {entry!r}")
    names = tuple(PEERS)
    for what, given, known in (("part", args.part, PARTS), ("peer", args.peers, names), ("peer", named, names)):
        unknown = set(given or ()) - set(known)
        if unknown:
            sys.exit(f"compare_diffusion: a {what} must be one of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if args.pairs and not (args.weights or args.model):
        sys.exit("compare_diffusion: --pairs asks for real weights; give --weights PEER=FOLDER, --model, or both")
    if not args.smoke and not torch.cuda.is_available():
        sys.exit("compare_diffusion: torch sees no CUDA device, and times are a GPU's; --smoke and --check need none")
    settings = Settings.small() if args.smoke else Settings()
    given = {"peers": args.peers, "dtype": args.dtype, "batches": args.batches, "fewer_rounds": args.rounds}
    given |= {"weights": tuple(args.weights) or None, "model": args.model, "pairs": args.pairs}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    folder = args.out or (SMOKE_FOLDER if args.smoke else FOLDER)
    path = Results.start(folder, args.smoke, args.commit).path
    parts = args.part or [part for part in PARTS if groups_of(part, settings)]
    for part in (*parts, *([QUALITY] if args.pairs else [])):
        run_apart(part, settings.to_json(), path, 60 * args.minutes, command)
    results = Results(path)
    results.write()
    print(path.with_suffix(".md").read_text())
    wrong = faults(results.content)
    print(f"{len(wrong)} failed; results in {path}")
    return 1 if wrong else 0


def run_apart(part: str, settings: str, path: Path, seconds: float, command: str) -> None:
    """One part in its own process, killed with all that it started if it overruns. Its record says how it ended."""
    from benchmarks.diffusion.results import Results

    line = [sys.executable, "-m", "benchmarks.compare_diffusion", "--worker", settings, str(path), command]
    line += ["--part", part, "--minutes", str(seconds / 60)]
    process = subprocess.Popen(line, start_new_session=True)
    status, error = "ok", ""
    try:
        if process.wait(seconds + GRACE):
            status, error = "FAILED", f"its process ended with status {process.returncode}"
    except subprocess.TimeoutExpired:
        status, error = "cut", f"stopped after {seconds + GRACE:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    results = Results(path)
    record = results.part(part)
    if status != "ok":
        record |= {"status": status, "error": error}
    results.write()


def work(args: argparse.Namespace) -> int:
    """The part in this process."""
    from benchmarks.diffusion.part_run import run_part
    from benchmarks.diffusion.results import Results
    from benchmarks.diffusion.settings import Settings

    text, path, command = args.worker
    run_part(args.part[0], Settings.from_json(text), Results(Path(path)), 60 * args.minutes, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
