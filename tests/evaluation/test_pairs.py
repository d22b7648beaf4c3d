"""Every layout of test sets, what belongs together, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varsr_engine.errors import InvalidParamsError
from varsr_engine.evaluation.pairs import files_by_pair, find_pairs, match_by_stem


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(root: Path) -> list[tuple[str, str, str, str | None]]:
    def below(path: Path | None) -> str | None:
        return None if path is None else str(path.relative_to(root))

    return [(p.set_name, p.name, str(below(p.low)), below(p.truth)) for p in find_pairs(root).pairs]


@pytest.mark.parametrize(
    ("low", "truth"), [("lq", "gt"), ("LR", "HR"), ("LQ", "GT"), ("test_LR", "test_HR"), ("lq", "HR")]
)
def test_paired_folders(tmp_path: Path, low: str, truth: str) -> None:
    """DIV2K-Val: lq, gt. RealSR and DRealSR: test_LR, test_HR, or LR, HR."""
    root = touch(tmp_path / "set", f"{low}/a10.png", f"{low}/a9.png", f"{truth}/a9.png", f"{truth}/a10.jpg")
    assert found(root) == [
        ("set", "a9", f"{low}/a9.png", f"{truth}/a9.png"),
        ("set", "a10", f"{low}/a10.png", f"{truth}/a10.jpg"),
    ]
    assert find_pairs(root).warnings == []


def test_sets_in_folders(tmp_path: Path) -> None:
    """StableSR-TestSets, with flat and unpaired sets beside the others."""
    root = touch(
        tmp_path,
        "DIV2K_V2_val/lq/1.png",
        "DIV2K_V2_val/gt/1.png",
        "RealSRVal_crop128/test_LR/b.png",
        "RealSRVal_crop128/test_HR/b.png",
        "more/RealLR200/c.png",
        "RealLQ250/lq/d.webp",
        ".hidden/lq/e.png",
        "notes.txt",
    )
    assert found(root) == [
        ("DIV2K_V2_val", "1", "DIV2K_V2_val/lq/1.png", "DIV2K_V2_val/gt/1.png"),
        ("RealLQ250", "d", "RealLQ250/lq/d.webp", None),
        ("RealSRVal_crop128", "b", "RealSRVal_crop128/test_LR/b.png", "RealSRVal_crop128/test_HR/b.png"),
        ("more/RealLR200", "c", "more/RealLR200/c.png", None),
    ]


def test_flat(tmp_path: Path) -> None:
    """RealLR200: pictures alone."""
    root = touch(tmp_path / "RealLR200", "x2.png", "x10.jpeg", "x1.bmp", ".x3.png", "readme.md")
    assert [pair[1] for pair in found(root)] == ["x1", "x2", "x10"]
    assert all(pair[0] == "RealLR200" and pair[3] is None for pair in found(root))


def test_names_with_a_role(tmp_path: Path) -> None:
    root = touch(tmp_path, "lq/0801x4.png", "gt/0801.png", "lq/Canon_1_LR4.png", "gt/Canon_1_HR.png")
    assert [(pair[1], pair[3]) for pair in found(root)] == [
        ("Canon_1_LR4", "gt/Canon_1_HR.png"),
        ("0801x4", "gt/0801.png"),
    ]


def test_what_has_no_partner_is_left_out_and_named(tmp_path: Path) -> None:
    root = touch(tmp_path, "lq/a.png", "lq/b.png", "gt/b.png", "gt/c.png", "lq/b.jpg")
    result = find_pairs(root)
    assert [pair.name for pair in result.pairs] == ["b"]
    assert [w.split("/")[-1] for w in result.warnings] == [
        "a.png' has no ground truth of its name: left out",
        "b.png' has no ground truth of its name: left out",
        "c.png' has no low-resolution picture of its name: left out",
    ]
    flat = find_pairs(touch(tmp_path / "flat", "a.png", "a.jpg"))
    assert len(flat.pairs) == 1 and "has the name of another file" in flat.warnings[0]


def test_folders_that_are_no_test_sets(tmp_path: Path) -> None:
    with pytest.raises(InvalidParamsError, match="is not a folder"):
        find_pairs(tmp_path / "absent")
    with pytest.raises(InvalidParamsError, match=r"no pictures in .* expected lq/"):
        find_pairs(touch(tmp_path / "empty", "a.txt"))
    with pytest.raises(InvalidParamsError, match=r"has gt/ and no lq/"):
        find_pairs(touch(tmp_path / "truths", "gt/a.png"))
    with pytest.raises(InvalidParamsError, match=r"has LR/ and lq/: which one counts"):
        find_pairs(touch(tmp_path / "both", "lq/a.png", "LR/a.png"))


def test_links_in_a_ring_end(tmp_path: Path) -> None:
    root = touch(tmp_path / "sets", "a/lq/1.png")
    (root / "ring").symlink_to(root, target_is_directory=True)
    assert len(find_pairs(root).pairs) == 1


def test_results_of_pairs(tmp_path: Path) -> None:
    one = find_pairs(touch(tmp_path / "one", "lq/a.png", "lq/b.png", "gt/a.png", "gt/b.png"))
    outputs = touch(tmp_path / "outputs", "a_x4.png", "c.png")
    files, warnings = files_by_pair(one, outputs, "outputs")
    assert {pair.name: path.name for pair, path in files.items()} == {"a": "a_x4.png"}
    assert [w.split("/")[-1] for w in warnings] == ["c.png' belongs to no pair", "b.png'"]
    several = find_pairs(touch(tmp_path / "several", "s/lq/a.png", "t/lq/a.png"))
    files, warnings = files_by_pair(several, touch(tmp_path / "results", "s/a.png", "a.png"), "outputs")
    assert [pair.set_name for pair in files] == ["s"] and "no folder" in warnings[0]
    with pytest.raises(InvalidParamsError, match=r"outputs: .* is not a folder"):
        files_by_pair(one, tmp_path / "absent", "outputs")


STEMS = st.builds(
    "".join,
    st.tuples(st.sampled_from(["a", "b1", "b2", "c_x"]), st.sampled_from(["", "_LR", "x4", "_HR", "-gt", "_lr4"])),
)
FILES = st.lists(st.builds("{}{}".format, STEMS, st.sampled_from([".png", ".jpg"])), unique=True, max_size=12)


@given(FILES, FILES, st.randoms(use_true_random=False))
def test_matching_is_a_partition_that_order_does_not_change(first: list[str], second: list[str], random) -> None:  # type: ignore[no-untyped-def]
    lows, truths = [Path("lq", name) for name in first], [Path("gt", name) for name in second]
    result = match_by_stem(lows, truths)
    matched_lows, matched_truths = ([pair[i] for pair in result.matched] for i in (0, 1))
    assert sorted(matched_lows + result.first_left) == sorted(lows)
    assert sorted(matched_truths + result.second_left) == sorted(truths)
    both = {path.stem for path in lows} & {path.stem for path in truths}
    assert both <= {low.stem for low, truth in result.matched if low.stem == truth.stem}
    for low, truth in result.matched:  # nothing is paired by chance
        assert low.stem == truth.stem or low.stem[0] == truth.stem[0]
    shuffled = random.sample(lows, len(lows)), random.sample(truths, len(truths))
    assert match_by_stem(*shuffled) == result


@given(FILES)
def test_a_folder_matches_itself(names: list[str]) -> None:
    paths = [Path("lq", name) for name in names]
    result = match_by_stem(paths, paths)
    assert all(low == truth for low, truth in result.matched)
    assert {low.stem for low, _ in result.matched} == {path.stem for path in paths}
