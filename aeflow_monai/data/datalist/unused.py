"""Unused files in the folder of a data set: counted by kind, with a few names."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist.bids_names import is_bids_mask, is_of_anatomy, parse
from aeflow_monai.data.datalist.entries import Entry
from aeflow_monai.data.datalist.found_images import is_mask_of
from aeflow_monai.data.datalist.image_files import is_dicom, is_image, stem
from aeflow_monai.data.datalist.mask_names import names_anatomy
from aeflow_monai.data.datalist.walking import Tree, exists, identity, read_tree
from aeflow_monai.data.dicom.paths import split_name
from aeflow_monai.marks import has_mark
from aeflow_monai.printable import shown, some
from aeflow_monai.result_files import FAILURES, LESIONS, LOCALISATION, METRICS, REPORT, RUN_RECORD, SCORES, SLICE_SCORES

__all__ = ["Datalist", "Unused", "find_unused"]

_logger = logging.getLogger(__name__)

_SHOWN = 3  # number of names listed of each kind
OUTPUTS, MASKS, ANATOMY = "outputs of earlier runs", "masks that are not used", "masks of organs or tissue"
IMAGES, AGAIN, DICOM = "images that the layout does not read", "images listed by another path", "DICOM files"
HIDDEN, BROKEN, CLOSED = "hidden files and folders", "links to nothing", "folders that cannot be read"
LINKS, OTHERS = "links to folders that are read already", "files of other kinds"
_ORDER = (MASKS, ANATOMY, OUTPUTS, IMAGES, AGAIN, DICOM, BROKEN, CLOSED, LINKS, HIDDEN, OTHERS)
_LOUD = (BROKEN, CLOSED)  # kinds that are logged as warnings, since data are missing
# Tables and reports of a run, which carry no mark; a table of scores or a bundle identifies a run's folder.
_REPORTS = {SCORES, SLICE_SCORES, LESIONS, FAILURES}
_REPORTS |= {METRICS, LOCALISATION, RUN_RECORD, REPORT}
_SIGNS = (SCORES, RUN_RECORD)
_DETACHED = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz", ".gz", ".bz2")}  # voxels beside a header


@dataclass(frozen=True)
class Unused:
    """The unused files of a folder.

    Args:
        root: the folder.
        kinds: the sorted paths of each kind that occurs.

    Example:
        >>> print(Unused(Path("DATA"), {"links to nothing": [Path("DATA/a.nii")]}))
        Not used in DATA: 1 links to nothing (a.nii).
    """

    root: Path
    kinds: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return the number of paths of each kind, and for other files of each suffix."""
        counts = {kind: len(paths) for kind, paths in self.kinds.items()}
        suffixes = Counter(path.suffix.lower() or path.name for path in self.kinds.get(OTHERS, ()))
        return counts | {f"{OTHERS}: {shown(suffix)}": count for suffix, count in sorted(suffixes.items())}

    def named(self, limit: int = 1000) -> dict[str, list[str]]:
        """Return the first paths of each kind, relative to the folder.

        Args:
            limit: number of paths of each kind.
        """
        return {
            kind: [shown(path.relative_to(self.root) if path != self.root else path) for path in paths[:limit]]
            for kind, paths in self.kinds.items()
        }

    def __str__(self) -> str:
        if not self.kinds:
            return f"Everything in {shown(self.root)} is used."
        told = [f"{len(paths)} {kind} ({self._names(paths)})" for kind, paths in self.kinds.items()]
        return f"Not used in {shown(self.root)}: {'; '.join(told)}."

    def log(self, *, labels: bool) -> None:
        """Log the unused files: as a warning if data are missing, or if an image to be labelled may have a lesion."""
        if self.kinds:
            loud = any(kind in self.kinds for kind in (*_LOUD, *([MASKS] if labels else [])))
            _logger.log(logging.WARNING if loud else logging.INFO, str(self))

    def _names(self, paths: Sequence[Path]) -> str:
        return some([path.relative_to(self.root) if path != self.root else path for path in paths], _SHOWN)


class Datalist(list[dict[str, Any]]):
    """A datalist with the layout that it was read in and the unused files of its folder.

    Args:
        items: items of the list.
        unused: the unused files.
        layout: see `load_datalist`.

    Attributes:
        notes: notes on the items to train on, see `training_notes`; a training reports them.
    """

    def __init__(self, items: Iterable[dict[str, Any]], unused: Unused, layout: str) -> None:
        super().__init__(items)
        self.unused = unused
        self.layout = layout
        self.notes: dict[str, str] = {}


def find_unused(root: Path, entries: Iterable[Entry], source: Path, passed_over: Path | None = None) -> Unused:
    """Find the files in a folder that no entry of its layout uses.

    Args:
        root: the folder; a file has no unused files.
        entries: entries of all sections.
        source: the list that they are from, or the folder.
        passed_over: a folder below the root that is skipped.

    Returns:
        The unused paths, by kind.
    """
    if not root.is_dir():
        return Unused(root)
    tree = read_tree(root)
    used = {path for entry in entries for path in (*entry.images, entry.mask) if path}
    used |= {split_name(path)[0] for path in used if not exists(path)}  # the folder of a series
    used |= {source} if source.is_file() else set()
    parts = {path.with_name(stem(path) + tail) for path in used for tail in _DETACHED.get(path.suffix.lower(), ())}
    runs = _Runs(tree)
    known = {identity(path) for path in used}
    found: dict[str, list[Path]] = defaultdict(list)
    for path in tree.files:
        if path in used or path in parts or (path.parent in used and is_dicom(path)):
            continue
        same = identity(path) in known
        if not (same and source.is_file()):  # the same path may be spelt in several ways
            found[AGAIN if same else _kind(path, root, runs)].append(path)
    found |= {HIDDEN: tree.hidden, CLOSED: tree.unreadable, LINKS: tree.repeated}
    found[BROKEN] = [path for path in tree.broken if path not in used]
    kinds = {
        kind: sorted(path for path in found[kind] if passed_over is None or not path.is_relative_to(passed_over))
        for kind in _ORDER
    }
    return Unused(root, {kind: paths for kind, paths in kinds.items() if paths})


class _Runs:
    """Folders of earlier runs, recognised by a table of scores or the bundle of a training."""

    def __init__(self, tree: Tree) -> None:
        self.results = {path.parent for path in tree.files if path.name in _SIGNS}
        self.bundles = {folder for folder in tree.folders if _is_bundle(folder)}

    def wrote(self, path: Path) -> bool:
        report = path.name in _REPORTS or path.name.endswith("_slices.csv")
        return has_mark(path) or (report and path.parent in self.results) or not self.bundles.isdisjoint(path.parents)


def _kind(path: Path, root: Path, runs: _Runs) -> str:
    if runs.wrote(path):
        return OUTPUTS
    if is_image(path):
        name = parse(path)
        if is_mask_of(path, root) or ("sub" in name.entities and is_bids_mask(path, root)):
            return ANATOMY if names_anatomy(path) or is_of_anatomy(path, name) else MASKS
        return IMAGES
    return DICOM if is_dicom(path) else OTHERS


def _is_bundle(folder: Path) -> bool:
    return (folder / "models" / "model.pt").is_file() and (folder / "configs" / "metadata.json").is_file()
