"""The script that measures what FP8 costs, on the smallest network."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.forcing import forced_tokens
from benchmarks.fp8_cost import averaged, compare, golden_folder, samples, table
from varsr_engine.engine.engine import Engine


def test_a_row_of_the_table(tmp_path: Path) -> None:
    folder = golden_folder("tiny", tmp_path)
    plain = Engine.from_pretrained(folder, device="cpu", backend="torch")
    (sample,) = samples("tiny", plain)
    same = compare("tiny", "none", sample, plain)
    assert same.forced == same.free == [1.0] * 6 and same.logits_error == [0.0] * 6
    fp8 = Engine.from_pretrained(folder, device="cpu", backend="torch", quantization="fp8", fp8_steps="5")
    row = compare("tiny", "last step only", sample, fp8)
    assert row.logits_error[:5] == [0.0] * 5 and row.logits_error[5] > 0 and row.free[:5] == [1.0] * 5
    assert row.image_psnr < same.image_psnr
    lines = table(averaged([row])).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| tiny | golden | last step only | 100 100 100 100 100 ")


def test_forced_tokens_are_taken_and_left_again(tmp_path: Path) -> None:
    engine = Engine.from_pretrained(golden_folder("tiny", tmp_path), device="cpu")
    (sample,) = samples("tiny", engine)
    assert sample.exact.trace is not None
    zeros = [torch.zeros_like(tokens) for tokens in sample.exact.trace.tokens]
    with forced_tokens(engine, zeros) as chosen:
        forced = engine.generate(sample.lr, **sample.settings)
    assert torch.equal(forced.tokens, zeros[-1])
    assert torch.equal(chosen[0], sample.exact.trace.tokens[0]) and len(chosen) == len(zeros)
    assert torch.equal(engine.generate(sample.lr, **sample.settings).tokens, sample.exact.tokens)
