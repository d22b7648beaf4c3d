"""python -m benchmarks.gpu_suite: see the package's docstring."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks.gpu_suite
from benchmarks.gpu_suite.report import Report, commit
from benchmarks.gpu_suite.session import ALWAYS, NAMES, PARTS, Part, Session
from benchmarks.gpu_suite.settings import Settings


def part_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"a part is one of {', '.join(NAMES)}, got {name!r}")
    return names


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def chosen_parts(only: tuple[str, ...] | None, skip: tuple[str, ...], dry_run: bool) -> list[Part]:
    """The parts to run. `compile` comes along with whatever launches kernels: it saves the others the waiting."""
    wanted = set(NAMES if only is None else (*only, *ALWAYS, "compile")) - set(skip)
    return [part for part in PARTS if part.name in wanted and not (dry_run and part.name == "compile")]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_suite",
        description=benchmarks.gpu_suite.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for <gpu>/<date>-<commit>.{json,md}")
    parser.add_argument("--only", type=part_names, help=f"parts to run, of {','.join(NAMES)}")
    parser.add_argument("--skip", type=part_names, default=(), help="parts to leave out")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it; what does not fit is cut and named")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; the results are no measurement")
    parser.add_argument("--batches", type=integers, help="of the engine and the baselines: 1,8")
    parser.add_argument("--rounds", type=int, help="interleaved runs of each contestant")
    parser.add_argument("--commit", help="where there is no git: the commit that is measured")
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> Settings:
    settings = Settings.dry() if args.dry_run else Settings()
    if args.batches:
        settings = replace(settings, engine_batches=args.batches, baseline_batches=args.batches)
    return replace(settings, rounds=args.rounds) if args.rounds else settings


def stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """0 if all is well, 1 if anything failed. What was cut is printed and in the files, and fails nothing."""
    args = arguments(argv)
    settings = settings_of(args)
    command = shlex.join(sys.argv[1:] if argv is None else argv)
    report = Report(args.out, settings, args.minutes, args.commit or commit(), command)
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="gpu-suite-") as folder:
        session = Session(settings, args.minutes, Path(folder), report.update)
        try:
            session.run(chosen_parts(args.only, args.skip, args.dry_run))
            report.content["finished"] = True
        except KeyboardInterrupt:
            session.say("stopped: what was measured so far is kept")
        report.update(session.results)
    print(report.path.with_suffix(".md").read_text(), flush=True)
    failed = [f"{name}: {item}" for name, result in session.results.items() for item in result.failed]
    failed += [name for name, result in session.results.items() if result.status == "FAILED" and not result.failed]
    print(f"{len(failed)} failed; results in {report.path}", flush=True)
    return 1 if failed or not report.content["finished"] else 0


if __name__ == "__main__":
    sys.exit(main())
