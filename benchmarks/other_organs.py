"""Six small public sets of other organs, as data sets for benchmarks/detection/run.py: do the defaults work elsewhere?

    python benchmarks/other_organs.py --source CLONES --output SETS
    python benchmarks/detection/run.py --data SETS --set SETS/<name> --output RUN --seeds 0 --methods aeflow padim

CLONES holds clones of the public repositories that `SETS` names, at the commits there. Images become grey PNGs; of
exact duplicates one is kept. 60 % of the normal images' patients are to train on; tested are up to 200 of the other
normals and 200 abnormal images of nobody who was trained on. Patients are guessed from the names of files.
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

TRAINED, TESTED = 0.6, 200  # share of the normals' patients; images of a kind


class Kinds(NamedTuple):
    """Where the images of a set lie, and whose they are."""

    repository: str
    commit: str
    normal: Callable[[Path], list[Path]]
    abnormal: Callable[[Path], list[Path]]
    patient: Callable[[Path], str] = lambda image: image.stem


def number(image: Path) -> int:
    """The first number in a file's name, 0 if there is none."""
    return int(next(iter(re.findall(r"\d+", image.stem)), 0))


def found(*patterns: str) -> Callable[[Path], list[Path]]:
    """All files of some patterns, each below the clone."""

    def of(clone: Path) -> list[Path]:
        files = (file for pattern in patterns for file in clone.glob(pattern))
        return sorted(files, key=lambda file: (number(file), str(file)))

    return of


def mias(normal: bool) -> Callable[[Path], list[Path]]:
    """Mammograms by their table of labels: "mdb003 D NORM", or a kind of finding in the third column."""

    def of(clone: Path) -> list[Path]:
        lines = [line.split() for line in (clone / "data/labels").read_text(encoding="utf-8").splitlines()]
        kinds = {line[0]: line[2] for line in lines if line and line[0].startswith("mdb")}
        names = sorted(name for name, kind in kinds.items() if (kind == "NORM") == normal)
        return [clone / f"data/pgm/{name}.pgm" for name in names]

    return of


def head_ct(normal: bool) -> Callable[[Path], list[Path]]:
    """Slices by their table: number, 1 for a hemorrhage."""

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
        lambda image: str((number(image) + 1) // 2),  # two breasts of a woman follow each other
    ),
    "chest_ct": Kinds(
        "Coronavirus-Visualization-Team/CVT_COVID-CT-CNN",
        "24d2b48",
        found("Data/master-data/NonCOVID/Non-Covid (*"),
        found("Data/master-data/COVID/Covid (*"),
        lambda image: f"{image.parent.name}-{number(image) // 20}",  # slices of a patient follow each other
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
    """Images as grey ones, without those that were seen before."""
    for path in images:
        grey = Image.open(path).convert("RGB").convert("L")
        digest = hashlib.sha1(grey.tobytes() + str(grey.size).encode()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            yield path, grey


def require_both(normal: Sized, abnormal: Sized, kinds: Kinds, clone: Path) -> None:
    """Refuse a clone without images of both kinds."""
    if not normal or not abnormal:
        expected = f"github.com/{kinds.repository} at {kinds.commit}"
        raise SystemExit(f"Expected a clone of {expected} in {clone}; its images are not there.")


def write(kinds: Kinds, clone: Path, folder: Path) -> dict[str, int]:
    """Write the images and manifest.csv of a set; how many of each kind there are."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    # abnormal ones first: what lies in both classes is not normal
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
