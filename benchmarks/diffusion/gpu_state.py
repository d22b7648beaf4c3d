"""What the driver tells of the GPU: its version, clocks and energy, read by NVML or nvidia-smi and never set."""

from __future__ import annotations

import subprocess
from typing import Any

import torch


class GpuState:
    """why_no_energy: None where energy can be read, else the reason in a sentence."""

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        self._nvml: Any = None
        self.why_no_energy: str | None = "there is no GPU"
        self._on = device.type == "cuda"
        if not self._on:
            return
        try:
            import pynvml
        except ImportError:
            self.why_no_energy = "pynvml is not installed (pip install nvidia-ml-py)"
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except pynvml.NVMLError as error:
            self.why_no_energy = f"NVML: {error}"
            return
        self._nvml, self.why_no_energy = pynvml, None

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None where it cannot be read."""
        if self._nvml is None:
            return None
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def facts(self) -> dict[str, str]:
        """Driver and clocks of now, in nvidia-smi's words; empty where it is not there."""
        if not self._on:
            return {}
        names = ("driver_version", "clocks.sm", "clocks.mem", "power.limit")
        command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return {}
        values = [value.strip() for value in done.stdout.strip().split(",")]
        return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}
