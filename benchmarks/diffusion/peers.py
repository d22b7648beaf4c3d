"""Who is compared: each peer's method, what its emulation leaves out, and the size that it must have.

`parameters` and `macs` are those of the emulation with published widths, 512 x 512 pixels out, one picture, attention's
products included; `--check` holds the built networks to them. `paper_*` is what the authors report: most leave
attention's products out of their count, and count what the emulation lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.diffusion.methods import (
    Bicubic,
    FlowStep,
    ManySteps,
    Method,
    OneStep,
    PrunedStep,
    Regression,
    ResShift,
)
from benchmarks.diffusion.sizes import Sizes


@dataclass(frozen=True)
class Peer:
    name: str  # on the command line and in results
    title: str  # what it stands for
    steps: int  # calls of the denoiser, of one picture; 0: no diffusion
    build: Callable[[Sizes], Method]
    left_out: str  # a sentence
    parameters: float  # millions
    macs: float  # 10^9
    paper_parameters: float | None = None  # millions
    paper_macs: float | None = None  # 10^9
    loadable: bool = True  # whether real weights exist for exactly these networks


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "bicubic",
            "bicubic",
            0,
            lambda sizes: Bicubic(),
            "Nothing: it is the resize that every other method starts from.",
            0.0,
            0.0,
            loadable=False,
        ),
        Peer(
            "rrdb",
            "RRDBNet (Real-ESRGAN x4plus)",
            0,
            Regression,
            "Nothing of the network.",
            16.70,
            293.7,
            16.70,
        ),
        Peer(
            "stablesr",
            "StableSR class, 200 steps",
            200,
            lambda sizes: ManySteps(sizes, 200),
            "The time-aware encoder, its feature transforms in the UNet and the controllable decoder: a lower bound.",
            949.56,
            82241.0,
            1410.0,
            79940.0,
            loadable=False,
        ),
        Peer(
            "seesr",
            "SeeSR class, 50 steps, guided",
            50,
            lambda sizes: ManySteps(sizes, 50, "picture", 5.5),
            "The image cross-attention of UNet and ControlNet, the tagger and the text encoder: a lower bound, about "
            "seven tenths of a branch.",
            1313.79,
            56216.0,
            2524.0,
            65857.0,
            loadable=False,
        ),
        Peer(
            "diffbir",
            "DiffBIR class, 50 steps, no guidance",
            50,
            lambda sizes: ManySteps(sizes, 50, "latent"),
            "The restorer of its first stage, and guidance, which the paper's count leaves out as well: a lower bound.",
            1312.71,
            28650.0,
            1717.0,
            24234.0,
            loadable=False,
        ),
        Peer(
            "resshift15",
            "ResShift, 15 steps",
            15,
            lambda sizes: ResShift(sizes, 15),
            "Chopping of large pictures; Swin blocks have LayerNorm where the original has GroupNorm.",
            173.93,
            5483.1,
            174.7,
            5491.0,
            loadable=False,
        ),
        Peer(
            "resshift4",
            "ResShift v3, 4 steps",
            4,
            lambda sizes: ResShift(sizes, 4, least=0.2),
            "Chopping of large pictures; Swin blocks have LayerNorm where the original has GroupNorm.",
            173.93,
            3254.4,
            loadable=False,
        ),
        Peer(
            "sinsr",
            "SinSR, 1 step",
            1,
            lambda sizes: ResShift(sizes, 1),
            "Chopping of large pictures; Swin blocks have LayerNorm where the original has GroupNorm.",
            173.93,
            2646.6,
            174.7,
            2649.0,
            loadable=False,
        ),
        Peer(
            "osediff",
            "OSEDiff class (= PiSA-SR), 1 step",
            1,
            OneStep,
            "The tagger and the text encoder, which run for every picture in OSEDiff: prompts are embedded beforehand. "
            "Low-rank adapters count as merged.",
            949.56,
            2217.7,
            1775.0,
            2265.0,
        ),
        Peer(
            "s3diff",
            "S3Diff class, 1 step, 2 passes",
            1,
            lambda sizes: OneStep(sizes, passes=2),
            "The estimator of degradation, and the low-rank adapters that it changes for every picture: they cannot be "
            "merged.",
            949.56,
            2619.8,
            1327.0,
            2621.0,
            loadable=False,
        ),
        Peer(
            "tsdsr",
            "TSD-SR class, 1 step",
            1,
            FlowStep,
            "Low-rank adapters, which count as merged and which the original runs unmerged.",
            2112.15,
            2870.0,
        ),
        Peer(
            "adcsr",
            "AdcSR class, 1 step",
            1,
            PrunedStep,
            "Nothing, and 2 % of work too much: the time embedding and a cross-attention to one token are still there.",
            486.47,
            559.1,
            456.07,
            496.0,
            loadable=False,
        ),
    )
}


def chosen(names: tuple[str, ...] | None, among: tuple[str, ...]) -> list[Peer]:
    """Those of `among` that were asked for, all if None, in the table's order."""
    return [peer for name, peer in PEERS.items() if name in among and (names is None or name in names)]
