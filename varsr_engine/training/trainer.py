"""The training loop of both stages: optimiser, schedule, averaged weights, checkpoints, progress."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from varsr_engine.atomic import atomic_writer
from varsr_engine.errors import CheckpointMismatchError, InvalidParamsError, OutputError
from varsr_engine.training.config import OptimizerConfig
from varsr_engine.training.dataset import CropDataset, loader
from varsr_engine.training.grid import save_grid
from varsr_engine.training.muon import Muon
from varsr_engine.training.progress import Progress
from varsr_engine.training.stage import Batch, Stage

TABLES = re.compile(r"\.(embedding|class_emb|lvl_embed|word_embed|head|scale_mul_1H11)(\.|$)")
SCALE_FREE = re.compile(r"(^vae\.(encoder|decoder)\.(.*\.)?(conv_in|nin_shortcut)|\.con_embedding\..*)\.weight$")
STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Linear warm-up, then a cosine from the full rate to min_ratio of it at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (config.min_ratio + (1 - config.min_ratio) * cosine)


def parameter_groups(stage: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels of hidden layers are for Muon, and decay; tables, the head, biases and gains are not.

    The autoencoder's stems and shortcuts, which no residual block skips, and the condition encoder keep their norms.
    Before a normalisation it would only grow (measured: activations of 300 behind the decoder's last upsampling), and
    drown the blocks and the weaker axes of colour.
    """
    trained = [(name, p) for name, p in stage.named_parameters() if p.requires_grad]
    hidden = {name: p for name, p in trained if p.ndim in (2, 4) and not TABLES.search(name)}
    kept = {name: p for name, p in hidden.items() if SCALE_FREE.search(name)}
    return [
        {"params": list(kept.values()), "weight_decay": 0.0, "muon": True, "keep_norm": True},
        {"params": [p for n, p in hidden.items() if n not in kept], "weight_decay": weight_decay, "muon": True},
        {"params": [p for name, p in trained if name not in hidden], "weight_decay": 0.0},
    ]


class Trainer:
    """Trains a stage on a dataset in `folder`, which holds the state, the log and the previews.

    The batch of a step and its random numbers depend on the seed and the step alone, so that a resumed run goes on as
    if it had not been interrupted. Under torchrun each process takes its share of every batch.
    """

    def __init__(
        self,
        stage: Stage,
        dataset: CropDataset,
        config: OptimizerConfig,
        folder: Path,
        workers: int = 0,
        *,
        tensorboard: bool = False,
    ) -> None:
        self.config, self.folder, self.dataset, self.workers = config, folder, dataset, workers
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if config.batch_size % self.world != 0:
            raise InvalidParamsError(
                f"optimizer.batch_size must be a multiple of the {self.world} processes, got {config.batch_size}"
            )
        self.stage = stage.to(self.device)
        self.stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = {n: p.detach().clone() for n, p in stage.named_parameters() if p.requires_grad}
        groups = parameter_groups(stage, config.weight_decay)
        betas = (config.beta1, config.beta2)
        self.optimizer = Muon(groups, lr=config.learning_rate, betas=betas, momentum=config.momentum)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.autocast == "fp16")
        self._curves = summary_writer(folder) if tensorboard and self.rank == 0 else None
        self.step = 0
        self._run: nn.Module = self.stage
        if self.world > 1:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            ids = [local] if self.device.type == "cuda" else None
            self._run = DistributedDataParallel(self.stage, device_ids=ids, find_unused_parameters=True)

    # --- the loop ----------------------------------------------------------------------------------------

    def train(self, until: int | None = None, *, quiet: bool = False) -> dict[str, float]:
        """Train to step `until` (the config's last if None); returns the last numbers logged.

        The state is saved every save_every steps, at the end, and when Ctrl-C interrupts.
        """
        end = self.config.steps if until is None else min(until, self.config.steps)
        numbers: dict[str, float] = {}
        sums: dict[str, float] = {}
        counted, since = 0, time.perf_counter()
        with Progress(self.step, end, quiet=quiet or self.rank > 0) as progress:
            try:
                for batch in self._batches(end):
                    numbers = self._train_step(batch)
                    self.step += 1
                    counted += 1
                    for name, value in numbers.items():
                        sums[name] = sums.get(name, 0.0) + value
                    rate = counted * self.config.batch_size / (time.perf_counter() - since)
                    progress.update(self.step, numbers, rate)
                    if self.step % self.config.log_every == 0 or self.step == end:
                        self._log({n: v / counted for n, v in sums.items()}, rate)
                        sums, counted, since = {}, 0, time.perf_counter()
                    if self.step % self.config.preview_every == 0 or self.step == end:
                        self._preview(batch)
                    if self.step % self.config.save_every == 0 and self.step != end:
                        self.save()
            finally:
                self.save()
        return numbers

    def _batches(self, end: int) -> Iterator[Batch]:
        share = self.config.batch_size // self.world
        batches = loader(self.dataset, share, self.step, self.workers, rank=self.rank, ranks=self.world)
        for _, batch in zip(range(self.step, end), batches, strict=False):
            moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            yield {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in moved.items()}

    def _train_step(self, batch: Batch) -> dict[str, float]:
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * self.world + self.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self._run.train()
        with self._autocast():
            loss, numbers = self._run(batch, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        numbers["grad_norm"] = float(nn.utils.clip_grad_norm_(trained, self.config.clip_norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.stage.after_step(self.step)
        self._average()
        return numbers

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.config.autocast])

    @torch.no_grad()
    def _average(self) -> None:
        """Moving average of the weights; young averages forget faster."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        names = dict(self.stage.named_parameters())
        torch._foreach_lerp_(list(self.averaged.values()), [names[n].detach() for n in self.averaged], 1 - decay)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context the stage has the averaged weights."""
        own = {n: p.detach().clone() for n, p in self.stage.named_parameters() if n in self.averaged}
        self.stage.load_state_dict(self.averaged, strict=False)
        try:
            yield
        finally:
            self.stage.load_state_dict(own, strict=False)

    # --- what is written ---------------------------------------------------------------------------------

    def _log(self, means: dict[str, float], rate: float) -> None:
        if self.rank > 0:
            return
        numbers = {**means, "lr": learning_rate(self.config, self.step - 1), "images_per_s": rate}
        entry = {"step": self.step, **numbers, **self.stage.report()}
        if self._curves is not None:
            for name, value in numbers.items():
                self._curves.add_scalar(name, value, self.step)
        with open(self.folder / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in entry.items()}) + "\n")

    @torch.no_grad()
    def _preview(self, batch: Batch) -> None:
        if self.rank > 0:
            return
        self.stage.eval()
        with self.averaged_weights():
            columns = self.stage.preview({name: value[:4] for name, value in batch.items()})
        save_grid(self.folder / f"preview-{self.step:06d}.png", columns)

    def save(self) -> None:
        """Write the whole state, atomically."""
        if self.rank > 0:
            return
        state = {
            "step": self.step,
            "stage": type(self.stage).__name__,
            "weights": dict(self.stage.state_dict()),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        with atomic_writer(self.folder / STATE_FILE) as file:
            torch.save(state, file)

    def resume(self) -> None:
        """Go on from the state in the folder. Raises if there is none or if it is of another config."""
        path = self.folder / STATE_FILE
        if not path.is_file():
            raise InvalidParamsError(f"nothing to resume: {str(path)!r} does not exist; leave out --resume")
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["stage"] != type(self.stage).__name__:
            raise CheckpointMismatchError(f"{path.name}: is of {state['stage']}, expected {type(self.stage).__name__}")
        try:
            self.stage.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise CheckpointMismatchError(f"{path.name}: does not fit this config: {error}") from None
        self.averaged = {n: t.clone() for n, t in state["averaged"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def summary_writer(folder: Path) -> Any:
    """TensorBoard's writer into the run's folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InvalidParamsError("--tensorboard needs: pip install 'varsr-engine[train]'") from None
    return SummaryWriter(str(folder / "tensorboard"))


def prepare_folder(folder: Path, *, resume: bool) -> None:
    """Create the output folder; an earlier run's state is never overwritten without --resume."""
    if (folder / STATE_FILE).exists() and not resume:
        raise OutputError(f"{str(folder)!r} holds an earlier run: pass --resume to go on, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
