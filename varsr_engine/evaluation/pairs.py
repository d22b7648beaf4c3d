"""Folders of test sets → pairs of a low-resolution picture and the truth.

set/{lq,LR,LQ,test_LR} + set/{gt,HR,GT,test_HR}     DIV2K-Val, RealSR, DRealSR; the second may be absent
sets/<set>/...                                      several of them, at any depth
set/*.png, sets/<set>/*.png                         flat: pictures without a truth, as RealLR200
set/lq/*.png                                        the same, as RealLQ250
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from varsr_engine.errors import InvalidParamsError
from varsr_engine.imaging import READABLE_EXTENSIONS
from varsr_engine.imaging.files import natural_key

LOW_FOLDERS = ("lq", "lr", "test_lr")
TRUTH_FOLDERS = ("gt", "hr", "test_hr")  # both in any mix of capitals

# What says in a name which of the two a file is: 0801x4, Canon_001_LR4, photo_HR, photo-sr_x4.
_ROLE = re.compile(r"(?:[_-](?:lr|lq|hr|gt|sr)[0-9]?)?(?:[_-]?x[0-9])?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture to upscale. truth: what it should become; None where nobody knows."""

    set_name: str
    name: str  # its stem, unique in its set
    low: Path
    truth: Path | None = None


@dataclass(slots=True)
class FoundPairs:
    """All pairs, set by set, each in natural order; and what was left out, as sentences."""

    pairs: list[Pair] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(pair.set_name for pair in self.pairs))

    @property
    def has_truth(self) -> bool:
        """Whether at least one pair has."""
        return any(pair.truth is not None for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class Matching:
    """Files of two folders that belong together, and those that stay alone."""

    matched: list[tuple[Path, Path]]
    first_left: list[Path]
    second_left: list[Path]


def find_pairs(folder: Path) -> FoundPairs:
    """The pairs below `folder`, in one of the layouts above. A set is named by its path
    below it; the folder itself by its own name.

    Raises InvalidParamsError if the folder is absent or holds no picture in any layout, or two folders claim one role.
    """
    if not folder.is_dir():
        raise InvalidParamsError(f"pairs: {str(folder)!r} is not a folder")
    found = FoundPairs()
    _collect(folder, Path(), folder.resolve().name, found, set())
    if not found.pairs:
        reasons = "".join(f"; {warning}" for warning in found.warnings[:3])
        raise InvalidParamsError(
            f"pairs: no pictures in {str(folder)!r}: expected lq/ (or LR/, LQ/, test_LR/) with or without gt/ (or HR/, "
            f"GT/, test_HR/) beside it, pictures in the folder itself, or such folders inside it{reasons}"
        )
    return found


def match_by_stem(first: Iterable[Path], second: Iterable[Path]) -> Matching:
    """Files of equal stems; then, of those left, files of equal stems without their role (_LR, _HR, x4).

    The order is natural, that of `first`. Of several files with one stem in a folder the first one counts; where names
    without their role are not unique, they match nothing. Every file is in exactly one of the three lists.
    """
    first, second = sorted(first, key=natural_key), sorted(second, key=natural_key)
    partner: dict[Path, Path] = {}
    others = _by_stem(second)
    for path in _by_stem(first).values():
        if path.stem in others:
            partner[path] = others[path.stem]
    taken = set(partner.values())
    mine = _unique_by_role([path for path in _by_stem(first).values() if path not in partner])
    theirs = _unique_by_role([path for path in others.values() if path not in taken])
    partner |= {path: theirs[name] for name, path in mine.items() if name in theirs}
    taken = set(partner.values())
    matched = [(path, partner[path]) for path in first if path in partner]
    return Matching(matched, [p for p in first if p not in partner], [p for p in second if p not in taken])


def files_by_pair(found: FoundPairs, folder: Path, what: str) -> tuple[dict[Pair, Path], list[str]]:
    """Other files of the same pairs, say results, by their names: in folder/<set>/, or in `folder` if there is one set.

    Returns them and what had no partner, as sentences. what: what the files are, for these. Raises InvalidParamsError
    if there is no such folder.
    """
    if not folder.is_dir():
        raise InvalidParamsError(f"{what}: {str(folder)!r} is not a folder")
    files: dict[Pair, Path] = {}
    warnings: list[str] = []
    for set_name in found.sets:
        inner = folder / set_name
        if not inner.is_dir():
            if len(found.sets) > 1:
                warnings.append(f"{what}: there is no folder {_shown(inner)} for the set {set_name!r}")
                continue
            inner = folder
        pairs = {pair.low: pair for pair in found.pairs if pair.set_name == set_name}
        matching = match_by_stem(pairs, images_in(inner))
        files |= {pairs[low]: path for low, path in matching.matched}
        warnings += [f"{what}: {_shown(path)} belongs to no pair" for path in matching.second_left]
        warnings += [f"{what}: nothing has the name of {_shown(path)}" for path in matching.first_left]
    return files, warnings


def images_in(folder: Path) -> list[Path]:
    """The pictures of a folder itself, in natural order; hidden files are none."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in READABLE_EXTENSIONS and not p.name.startswith("."))
    return sorted((p for p in found if p.is_file()), key=natural_key)


def _collect(folder: Path, below: Path, name: str, found: FoundPairs, seen: set[Path]) -> None:
    """Add the set that `folder` is, else the sets in its subfolders. seen: where it was, for links in a ring."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    subfolders = sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural_key)
    low, truth = (_the_one(folder, subfolders, names) for names in (LOW_FOLDERS, TRUTH_FOLDERS))
    if low is not None:
        _add_set(name, images_in(low), None if truth is None else images_in(truth), found)
        return
    if truth is not None:
        found.warnings.append(f"{str(folder)!r} has {truth.name}/ and no lq/, LR/, LQ/ or test_LR/: left out")
        return
    flat = images_in(folder)
    if flat:
        _add_set(name, flat, None, found)
    for subfolder in subfolders:
        path = below / subfolder.name
        _collect(subfolder, path, path.as_posix(), found, seen)


def _the_one(folder: Path, subfolders: Sequence[Path], names: Sequence[str]) -> Path | None:
    mine = [subfolder for subfolder in subfolders if subfolder.name.lower() in names]
    if len(mine) > 1:
        listed = " and ".join(f"{path.name}/" for path in mine)
        raise InvalidParamsError(f"pairs: {str(folder)!r} has {listed}: which one counts? Move one of them away")
    return mine[0] if mine else None


def _add_set(name: str, low: list[Path], truth: list[Path] | None, found: FoundPairs) -> None:
    if truth is None:
        stems = _by_stem(low)
        found.pairs += [Pair(name, stem, path) for stem, path in stems.items()]
        found.warnings += [f"{_shown(p)} has the name of another file: left out" for p in low if stems[p.stem] != p]
        return
    matching = match_by_stem(low, truth)
    found.pairs += [Pair(name, path.stem, path, other) for path, other in matching.matched]
    for path in matching.first_left:
        found.warnings.append(f"{_shown(path)} has no ground truth of its name: left out")
    for path in matching.second_left:
        found.warnings.append(f"{_shown(path)} has no low-resolution picture of its name: left out")


def _shown(path: Path) -> str:
    return repr(str(path))


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """By stem, in the order given; the first file of each."""
    result: dict[str, Path] = {}
    for path in paths:
        result.setdefault(path.stem, path)
    return result


def _unique_by_role(paths: Iterable[Path]) -> dict[str, Path]:
    """By stem without its role; names that several files would have are left out."""
    grouped: dict[str, list[Path]] = {}
    for path in paths:
        grouped.setdefault(_ROLE.sub("", path.stem, count=1), []).append(path)
    return {name: group[0] for name, group in grouped.items() if len(group) == 1}
