"""Command-line inputs: which sources are found, where they go, and which conflicts are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from varsr_engine.errors import InvalidParamsError, OutputError, UnsupportedFormatError
from varsr_engine.imaging import ImageJob, alpha_safe, create_folders, find_images


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("in/f10.png", "in/f2.JPG", "in/f1.bmp", "in/notes.txt", "in/.hidden.png", "in/sub/g.webp", "in/sub/h.tif")
    for name in (*names, "in/.cache/x.png", "one.png", "photo"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(jobs: list[ImageJob]) -> list[tuple[str, str]]:
    return [(job.source.as_posix(), job.destination.as_posix()) for job in jobs]


def test_folder_in_natural_order(tree: Path) -> None:
    assert shown(find_images(["in"], "out")) == [
        ("in/f1.bmp", "out/f1.png"),
        ("in/f2.JPG", "out/f2.JPG"),
        ("in/f10.png", "out/f10.png"),
    ]


def test_recursive_mirrors_the_tree(tree: Path) -> None:
    jobs = shown(find_images(["in"], "out", recursive=True, suffix="_x4", ext="webp"))
    assert [d for _, d in jobs] == [
        "out/f1_x4.webp",
        "out/f2_x4.webp",
        "out/f10_x4.webp",
        "out/sub/g_x4.webp",
        "out/sub/h_x4.webp",
    ]


def test_single_files(tree: Path) -> None:
    assert shown(find_images(["one.png"], "big.jpg")) == [("one.png", "big.jpg")]
    assert shown(find_images(["one.png"], "out")) == [("one.png", "out/one.png")]
    assert shown(find_images(["one.png"], suffix="_x4")) == [("one.png", "one_x4.png")]
    assert shown(find_images(["in/f1.bmp"])) == [("in/f1.bmp", "in/f1.png")]
    assert shown(find_images(["photo"], "out")) == [("photo", "out/photo.png")]
    assert shown(find_images([tree / "one.png"], tree / "in")) == [(f"{tree}/one.png", f"{tree}/in/one.png")]


def test_patterns(tree: Path) -> None:
    assert shown(find_images(["in/f*"], "out")) == shown(find_images(["in"], "out"))
    jobs = shown(find_images(["in/**/*"], "out"))
    assert ("in/sub/g.webp", "out/sub/g.webp") in jobs and len(jobs) == 5
    assert shown(find_images(["*/sub/h.*"], "out")) == [("in/sub/h.tif", "out/in/sub/h.tif")]


def test_a_file_whose_name_looks_like_a_pattern(tree: Path) -> None:
    (tree / "a[1].png").touch()
    assert shown(find_images(["a[1].png"], "out")) == [("a[1].png", "out/a[1].png")]


def test_inputs_keep_their_order_and_repeat_once(tree: Path) -> None:
    jobs = shown(find_images(["one.png", "in/f2.JPG", "in", "./one.png"], "out"))
    assert [s for s, _ in jobs] == ["one.png", "in/f2.JPG", "in/f1.bmp", "in/f10.png"]


def test_an_output_folder_inside_the_input_is_not_read(tree: Path) -> None:
    (tree / "in/out").mkdir()
    (tree / "in/out/old.png").touch()
    jobs = find_images(["in"], "in/out", recursive=True)
    assert all("out" not in job.source.parts for job in jobs) and len(jobs) == 5


def test_results_of_an_earlier_run_are_not_read_again(tree: Path) -> None:
    (tree / "in/f10_x4.png").touch()
    for output in (None, "in"):
        jobs = shown(find_images(["in"], output, suffix="_x4", skip_existing=True))
        assert [s for s, _ in jobs] == ["in/f1.bmp", "in/f2.JPG"]
    with pytest.raises(InvalidParamsError, match=r"written over the input 'in/f10_x4\.png'"):
        find_images(["in/f10.png", "in/f10_x4.png"], suffix="_x4", overwrite=True)


def test_existing_destinations(tree: Path) -> None:
    (tree / "out").mkdir()
    (tree / "out/f10.png").touch()
    with pytest.raises(OutputError, match=r"out/f10\.png' exists already"):
        find_images(["in"], "out")
    assert len(find_images(["in"], "out", overwrite=True)) == 3
    assert len(find_images(["in"], "out", skip_existing=True)) == 2
    assert find_images(["in/f10.png"], "out", skip_existing=True) == []
    with pytest.raises(InvalidParamsError, match="exclude each other"):
        find_images(["in"], "out", skip_existing=True, overwrite=True)


def test_two_sources_for_one_destination(tree: Path) -> None:
    (tree / "in/f10.jpg").touch()
    with pytest.raises(InvalidParamsError, match=r"'in/f10\.jpg' and 'in/f10\.png' would both .* 'out/f10\.png'"):
        find_images(["in"], "out", ext="png")
    (tree / "other").mkdir()
    (tree / "other/f10.png").touch()
    with pytest.raises(InvalidParamsError, match=r"'in/f10\.png' and 'other/f10\.png'"):
        find_images(["in", "other"], "out")


def test_a_source_is_never_its_destination(tree: Path) -> None:
    for inputs, output in ((["in"], "in"), (["one.png"], None), (["one.png"], "./one.png"), (["one.png"], ".")):
        with pytest.raises(InvalidParamsError, match="written over the input"):
            find_images(inputs, output, overwrite=True)
    (tree / "link.png").symlink_to("one.png")
    with pytest.raises(InvalidParamsError, match="written over the input"):
        find_images(["one.png"], "link.png", overwrite=True)


def test_several_images_need_an_output_folder(tree: Path) -> None:
    for inputs in (["in"], ["one.png", "in/f1.bmp"], ["in/f*.png"]):
        with pytest.raises(InvalidParamsError, match="need an output folder"):
            find_images(inputs, "out.png")
    assert len(find_images(["in"], "out.v2")) == 3
    (tree / "dir.png").mkdir()
    assert len(find_images(["in"], "dir.png")) == 3


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "no inputs"),
        (["absent.png"], {}, "'absent.png' does not exist"),
        (["absent/*.png"], {}, "matches no image"),
        (["in/*.txt"], {}, "matches no image"),
        (["one.png"], {"suffix": "a/b"}, "suffix"),
    ],
)
def test_bad_inputs(tree: Path, inputs: list[str], options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        find_images(inputs, "out", **options)  # type: ignore[arg-type]


def test_empty_folder(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(InvalidParamsError, match="no images found in 'empty'"):
        find_images(["empty"], "out")


def test_extensions(tree: Path) -> None:
    for ext in ("png", ".png"):
        assert shown(find_images(["in/f2.JPG"], "out", ext=ext)) == [("in/f2.JPG", "out/f2.png")]
    with pytest.raises(UnsupportedFormatError, match="ext must be auto or one of"):
        find_images(["in"], "out", ext="bmp")
    with pytest.raises(UnsupportedFormatError, match=r"cannot write 'x\.bmp'"):
        find_images(["one.png"], "x.bmp")


def test_alpha_safe() -> None:
    assert alpha_safe(Path("out/a.jpg")) == Path("out/a.png")
    for name in ("a.png", "a.webp", "a.TIF"):
        assert alpha_safe(Path(name)) == Path(name)


def test_create_folders(tree: Path) -> None:
    jobs = find_images(["in"], "out/deep", recursive=True)
    create_folders(jobs)
    create_folders(jobs)
    assert (tree / "out/deep/sub").is_dir()
    with pytest.raises(OutputError, match="a file, not a folder"):
        create_folders([ImageJob(Path("one.png"), Path("photo/deep/one.png"))])
