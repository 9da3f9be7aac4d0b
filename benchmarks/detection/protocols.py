"""Data sets of the comparison: normals to fit on, and a test list that is not read before all fitting is done.

`Protocol.write_fit` writes a folder with normals alone, which is all that a fitting process is given.
`Protocol.write_test` reads the test list, or makes it, and writes it; it refuses while a fit is missing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import planted_lesions
from shared import read_rows, write_rows, xray_patient

from aeflow_monai import config_files, load_datalist
from aeflow_monai.data import write_phantom

COLUMNS = ("path", "mask", "case", "patient", "split", "abnormal")
N_HELD_OUT, N_ABNORMAL = 200, 400  # of the chest X-rays' development split
N_TEST = 20  # subjects, of either split of the brains


class Row(NamedTuple):
    """An image: where it is, which mask it has, whose it is."""

    path: Path
    abnormal: bool
    mask: Path | None = None
    case: str = ""
    patient: str = ""


class Protocol:
    """A data set with its config.

    Args:
        config: goes on top of the bundle's train.yaml; none if None.
        normals: to fit on.
        test: gives what is scored; not called before all fitting is done.
    """

    def __init__(self, config: Path | None, normals: Sequence[Row], test: Callable[[], Sequence[Row]]) -> None:
        self.config = config
        self._normals = normals
        self._test = test

    def digest(self) -> str:
        """What tells one list of normals, with its config, from another."""
        rows = "\n".join(str((row.path, row.case, row.patient)) for row in self._normals)
        config = self.config.read_text(encoding="utf-8") if self.config else ""
        return hashlib.sha256((rows + config).encode()).hexdigest()[:16]

    def write_fit(self, folder: Path) -> None:
        """Write manifest.csv with the normals and nothing else."""
        _write(folder, "train", self._normals)

    def write_test(self, folder: Path, fitted: Iterable[Path]) -> None:
        """Read the test list, and write it as manifest.csv.

        Args:
            folder: where to.
            fitted: the files that the fits leave when they are done.

        Raises:
            RuntimeError: one of them is missing.
        """
        missing = [str(file) for file in fitted if not file.is_file()]
        if missing:
            raise RuntimeError(
                f"The test list is read when all fitting is done; {len(missing)} miss, first {missing[0]}."
            )
        _write(folder, "test", self._test())


def _write(folder: Path, split: str, rows: Iterable[Row]) -> None:
    cells = ((r.path, r.mask or "", r.case or r.path.stem, r.patient, split, int(r.abnormal)) for r in rows)
    write_rows(folder / "manifest.csv", COLUMNS, cells)


def _read(folder: Path, split: str, abnormal: bool | None = None) -> list[Row]:
    """The rows of one split of a folder with manifest.csv; of both kinds if `abnormal` is None."""
    found = []
    for row in read_rows(folder / "manifest.csv"):
        if row["split"] == split and abnormal in (None, row["abnormal"] == "1"):
            path, mask = folder / row["path"], folder / row["mask"] if row.get("mask") else None
            patient = row.get("patient") or xray_patient(path)
            found.append(Row(path, row["abnormal"] == "1", mask, row.get("case") or "", patient))
    return found


def _some(rows: Sequence[Row], n: int | None) -> list[Row]:
    """The first n of the rows in an order that a fixed seed gives; all of them if n is None."""
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    return list(rows) if n is None else shuffled[:n]


def development_split(normals: Sequence[Row], abnormal: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Normals to fit on, and a test list, both of an official train split; no patient is on both sides.

    Patients are held out, in an order that a fixed seed gives, until they have 200 normal images; 400 patients with
    pneumonia give an image each. Which normals are held out does not depend on the abnormal images.
    """
    rng = random.Random(0)
    patients = sorted({row.patient for row in normals})
    rng.shuffle(patients)
    held_out: set[str] = set()
    for patient in patients:
        if sum(row.patient in held_out for row in normals) >= N_HELD_OUT:
            break
        held_out.add(patient)
    first: dict[str, Row] = {}
    for row in sorted(abnormal, key=lambda row: row.path):
        first.setdefault(row.patient, row)
    ill = sorted(first)
    rng.shuffle(ill)
    test = [row for row in normals if row.patient in held_out] + [first[patient] for patient in ill[:N_ABNORMAL]]
    return [row for row in normals if row.patient not in held_out], test


def chest_xray(data: Path, split: str, n_normals: int | None, config: Path | None = None) -> Protocol:
    """The official split, or a development split made of its training part alone."""
    folder, config = data / "chest_xray", config or Path(*config_files("chest_xray"))
    normals = _read(folder, "train", abnormal=False)
    if split == "official":
        return Protocol(config, _some(normals, n_normals), lambda: _read(folder, "test"))
    to_fit, _ = development_split(normals, [])

    def test() -> list[Row]:
        return development_split(normals, _read(folder, "train", abnormal=True))[1]

    return Protocol(config, _some(to_fit, n_normals), test)


def healthy_t1(data: Path, output: Path, split: str, n_subjects: int | None, config: Path | None = None) -> Protocol:
    """Healthy T1 volumes, of which 20 get lesions (planted_lesions.py) when all is fitted.

    Of the official split's 20 test subjects half get lesions. The development split tests on 20 of the 38 others: each
    as it is and with lesions, so that no difference between subjects can favour a method.
    """
    planted, shapes = output / "planted", data / "ms_lesion/gold_masks_all30"
    healthy = sorted((data / "healthy_t1").glob("*.nii.gz"))
    is_paired, seed = split == "dev", 0
    train, test, abnormal = planted_lesions.split(healthy, N_TEST, seed)
    if is_paired:
        seed = 1
        train, test, _ = planted_lesions.split(train, N_TEST, seed)
        abnormal = set(test)

    def plant() -> list[Row]:
        if not (planted / "manifest.csv").exists():
            planted_lesions.write(healthy, [], test, abnormal, shapes, planted, seed, is_paired)
        return _read(planted, "test")

    cases = [planted_lesions.case_of(file) for file in train]
    normals = [Row(file, False, None, case, case) for file, case in zip(train, cases, strict=True)]
    return Protocol(config or Path(*config_files("healthy_t1")), _some(normals, n_subjects), plant)


def development_half(test: Sequence[Row]) -> list[Row]:
    """The rows of half of the patients, in an order that a fixed seed gives; the other half is kept aside."""
    patients = sorted({row.patient or row.case for row in test})
    random.Random(0).shuffle(patients)
    chosen = set(patients[: len(patients) // 2])
    return [row for row in test if (row.patient or row.case) in chosen]


def phantom(output: Path, config: Path | None, n_normals: int | None) -> Protocol:
    """The embedded volumes with another seed than the embedded data set has."""
    folder = write_phantom(output / "phantom", seed=1)
    normals = _read(folder, "train", abnormal=False)
    return Protocol(config, _some(normals, n_normals), lambda: _read(folder, "test"))


def listed(
    source: str, config: Path | None, normal_classes: Sequence[str], n_normals: int | None, split: str = "official"
) -> Protocol:
    """Whatever the bundle can read and has a test split, as a MedMNIST .npz; one file per image.

    The development split tests on half of the test split's patients, since the train split has normals alone.
    """

    def read(split: str) -> list[Row]:
        items = load_datalist(source, split, normal_classes=list(normal_classes))
        return [
            Row(
                Path(item["image"]),
                item.get("label") == 1,
                Path(item["lesion"]) if item.get("lesion") else None,
                str(item["case"]),
                str(item.get("patient", "")),
            )
            for item in items
            if "problem" not in item
        ]

    normals = [row for row in read("train") if not row.abnormal]

    def test() -> list[Row]:
        return development_half(read("test")) if split == "dev" else read("test")

    return Protocol(config, _some(normals, n_normals), test)


def load(
    name: str,
    data: Path,
    output: Path,
    split: str = "official",
    n_normals: int | None = None,
    config: Path | None = None,
    normal_classes: Sequence[str] = ("NORMAL",),
) -> Protocol:
    """The protocol of a name.

    Args:
        name: "chest_xray", "healthy_t1", "phantom", or the path of what the bundle can read.
        data: folder that holds the first two.
        output: where data that has to be made goes.
        split: "official", or "dev", which leaves official test images unread.
        n_normals: fit on this many images or subjects only; all if None.
        config: goes on top of train.yaml, in place of the data set's own in configs.
        normal_classes: of data of the user's own.
    """
    if name == "chest_xray":
        return chest_xray(data, split, n_normals, config)
    if name == "healthy_t1":
        return healthy_t1(data, output, split, n_normals, config)
    if name == "phantom":
        return phantom(output, config, n_normals)
    return listed(name, config, normal_classes, n_normals, split)
