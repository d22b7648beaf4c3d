"""The comparison with diffusion models: its peers, gates, order of turns and documents, and its smoke run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="the peers are made of diffusers' classes: pip install 'varsr-engine[bench]'")

from benchmarks import compare_diffusion
from benchmarks.diffusion import bench, clocks, costs, docs, gates, results, swin, tables, tiles
from benchmarks.diffusion.contestants import Contestant, PeerContestant
from benchmarks.diffusion.groups import PARTS, Group, groups_of
from benchmarks.diffusion.methods import Pictures, resized
from benchmarks.diffusion.peers import PEERS
from benchmarks.diffusion.reported import REPORTED
from benchmarks.diffusion.settings import FEW, MANY, SOME, Settings
from benchmarks.diffusion.sizes import PUBLISHED, SMALL
from benchmarks.gpu_suite.work import Clock

CPU = torch.device("cpu")
SMOKE = Settings.small()

# --- peers -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_peer_has_the_published_size() -> None:
    counted, wrong = costs.check()
    assert wrong == []
    assert list(counted) == list(PEERS)
    kept = results.counts()
    assert kept is not None and counted == kept["peers"], "run python -m benchmarks.compare_diffusion --check"


def test_the_committed_counts_are_those_of_the_table() -> None:
    kept = results.counts()
    assert kept is not None
    for name, peer in PEERS.items():
        assert costs.differences(peer, costs.Count(**kept["peers"][name])) == []


def test_a_peer_of_another_size_is_named() -> None:
    found = costs.Count(900_000_000, 2217.7e9)
    (sentence,) = costs.differences(PEERS["osediff"], found)
    assert "osediff: parameters must be 949.56" in sentence and "900.00" in sentence


@pytest.mark.slow
def test_steps_are_counted_from_two_calls() -> None:
    from dataclasses import replace

    peer = PEERS["resshift4"]
    four = replace(SMALL, most_steps=4)
    with torch.device("meta"):
        method = peer.build(four)
    assert costs.count(peer, four).macs == costs.flops_of(method, SMALL.side) / 2


def test_every_peer_says_what_its_emulation_leaves_out() -> None:
    assert all(peer.left_out.endswith(".") for peer in PEERS.values())


# --- Swin blocks -------------------------------------------------------------------------------------------------


def test_windows_go_and_come_back() -> None:
    x = torch.arange(2 * 8 * 8 * 3.0).view(2, 8, 8, 3)
    windows = swin.windows_of(x, 4)
    assert windows.shape == (8, 16, 3)
    assert torch.equal(windows[1], x[0, :4, 4:].reshape(16, 3))
    assert torch.equal(swin.map_of(windows, 4, 8, 8), x)


def test_relative_positions() -> None:
    index = swin.relative_index(3)
    assert index.shape == (9, 9) and index.unique().numel() == 25
    assert index.diagonal().unique().tolist() == [12]  # no offset: the middle of the table
    assert index[0, 1] == index[4, 5] == 11 and index[0, 8] == 0


def test_shifted_windows_do_not_see_across_the_border() -> None:
    """Of a map of two windows a side only the first of them sees all of itself."""
    visible = swin.shift_mask(8, 4, 2)
    assert visible.shape == (4, 16, 16)
    assert [round(window.float().mean().item(), 4) for window in visible] == [1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("shift", [0, 2])
def test_a_cell_reaches_its_window_and_no_further(shift: int) -> None:
    torch.manual_seed(0)
    block = swin.SwinBlock(16, heads=2, side=8, window=4, shift=shift).eval()
    x = torch.randn(1, 8, 8, 16)
    y = x.clone()
    y[0, 3, 3] = torch.randn(16)  # not a constant more: the normalisation takes that away
    changed = (block(x) != block(y)).any(-1)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[shift : shift + 4, shift : shift + 4] = True
    assert torch.equal(changed, expected)


def test_swin_shapes_and_errors() -> None:
    net = swin.SwinUNet(side=16, width=32, embed=32, heads=2, window=2)
    latent = torch.randn(2, 3, 16, 16)
    assert net(latent, torch.tensor([3]), latent).shape == latent.shape
    with pytest.raises(ValueError, match=r"side must be a multiple of window = 4, got 6"):
        swin.SwinBlock(16, 2, side=6, window=4, shift=0)
    with pytest.raises(ValueError, match=r"with \(H, W\) = \(8, 8\), got \(4, 8\)"):
        swin.SwinBlock(16, 2, side=8, window=4, shift=2)(torch.zeros(1, 4, 8, 16))


# --- turns -------------------------------------------------------------------------------------------------------


class Noted:
    """A runner that notes its turns and takes the times it is given."""

    how, calls = "noted", 1

    def __init__(self, name: str, order: list[str], seconds: float) -> None:
        self._name, self._order, self._seconds = name, order, seconds

    def turn(self) -> Any:
        self._order.append(self._name)
        return lambda: self._seconds


def test_turns_rotate_and_stop_where_a_contestant_has_enough() -> None:
    order: list[str] = []
    runners = {name: Noted(name, order, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    seen: list[int] = []
    seconds = clocks.interleave(
        runners, {"a": 4, "b": 2, "c": 4}, CPU, Clock(60), lambda s: seen.append(sum(map(len, s.values())))
    )
    assert "".join(order) == "abc" + "bca" + "ca" + "ac"
    assert seconds == {"a": [1.0] * 4, "b": [2.0] * 2, "c": [3.0] * 4}
    assert seen == [3, 6, 8, 10]


def test_a_limit_ends_the_rounds_and_keeps_them() -> None:
    order: list[str] = []
    seconds = clocks.interleave({"a": Noted("a", order, 1.0)}, {"a": 9}, CPU, Clock(-1.0))
    assert seconds == {"a": [1.0]}


def test_drift_is_that_of_the_median_contestant() -> None:
    steady, slower = [1.0] * 6, [1.0, 1.0, 1.0, 1.0, 1.2, 1.2]
    assert clocks.drift({"a": steady, "b": slower, "c": slower}) == pytest.approx(0.2)
    assert clocks.drift({"a": [1.0, 2.0]}) is None
    assert clocks.drift({}) is None


def test_rounds_and_levels() -> None:
    full = Settings()
    assert [full.rounds(steps) for steps in (1, 4, 15, 50, 200)] == [MANY, SOME, SOME, FEW, FEW]
    assert FEW >= 3
    for part in PARTS:
        levels = [group.level for group in groups_of(part, full)]
        assert levels == sorted(levels) and levels, part
        names = [group.name for group in groups_of(part, full)]
        assert len(set(names)) == len(names), part
    assert Settings.from_json(SMOKE.to_json()) == SMOKE


# --- gates -------------------------------------------------------------------------------------------------------


def planted(call: Any, seeded: bool = False, flops: float = 1.0) -> Contestant:
    return Contestant("planted", call, flops, seeded=seeded)


def verdict(contestant: Contestant, tmp_path: Path, peak: float | None = None) -> dict[str, Any]:
    """The row of a contestant that goes through a group by itself."""

    class Alone(bench.Bench):
        def builders(self, group: Group) -> Any:
            return {contestant.name: lambda: contestant}

        def peak(self, contestant: Contestant) -> float | None:
            return peak

    record = results.Results(tmp_path / "r.json")
    record.content = {"smoke": True, "commit": "", "date": "", "machine": {}, "parts": {}}
    data = Alone(SMOKE, record, "one-step", Clock(60)).run_group(Group((), 0, "model"), Clock(60))
    found: dict[str, Any] = data["rows"]["planted"]
    return found


def nan_in_a_corner(pictures: Pictures, seed: int) -> Tensor:
    out = pictures.resized.clone()
    out[0, 0, 0, 0] = float("nan")
    return out


def noisy(pictures: Pictures, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pictures.resized + torch.rand(pictures.resized.shape, generator=generator)


@pytest.mark.parametrize(
    ("call", "seeded", "fault"),
    [
        (nan_in_a_corner, False, "NaN or infinity"),
        (lambda pictures, seed: torch.full_like(pictures.resized, 0.5), False, "constant"),
        (lambda pictures, seed: torch.linspace(0, 1, 64).expand(1, 3, 64, 64), False, "another input"),
        (lambda pictures, seed: pictures.resized, True, "another seed"),
        (lambda pictures, seed: pictures.low, False, r"must be \(1, 3, 64, 64\), got \(1, 3, 16, 16\)"),
    ],
)
def test_a_planted_fault_gets_no_time(call: Any, seeded: bool, fault: str, tmp_path: Path) -> None:
    row = verdict(planted(call, seeded), tmp_path)
    assert "seconds" not in row
    with pytest.raises(AssertionError, match=fault):
        assert row["faults"] == []


def test_too_fast_a_contestant_fails(tmp_path: Path) -> None:
    row = verdict(planted(noisy, seeded=True, flops=1e15), tmp_path, peak=1e12)
    assert len(row["faults"]) == 1 and "is more than the 1.0 of a large product" in row["faults"][0]
    honest = verdict(planted(noisy, seeded=True, flops=1e3), tmp_path, peak=1e12)
    assert honest["faults"] == [] and len(honest["seconds"]) == SMOKE.fewer_rounds


def test_an_error_is_its_contestants_alone(tmp_path: Path) -> None:
    def broken(pictures: Pictures, seed: int) -> Tensor:
        raise RuntimeError("planted")

    assert verdict(planted(broken), tmp_path) == {"failed": "RuntimeError: planted"}


def test_another_size_than_counted_is_a_fault() -> None:
    assert gates.size_faults(5, None) == gates.size_faults(5, 5) == []
    assert gates.size_faults(5, 6) == ["5 parameters, where 6 were counted: run --check"]
    assert gates.speed_faults(1.0, 0.0, None) == ["a call must take time, got 0.0 s"]


# --- tiles -------------------------------------------------------------------------------------------------------


def test_tiles_of_the_published_comparison() -> None:
    assert tiles.tiles_of(Settings()) == 25
    assert tiles.origins(2048, PUBLISHED.side, 128)[-1] == (1536, 1536)


def test_tiles_of_the_same_picture_make_it_again() -> None:
    low = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = Pictures(low, resized(low))
    seen: list[int] = []

    def same(part: Pictures, seed: int) -> Tensor:
        seen.append(len(part.low))
        assert part.low.shape[-1] * 4 == part.resized.shape[-1] == 64
        return part.resized

    out = tiles.by_tiles(same, tile=64, overlap=16, batch=4)(pictures, 0)
    assert torch.allclose(out, pictures.resized, atol=1e-6)
    assert seen == [4, 4, 4, 4, 2]


# --- weights -----------------------------------------------------------------------------------------------------


def test_real_weights_in_the_place_of_random_ones(tmp_path: Path) -> None:
    from dataclasses import replace

    from safetensors.torch import save_file

    from benchmarks.diffusion.weights import PROMPTS

    torch.manual_seed(5)
    source = PEERS["osediff"].build(SMALL)
    for name in ("unet", "vae"):
        getattr(source, name).save_pretrained(tmp_path / name)
    settings = replace(SMOKE, weights=(f"osediff={tmp_path}",), seed=7)
    with pytest.raises(FileNotFoundError, match=r"prompt embeddings prompt \(1, 5, 16\)"):
        PeerContestant(PEERS["osediff"], settings)
    save_file({"prompt": source.prompt}, tmp_path / PROMPTS)
    pictures = clocks.on_device(clocks.random_pictures(1, 16, 0, False), CPU)
    with torch.no_grad():
        expected = source.eval()(pictures)
        loaded = PeerContestant(PEERS["osediff"], settings)
        error = (loaded.at(0).call(pictures, 1) - expected).abs().max()
        random = PeerContestant(PEERS["osediff"], SMOKE).at(0).call(pictures, 1)
    assert error < 1e-5 < 1e-3 < (random - expected).abs().max()
    assert loaded.facts["weights"] == "real"


def test_the_file_that_real_esrgan_publishes(tmp_path: Path) -> None:
    """Its names, under the key of its averaged weights; what is missing or is another network is named."""
    from dataclasses import replace

    from benchmarks.diffusion.rrdb import own_name

    path = tmp_path / "RealESRGAN.pth"
    settings = replace(SMOKE, weights=(f"rrdb={path}",), seed=7)
    with pytest.raises(FileNotFoundError, match=r"such as RealESRGAN_x4plus\.pth; it is not there"):
        PeerContestant(PEERS["rrdb"], settings)
    net: Any = PEERS["rrdb"].build(settings.sizes).net
    blocks = len(net.body) - 1
    convs = [(i, j, k) for i in range(blocks) for j in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    published = [f"body.{i}.rdb{j}.conv{k}" for i, j, k in convs]
    published += ["conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    names = [f"{name}.{part}" for name in published for part in ("weight", "bias")]
    own = {name: own_name(name, blocks) for name in names}
    assert sorted(own.values()) == sorted(net.state_dict())
    tensors = {name: net.state_dict()[own[name]] for name in names}
    torch.save({"params_ema": tensors}, path)
    loaded = PeerContestant(PEERS["rrdb"], settings)
    x = torch.rand(1, 3, 8, 8)
    assert loaded.facts["weights"] == "real"
    assert torch.equal(loaded._method.net.to("cpu", torch.float32)(x), net.eval()(x))
    torch.save({"params_ema": {name: tensors[name] for name in names[2:]}}, path)
    with pytest.raises(ValueError, match=f"is not RRDBNet of {blocks} blocks"):
        PeerContestant(PEERS["rrdb"], settings)


def test_weights_that_no_network_here_fits(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(
        ValueError, match="seesr has no published weights for the networks here; these have: rrdb, osediff, tsdsr"
    ):
        PeerContestant(PEERS["seesr"], replace(SMOKE, weights=(f"seesr={tmp_path}",)))
    with pytest.raises(FileNotFoundError, match="vae"):
        PeerContestant(PEERS["osediff"], replace(SMOKE, weights=(f"osediff={tmp_path}",)))


def test_quality_of_what_has_real_weights(tmp_path: Path) -> None:
    from dataclasses import replace

    from PIL import Image

    from benchmarks.diffusion.quality import measure

    for folder, side in (("lq", 16), ("gt", 64)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            Image.effect_noise((side, side), 50).convert("RGB").save(tmp_path / folder / f"{name}.png")
    Image.new("RGB", (17, 17)).save(tmp_path / "lq" / "b.png")
    found = measure(replace(SMOKE, model=str(varsr_file(tmp_path / "model.safetensors"))), tmp_path)
    assert found["pairs"] == 1 and list(found["means"]) == ["bicubic", "engine fp32"]
    assert found["left_out"] == ["b: expected 16 x 16 pixels and a truth 4 times as large"]
    assert all(5 < mean["psnr_y"] < 30 and -1 < mean["ssim_y"] < 1 for mean in found["means"].values())
    text = tables.quality_table(found, smoke=False)
    assert "| bicubic | " in text and "- left out: b: " in text
    assert "PSNR" not in tables.quality_table(found, smoke=True)


def varsr_file(path: Path) -> Path:
    """A small VARSR with random weights, on the disk."""
    from benchmarks.diffusion.contestants import varsr_checkpoint
    from varsr_engine.checkpoint import save_model

    checkpoint = varsr_checkpoint(SMOKE)
    read = checkpoint.open()
    tensors = {name: read(name) for name in checkpoint.shapes}
    return save_model(path, checkpoint.config, tensors, dtype=torch.float32)


# --- documents ---------------------------------------------------------------------------------------------------


def row(seconds: list[float], **changes: Any) -> dict[str, Any]:
    facts = {"first_call_s": 2.0, "weights_bytes": 2_000_000_000, "activation_bytes": None, "how": "eager"}
    return {"faults": [], "seconds": seconds, "flops": 4e12, "steps": 1, "short": False, **facts, **changes}


def content() -> dict[str, Any]:
    """A result of two groups, as a GPU might give it."""
    rows = {
        "osediff": row([0.04, 0.05, 0.06], left_out="The tagger.", joules=12.5),
        "engine fp16": row([0.025, 0.025, 0.025]),
        "engine fp8": {"not_run": "fp8 needs | another GPU"},
        "adcsr": row([0.001], faults=["4000.0 TFLOP/s is more than the 800.0 of a large product: not all of it ran"]),
    }
    group = {"level": 0, "clock": "model", "batch": 1, "side": 512, "rows": rows, "drift": 0.08, "drifted": True}
    part = {"status": "cut", "running": "L1", "groups": {"L0": group}, "peak_flop_per_s": {"fp16": 8e14}}
    machine = {"processor": "NVIDIA H200", "cuda": "13.0", "torch": "2.13.0", "diffusers": "0.42.1", "triton": "3.7"}
    return {
        **{"benchmark": "diffusion", "format": 1, "smoke": False, "commit": "abc", "date": "2026-12-01"},
        **{"time": "10:00:00", "machine": machine, "parts": {"one-step": part}},
    }


def test_the_table_of_a_result() -> None:
    text = tables.table(content())
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    cells = [cell.strip() for cell in lines["osediff"].strip("|").split("|")]
    assert cells[1:8] == ["50.00 (40.00 to 60.00)", "3", "5.24", "2.00", "80.0", "10%", "2.00"]
    assert cells[8:] == ["2.00", "", "12.50", "eager", "The tagger."]
    assert "| 25.00 (25.00 to 25.00) | 3 | 10.49 | 1.00 |" in lines["engine fp16"]
    assert "not run: fp8 needs / another GPU" in lines["engine fp8"]
    assert "FAIL: 4000.0 TFLOP/s" in lines["adcsr"] and "1.00" not in lines["adcsr"]
    assert "+8.0%" in text and "Not complete (cut, in: L1)" in text
    (fault,) = results.faults(content())
    assert fault.startswith("one-step, L0, adcsr: 4000.0 TFLOP/s")


def test_a_smoke_result_has_no_times_and_is_in_no_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = {**content(), "smoke": True}
    assert "50.00" not in tables.page(smoke) and "measures nothing" in tables.page(smoke)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    (tmp_path / "smoke.json").write_text(json.dumps(smoke))
    assert results.newest() is None
    (tmp_path / "real.json").write_text(json.dumps(content()))
    assert results.newest() == content()


def test_a_killed_part_is_written_as_far_as_it_came() -> None:
    unfinished = content()
    rows = unfinished["parts"]["one-step"]["groups"]["L0"]["rows"]
    rows["osediff"].pop("short")
    rows["s3diff"] = {"faults": [], "how": "eager", "flops": 1.0}
    text = tables.page(unfinished)
    assert "50.00 (40.00 to 60.00), short" in text and "| s3diff | no time was left |" in text


def test_the_page_is_made_from_what_is_committed() -> None:
    assert docs.PAGE.read_text() == docs.document(), "run python -m benchmarks.compare_diffusion --docs"


def test_a_measured_peak_gives_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "newest", content)
    text = docs.document()
    assert "floor, ms" in text and "800 TFLOP/s" in text and "NVIDIA H200" in text
    counted = results.counts()
    assert counted is not None
    assert f"| {2e3 * counted['peers']['osediff']['macs'] / 8e14:.2f} |" in text


def test_what_authors_report_stands_by_itself() -> None:
    section = docs.document().split("## As reported by authors")[1]
    for source, hardware, times in REPORTED:
        assert all(f"| {source} | {hardware} | {method} | {value:g} |" in section for method, value in times.items())


# --- the command -------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"a part must be one of one-step, .*, got twostep"):
        compare_diffusion.main(["--smoke", "--part", "twostep", "--out", str(tmp_path)])
    for given in (["--peers", "sr3"], ["--weights", "sr3=folder"]):
        with pytest.raises(SystemExit, match=r"a peer must be one of bicubic, .*, got sr3"):
            compare_diffusion.main(["--smoke", *given, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--weights must be PEER=FOLDER, got 'osediff='"):
        compare_diffusion.main(["--smoke", "--weights", "osediff=", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--pairs asks for real weights"):
        compare_diffusion.main(["--smoke", "--pairs", "testset", "--out", str(tmp_path)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_times_ask_for_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        compare_diffusion.main(["--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_an_overrun_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that hangs is killed; its record says so and the file still holds the others."""
    monkeypatch.setattr(compare_diffusion, "GRACE", 0.2)
    sleeper = tmp_path / "sleep"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(compare_diffusion.sys, "executable", str(sleeper))
    begun = results.Results.start(tmp_path, True, "abc")
    begun.part("batches")["status"] = "ok"
    begun.write()
    start = time.monotonic()
    compare_diffusion.run_apart("tiles", "{}", begun.path, 0.2, "")
    assert time.monotonic() - start < 20
    parts = json.loads(begun.path.read_text())["parts"]
    assert parts["batches"]["status"] == "ok"
    assert parts["tiles"]["status"] == "cut" and "stopped after" in parts["tiles"]["error"]


@pytest.mark.slow
def test_a_smoke_run_from_end_to_end(tmp_path: Path) -> None:
    assert compare_diffusion.main(["--smoke", "--out", str(tmp_path), "--commit", "abc"]) == 0
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["smoke"] is True and path.name.startswith("smoke-")
    ran = [part for part in PARTS if groups_of(part, SMOKE)]
    assert list(result["parts"]) == ran
    seen = set()
    for part, record in result["parts"].items():
        assert record["status"] == "ok", (part, record)
        assert list(record["groups"]) == [group.name for group in groups_of(part, SMOKE)]
        for group in record["groups"].values():
            for name, found in group["rows"].items():
                assert found["faults"] == [] and len(found["seconds"]) == SMOKE.fewer_rounds, (part, name, found)
                seen.add(name.split(",")[0])
    assert set(PEERS) | {"VARSR", "engine fp32"} <= seen
    assert "no times" in path.with_suffix(".md").read_text()
