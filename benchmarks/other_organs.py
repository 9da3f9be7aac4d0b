"""Six small public sets of other organs for benchmarks/detection/run.py, to test the defaults elsewhere.

    python benchmarks/other_organs.py --source CLONES --output SETS
    python benchmarks/detection/run.py --data SETS --set SETS/<name> --output RUN --seeds 0 --methods aeflow padim

CLONES holds clones of the public repositories in `SETS`, at the commits named there. Images become grey PNGs; one of
exact duplicates is kept. 60 % of the patients with normal images are trained on; the test set has up to 200 normal and
200 abnormal images of other patients. Patients are guessed from the file names.
"""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from shared import arguments, write_rows

TRAINED, TESTED = 0.6, 200  # fraction of the normal patients; images per class


class Kinds(NamedTuple):
    """The images of a set, and their patients."""

    repository: str
    commit: str
    normal: Callable[[Path], list[Path]]
    abnormal: Callable[[Path], list[Path]]
    patient: Callable[[Path], str] = lambda image: image.stem


def number(image: Path) -> int:
    """Return the first number in a file name, 0 if there is none."""
    return int(next(iter(re.findall(r"\d+", image.stem)), 0))


def found(*patterns: str) -> Callable[[Path], list[Path]]:
    """Return a function that lists the files of a clone by patterns."""

    def of(clone: Path) -> list[Path]:
        files = (file for pattern in patterns for file in clone.glob(pattern))
        return sorted(files, key=lambda file: (number(file), str(file)))

    return of


def mias(normal: bool) -> Callable[[Path], list[Path]]:
    """Select mammograms by their table of labels: "mdb003 D NORM", or a kind of finding in the third column."""

    def of(clone: Path) -> list[Path]:
        lines = [line.split() for line in (clone / "data/labels").read_text(encoding="utf-8").splitlines()]
        kinds = {line[0]: line[2] for line in lines if line and line[0].startswith("mdb")}
        names = sorted(name for name, kind in kinds.items() if (kind == "NORM") == normal)
        return [clone / f"data/pgm/{name}.pgm" for name in names]

    return of


def head_ct(normal: bool) -> Callable[[Path], list[Path]]:
    """Select slices by their table: number, 1 for a hemorrhage."""

    def of(clone: Path) -> list[Path]:
        with (clone / "Dataset/labels.csv").open(encoding="utf-8") as stream:
            rows = [(int(row[0]), int(row[1])) for row in list(csv.reader(stream))[1:]]
        return [clone / f"Dataset/head_ct/{name:03d}.png" for name, label in rows if (label == 0) == normal]

    return of


SETS = {
    "breast_ultrasound": Kinds(
        "yirutsai/Breast-ultrasound-dataset",
        "6c0fac8",
        found("data/normal/images/*.png"),
        found("data/benign/images/*.png", "data/malignant/images/*.png"),
    ),
    "mammography": Kinds(
        "theidentity/MammogramVisualization",
        "a2e6552",
        mias(normal=True),
        mias(normal=False),
        lambda image: str((number(image) + 1) // 2),  # both breasts of a woman are consecutive
    ),
    "chest_ct": Kinds(
        "Coronavirus-Visualization-Team/CVT_COVID-CT-CNN",
        "24d2b48",
        found("Data/master-data/NonCOVID/Non-Covid (*"),
        found("Data/master-data/COVID/Covid (*"),
        lambda image: f"{image.parent.name}-{number(image) // 20}",  # slices of a patient are consecutive
    ),
    "fundus": Kinds(
        "ahmadcs22/Eye-Disease-Detection-Using-MobileNet-Data-science",
        "4619a22",
        found("dataset/normal/*_left.jpg", "dataset/normal/*_right.jpg"),
        found(*(f"dataset/{kind}/*_{side}.jpg" for kind in ("cataract", "glaucoma") for side in ("left", "right"))),
        lambda image: str(number(image)),
    ),
    "head_ct": Kinds("Roiabr/Head-CT-hemorrhage-detection", "36b7fe8", head_ct(normal=True), head_ct(normal=False)),
    "brain_mri": Kinds("MohamedAliHabib/Brain-Tumor-Detection", "30470ae", found("no/*"), found("yes/*")),
}


def distinct(images: list[Path], seen: set[str]) -> Iterator[tuple[Path, Image.Image]]:
    """Yield images converted to grey, without duplicates of those seen before."""
    for path in images:
        grey = Image.open(path).convert("RGB").convert("L")
        digest = hashlib.sha1(grey.tobytes() + str(grey.size).encode()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            yield path, grey


def require_both(normal: Sized, abnormal: Sized, kinds: Kinds, clone: Path) -> None:
    """Refuse a clone without images of both classes."""
    if not normal or not abnormal:
        expected = f"github.com/{kinds.repository} at {kinds.commit}"
        raise SystemExit(f"Expected a clone of {expected} in {clone}; its images are not there.")


def write(kinds: Kinds, clone: Path, folder: Path) -> dict[str, int]:
    """Write the images and manifest.csv of a set, and return the number of images of each class."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    # abnormal images first: an image in both classes is not normal
    abnormal = list(distinct(kinds.abnormal(clone), seen))
    normal = list(distinct(kinds.normal(clone), seen))
    require_both(normal, abnormal, kinds, clone)
    rng = random.Random(0)
    patients = sorted({kinds.patient(path) for path, _ in normal})
    rng.shuffle(patients)
    trained = set(patients[: round(TRAINED * len(patients))])
    parts = {
        ("train", 0): [image for image in normal if kinds.patient(image[0]) in trained],
        ("test", 0): [image for image in normal if kinds.patient(image[0]) not in trained],
        ("test", 1): [image for image in abnormal if kinds.patient(image[0]) not in trained],
    }
    rows = []
    for (split, label), images in parts.items():
        if split == "test":
            rng.shuffle(images)
            del images[TESTED:]
        for index, (path, grey) in enumerate(images):
            name = f"images/{split}_{'abnormal' if label else 'normal'}_{index:04d}.png"
            grey.save(folder / name)
            rows.append([name, split, label, kinds.patient(path)])
    write_rows(folder / "manifest.csv", ["path", "split", "abnormal", "patient"], rows)
    return {f"{split} {'abnormal' if label else 'normal'}": len(images) for (split, label), images in parts.items()}


def main() -> None:
    given = arguments(__doc__, "source", "output").parse_args()
    for name, kinds in SETS.items():
        counts = write(kinds, given.source / kinds.repository.partition("/")[2], given.output / name)
        print(name, counts)


if __name__ == "__main__":
    main()
