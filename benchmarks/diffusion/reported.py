"""Seconds a picture as authors report them, each with its hardware: 128 to 512 pixels, x4. Never mixed with our own.

Different papers give the same method different times; nothing is computed from these.
"""

from __future__ import annotations

from typing import NamedTuple


class Reported(NamedTuple):
    source: str
    hardware: str
    seconds: dict[str, float]  # by method


REPORTED = (
    Reported(
        "OSEDiff (NeurIPS 2024), table 2; S3Diff and AdcSR by AdcSR (CVPR 2025)",
        "A100",
        {
            "StableSR, 200 steps": 11.50,
            "DiffBIR, 50": 2.72,
            "SeeSR, 50": 4.30,
            "PASD, 20": 2.80,
            "ResShift, 15": 0.71,
            "SinSR, 1": 0.13,
            "OSEDiff, 1": 0.11,
            "S3Diff, 1": 0.28,
            "AdcSR, 1": 0.03,
        },
    ),
    Reported(
        "FiDeSR, table 6",
        "H100",
        {"StableSR": 7.52, "DiffBIR": 2.04, "OSEDiff": 0.087, "FiDeSR": 0.078, "PiSA-SR": 0.057},
    ),
    Reported(
        "GenDR",
        "A100",
        {"StableSR, 50 steps": 3.731, "SeeSR, 50": 6.359, "InvSR, 1": 0.115, "GenDR, 1": 0.077},
    ),
    Reported("PiSA-SR (CVPR 2025)", "A100", {"PiSA-SR, 1 pass": 0.09, "PiSA-SR, adjustable": 0.13}),
    Reported("VARSR (ICML 2025), at second hand", "V100 class", {"VARSR": 0.59, "DiffBIR": 5.85}),
    Reported("NSARM", "A800", {"VARSR": 0.3}),
    Reported(
        "VARestorer, at second hand",
        "not stated",
        {"DiffBIR": 10.27, "VARSR": 0.63, "VARestorer": 0.23, "OSEDiff": 0.18},
    ),
    Reported(
        "AlignVAR, at second hand",
        "not stated",
        {"StableSR": 15.32, "PASD": 5.94, "DiffBIR": 5.03, "VARSR": 0.52, "AlignVAR": 0.43},
    ),
)
