"""Prepare a data set: report the slices that the slicing policy gives, and write a reproducible datalist."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from monai.utils import convert_to_tensor, ensure_tuple

from aeflow_monai.about import __version__
from aeflow_monai.data.datalist import load_datalist
from aeflow_monai.data.datalist.item import files_of
from aeflow_monai.data.datalist.items import EmptySectionError
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.errors import FailureLog
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import write_json
from aeflow_monai.result_files import FAILURES

__all__ = ["prepare_data"]

_KINDS = ("normal", "abnormal", "unclear", "skipped")


def prepare_data(
    dataset_dir: str | os.PathLike[str],
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    slicer: Slicer,
    path: str | os.PathLike[str],
    **listing: Any,
) -> None:
    """Read every case of a data set once, print the slices that the slicing policy gives, and write a datalist.

    The datalist is a MONAI/Decathlon JSON file: "training", "validation" and "test" of the split, each item with its
    files, their SHA-256, and its slices by kind, counted as in `Slicer.slice_range`; and the policy under "prepared".
    Given as `dataset_dir`, it replaces the folder: a run then uses the same files in the same split, or names the file
    that has changed. The kinds of slices:

    - normal: trained on, if its case is in the training split (abnormal cases: with `lesion_free_slices` only);
    - abnormal: with lesion according to the mask, or any slice of an abnormal case without a mask;
    - unclear: too close to a lesion to be normal, or with too little lesion to be abnormal;
    - skipped: with too little foreground, or outside of the slice range.

    Cases that cannot be read are not in the datalist; they are listed in failures.csv beside it.

    Args:
        dataset_dir: see `load_datalist`.
        transform: the bundle's preprocessing.
        slicer: the slicing policy.
        path: path of the datalist; its folder is created if missing.
        listing: further options of `load_datalist`.

    Raises:
        CaseFailures: at the end, if a case cannot be read.
        ValueError: the file or a failures.csv beside it already exists.
    """
    path = Path(path).absolute()
    table = path.with_name(FAILURES)
    if there := [file.name for file in (path, table) if file.exists()]:
        raise ValueError(
            f"{path.parent} holds {' and '.join(there)}, which would be lost. Give another folder with --output_dir, "
            "or move what is there."
        )
    sections: dict[str, list[dict[str, Any]]] = {"training": load_datalist(dataset_dir, "train", **listing)}
    for section in ("validation", "test"):
        with suppress(EmptySectionError):
            sections[section] = load_datalist(dataset_dir, section, **listing)
    failures = FailureLog(table)
    failures.start()
    written: dict[str, list[dict[str, Any]]] = {}
    for section, items in sections.items():
        counts: Counter[str] = Counter()
        written[section] = []
        for item in items:
            with failures.catching(item, "read"):
                slices = _slices(transform(item), slicer, item)
                counts.update({kind: len(numbers) for kinds in slices.values() for kind, numbers in kinds.items()})
                written[section].append(_entry(item, slices, path.parent))
        print(_told(section, items, written[section], counts))
    content = {
        "name": Path(dataset_dir).name,
        "prepared": {"aeflow_monai": __version__, "policy": slicer.policy(), "listing": listing},
        **written,
    }
    write_json(path, content)
    print(f"datalist: {path}")
    failures.raise_if_any(sum(map(len, sections.values())))


def _slices(read: Mapping[str, Any], slicer: Slicer, item: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Return slice numbers by plane and kind, counted as in `Slicer.slice_range`."""
    volume = convert_to_tensor(read["image"], dtype=torch.float32, track_meta=False)
    found: dict[str, dict[str, list[int]]] = {}
    for axis in slicer.axes_of(volume):
        kinds = slicer.kinds({**read, "image": volume, "label": item.get("label")}, axis, str(item["image"]))
        chosen = set(slicer.chosen(volume, axis).tolist())
        by_kind: dict[str, list[int]] = {kind: [] for kind in _KINDS}
        for index, kind in enumerate(kinds):
            by_kind[kind if index in chosen else "skipped"].append(index + 1)
        found[axis] = by_kind
    return found


def _entry(item: Mapping[str, Any], slices: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    images = [_relative(path, folder) for path in ensure_tuple(item["image"])]
    entry: dict[str, Any] = {"image": images[0] if len(images) == 1 else images}
    entry |= {key: item[key] for key in ("case", "patient", "label") if key in item}
    if "lesion" in item:
        entry["mask"] = _relative(item["lesion"], folder)
    entry["sha256"] = {_relative(file, folder): sha256_of(file) for file in files_of(item)}
    entry["slices"] = slices
    return entry


def _told(section: str, items: list[Any], written: list[dict[str, Any]], counts: Counter[str]) -> str:
    abnormal = sum(entry.get("label") == 1 for entry in written)
    patients = len({entry.get("patient") for entry in written})
    cases = f"{len(written)} cases of {patients} patients ({len(written) - abnormal} normal, {abnormal} abnormal)"
    if len(items) > len(written):
        cases += f", {len(items) - len(written)} not readable"
    slices = ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS)
    return f"{section}: {cases}; {counts.total()} slices: {slices}"


def _relative(path: str | os.PathLike[str], folder: Path) -> str:
    return Path(os.path.relpath(Path(path).absolute(), folder)).as_posix()
