"""The parts of the comparison and their groups: who takes turns with whom, at which level, by which clock."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.diffusion.clocks import CLOCKS
from benchmarks.diffusion.levels import WORDS
from benchmarks.diffusion.peers import chosen
from benchmarks.diffusion.settings import Settings

ONE_STEP = ("bicubic", "rrdb", "sinsr", "osediff", "s3diff", "tsdsr", "adcsr")
MULTI_STEP = ("stablesr", "seesr", "diffbir", "resshift15", "resshift4")
QUALITY = "quality"  # a part without groups, of real weights
PARTS = ("one-step", "batches", "tiles", "multi-step", "compiled-one-step", "compiled-multi-step")


@dataclass(frozen=True)
class Group:
    """Contestants that take turns: the peers' level, the clock, pictures a call; tiled: a large picture."""

    peers: tuple[str, ...]
    level: int
    clock: str
    batch: int = 1
    tiled: bool = False
    published: bool = True

    @property
    def name(self) -> str:
        """Its own among those of a part, whatever peers a run was limited to."""
        what = "tiles" if self.tiled else f"batch {self.batch}"
        only = "" if self.peers in (ONE_STEP, MULTI_STEP) else f", {' and '.join(self.peers) or 'published style'}"
        return f"{WORDS[self.level]}, {self.clock} clock, {what}{only}"


def both_clocks(peers: tuple[str, ...], level: int, batch: int = 1) -> list[Group]:
    return [Group(peers, level, clock, batch) for clock in CLOCKS]


def compiled(names: tuple[str, ...], settings: Settings, published: bool) -> list[Group]:
    """Each peer alone against the engine: a compilation that takes too long costs the others nothing."""
    found = [Group((name,), 2, clock, published=False) for name in names for clock in CLOCKS]
    return found + (both_clocks((), 2) if published and not settings.smoke else [])


def groups_of(part: str, settings: Settings) -> list[Group]:
    """Levels rise, since networks are changed in place."""

    def named(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(peer.name for peer in chosen(settings.peers, names))

    one, many = named(ONE_STEP), named(MULTI_STEP)
    networks = tuple(name for name in one if name != "bicubic")
    if settings.smoke:  # compiling takes seconds a network: one shows that it works
        networks, many_compiled = networks[:1], many[:0]
    else:
        many_compiled = many
    found = {
        "one-step": [group for level in (0, 1) for group in both_clocks(one, level)],
        "multi-step": [group for level in (0, 1) for group in both_clocks(many, level)],
        "batches": [group for batch in settings.batches for group in both_clocks(one, 1, batch)],
        "tiles": [Group(one, 1, "host", tiled=True)],
        "compiled-one-step": compiled(networks, settings, published=settings.peers is None),
        "compiled-multi-step": compiled(many_compiled, settings, published=False),
    }
    return found[part]
