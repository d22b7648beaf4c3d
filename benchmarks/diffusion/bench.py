"""What one part's process does: makes the contestants of each group, lets them take turns, and keeps what it has.

A group is saved as soon as it is done, and what it has so far every few seconds. What one contestant cannot do is its
row's, and costs the others nothing.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.diffusion import clocks, gates
from benchmarks.diffusion.contestants import (
    PUBLISHED_NAME,
    Contestant,
    PeerContestant,
    PublishedContestant,
    engine_contestant,
    engine_name,
    synchronise,
)
from benchmarks.diffusion.gpu_state import GpuState
from benchmarks.diffusion.groups import Group
from benchmarks.diffusion.peers import PEERS
from benchmarks.diffusion.results import Results, counts
from benchmarks.diffusion.settings import Settings
from benchmarks.diffusion.sizes import SCALE
from benchmarks.diffusion.tiles import own_tiles, ways
from benchmarks.gpu_suite.ceilings import product_fp8
from benchmarks.gpu_suite.settings import Settings as SuiteSettings
from benchmarks.gpu_suite.timing import Runner, WallRunner
from benchmarks.gpu_suite.work import Clock, NotRun
from benchmarks.machine import gemm_ceiling
from varsr_engine.errors import ResourceExhaustedError

SAVE_SECONDS = 10.0  # between saves within a group
ENERGY_SECONDS = 1.0  # of calls whose energy is read together
LEAST_ROUNDS = 3  # below which a row says that it is short
CEILING_SIDE = 8192  # of the product that no contestant may be faster than


class Bench:
    """What the groups of a part share: networks, engines, the picture of each batch and the machine's ceilings."""

    def __init__(self, settings: Settings, results: Results, part: str, clock: Clock) -> None:
        self.settings, self.device, self.clock = settings, settings.torch_device, clock
        self.results, self.record = results, results.part(part)
        self.gpu = GpuState(self.device)
        self._peers: dict[str, PeerContestant] = {}
        self._published: PublishedContestant | None = None
        self._engines: dict[str, Contestant | str] = {}
        self._peaks: dict[str, float] = {}
        self._passed: dict[tuple[object, ...], dict[str, Any]] = {}  # rows of what went through the gates
        self._counted = None if settings.smoke else counts()

    # --- who -----------------------------------------------------------------------------------------------------

    def peer(self, name: str) -> PeerContestant:
        if name not in self._peers:
            self._peers[name] = PeerContestant(PEERS[name], self.settings)
        return self._peers[name]

    def published(self) -> PublishedContestant:
        if self._published is None:
            self._published = PublishedContestant(self.settings)
        return self._published

    def builders(self, group: Group) -> dict[str, Callable[[], Contestant]]:
        """What makes each contestant of a group, by its name. A group's own peers come first."""

        def at_level(name: str) -> Callable[[], Contestant]:
            return lambda: self.peer(name).at(group.level)

        found = {name: at_level(name) for name in group.peers}
        if group.published or not group.peers:
            found[PUBLISHED_NAME] = lambda: self.published().at(group.level)
        modes = [(self.settings.dtype, backend) for backend in self.settings.engine_backends]
        if group.level == 2:  # time is short where peers compile, and the engine is the same at every level
            modes = modes[:1]
        if self.settings.engine_fp8:
            modes.append(("fp8", "auto"))
        for mode, backend in modes:
            found[engine_name(backend, mode)] = lambda mode=mode, backend=backend: self.engine(backend, mode)
        return found

    def engine(self, backend: str, mode: str) -> Contestant:
        key = f"{backend} {mode}"
        if key not in self._engines:
            try:
                batch = max(*self.settings.batches, 1)
                self._engines[key] = engine_contestant(self.settings, backend, mode, batch)
            except NotRun as reason:
                self._engines[key] = str(reason)
        engine = self._engines[key]
        if isinstance(engine, str):
            raise NotRun(engine)
        return replace(engine, facts=dict(engine.facts))

    def peak(self, contestant: Contestant) -> float | None:
        """FLOP/s that a large product reaches here in the contestant's kind of numbers; None: no ceiling is known."""
        if self.device.type != "cuda":
            return None
        kind = "fp8" if contestant.fp8 else self.settings.dtype
        if kind not in self._peaks:
            self._peaks[kind] = fp8_ceiling() if kind == "fp8" else self._ceiling()
        return self._peaks[kind]

    def _ceiling(self) -> float:
        return gemm_ceiling(self.device, self.settings.torch_dtype, side=CEILING_SIDE)

    # --- what ----------------------------------------------------------------------------------------------------

    def run(self, groups: Sequence[Group], begun: float) -> None:
        for i, group in enumerate(groups):
            later = {name for other in groups[i:] for name in other.peers}
            self._peers = {name: peer for name, peer in self._peers.items() if name in later}
            if self.clock.left <= 0:
                self.record["left_out"] = [other.name for other in groups[i:]]
                self.record["status"] = "cut"
                return
            self.record["running"] = group.name
            self.results.write()
            start = time.monotonic()
            data = self.run_group(group, Clock(self.clock.left / (len(groups) - i)))
            data["elapsed_s"] = round(time.monotonic() - start, 2)
            self.record["elapsed_s"] = round(time.monotonic() - begun, 2)
            say(f"{group.name}: {data['elapsed_s']:.1f} s")
            self.results.write()
            gc.collect()
        self.record.pop("running", None)
        self.record["status"] = "ok"

    def run_group(self, group: Group, limit: Clock) -> dict[str, Any]:
        sizes = self.settings.sizes
        side = self.settings.tiled_side if group.tiled else sizes.side
        data: dict[str, Any] = {"level": group.level, "clock": group.clock, "batch": group.batch, "side": side}
        data |= {"tiled": group.tiled, "rows": {}, "gpu_before": self.gpu.facts()}
        self.record["groups"][group.name] = data
        low = clocks.random_pictures(group.batch, side // SCALE, self.settings.seed, self.device.type == "cuda")
        prepared: dict[str, tuple[Contestant, Runner]] = {}
        with torch.no_grad():  # not inference_mode, which turns off the cache of autocast's casts
            for name, build in self.builders(group).items():
                for label, contestant in self._variants(name, build, group, data):
                    row, runner = self._prepare(label, contestant, group, low, side)
                    data["rows"][label] = row
                    if runner is not None:
                        prepared[label] = contestant, runner
            self._time(group, data, prepared, limit)
        data["gpu_after"] = self.gpu.facts()
        return data

    def _variants(
        self, name: str, build: Callable[[], Contestant], group: Group, data: dict[str, Any]
    ) -> list[tuple[str, Contestant]]:
        """A contestant, or with a large picture its ways of doing it; none where it cannot be made, which is noted."""
        try:
            contestant = build()
        except NotRun as reason:
            data["rows"][name] = {"not_run": str(reason)}
            return []
        except Exception as error:  # one contestant's, not the part's
            data["rows"][name] = {"failed": described(error)}
            return []
        if not group.tiled or contestant.upscale is not None:
            return [(contestant.name, contestant)]
        peer = self._peers.get(contestant.name)
        return ways(contestant, peer is not None and peer.takes_any_size, self.settings)

    def _prepare(
        self, label: str, contestant: Contestant, group: Group, low: torch.Tensor, side: int
    ) -> tuple[dict[str, Any], Runner | None]:
        """Its row so far, and what takes its turns; None where it may not: the row says why.

        What passed the gates by one clock is not asked again by the other.
        """
        key = label, group.level, group.batch, group.tiled
        try:
            if group.tiled and (upscale := contestant.upscale) is not None:
                rgb, row = own_tiles(contestant, low, self.settings)
                return row, None if row["faults"] else WallRunner([lambda: upscale(rgb)])
            if key not in self._passed:
                self._passed[key] = self._through_the_gates(contestant, low, side)
            row = {**self._passed[key], "faults": list(self._passed[key]["faults"])}
            contestant.flops = row["flops"]
            runner = clocks.runner_of(contestant, group.clock, low, self.device, self.settings.seed)
        except NotRun as reason:
            return {"not_run": str(reason)}, None
        except (torch.OutOfMemoryError, ResourceExhaustedError) as error:
            torch.cuda.empty_cache()
            return {"not_run": f"out of memory: {error}"[:300]}, None
        except Exception as error:  # one contestant's, not the part's
            return {"failed": described(error)}, None
        return row, None if row["faults"] else runner

    def _through_the_gates(self, contestant: Contestant, low: torch.Tensor, side: int) -> dict[str, Any]:
        """First call, warm-up, and what the gates say of the outputs."""
        seed, pictures = self.settings.seed, clocks.on_device(low, self.device)
        out = contestant.first_call(pictures, seed).clone()  # a graph's output is overwritten by its next call
        for _ in range(self.settings.warmups(contestant.steps)):
            contestant.call(pictures, seed)
        if contestant.name in self._peers and side == self.settings.sizes.side:
            self._peers[contestant.name].flops = contestant.flops
        others = clocks.on_device(low.flip(-1), self.device)
        other, above = clocks.with_peak_bytes(lambda: contestant.call(others, seed).clone(), self.device)
        reseeded = contestant.call(pictures, seed + 1) if contestant.seeded else None
        faults = gates.output_faults(out, other, reseeded, (len(low), 3, side, side)) + self._size_faults(contestant)
        row = {"faults": faults, "activation_bytes": above, "how": contestant.how, "steps": contestant.steps}
        return {**row, "flops": contestant.flops, **contestant.facts}

    def _size_faults(self, contestant: Contestant) -> list[str]:
        if self._counted is None or contestant.name not in self._counted["peers"]:
            return []
        expected = self._counted["peers"][contestant.name]["parameters"]
        return gates.size_faults(contestant.facts["parameters"], expected)

    def _time(
        self, group: Group, data: dict[str, Any], prepared: dict[str, tuple[Contestant, Runner]], limit: Clock
    ) -> None:
        """Rounds of all that are prepared, then energy, and what speaks against the times."""
        last = time.monotonic()

        def save(seconds: dict[str, list[float]]) -> None:
            nonlocal last
            for name, values in seconds.items():
                data["rows"][name]["seconds"] = list(values)
            if time.monotonic() - last > SAVE_SECONDS:
                self.results.write()
                last = time.monotonic()

        runners = {name: runner for name, (_, runner) in prepared.items()}
        rounds = {name: self.settings.rounds(contestant.steps) for name, (contestant, _) in prepared.items()}
        if group.tiled:  # each turn is many calls
            rounds = {name: min(count, self.settings.rounds(4)) for name, count in rounds.items()}
        seconds = clocks.interleave(runners, rounds, self.device, limit, save)
        data["drift"] = clocks.drift(seconds)
        data["drifted"] = data["drift"] is not None and abs(data["drift"]) > clocks.DRIFT
        for name, (contestant, runner) in prepared.items():
            row, flops = data["rows"][name], contestant.flops
            row["short"] = len(seconds[name]) < min(LEAST_ROUNDS, rounds[name])
            if flops is not None:
                total = row["flops"] * group.batch
                row["faults"] += gates.speed_faults(total, min(seconds[name]), self.peak(contestant))
            if limit.left > 0:
                row["joules"] = self._energy(runner, group.batch)
        self._note_ceilings()

    def _energy(self, runner: Runner, batch: int) -> float | None:
        """Joules of one picture, in calls one after another; what the idle GPU takes is in them."""
        if self.gpu.why_no_energy is not None:
            return None
        synchronise(self.device)
        before = self.gpu.joules()
        calls = clocks.repeated(runner.turn, self.device, ENERGY_SECONDS)
        after = self.gpu.joules()
        assert before is not None and after is not None
        return (after - before) / (calls * batch)

    def _note_ceilings(self) -> None:
        self.record["peak_flop_per_s"] = dict(self._peaks)
        if self.device.type != "cuda":
            self.record["peak_note"] = "On a CPU torch's product is no ceiling: rates are not judged."
        if self.gpu.why_no_energy is not None:
            self.record["energy_note"] = f"No energy: {self.gpu.why_no_energy}."


def fp8_ceiling() -> float:
    """FLOP/s of torch's fp8 product."""
    return float(product_fp8(SuiteSettings(rounds=10))["flop_per_s"])


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:600]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
