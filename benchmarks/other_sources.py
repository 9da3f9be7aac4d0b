"""Test images from other sources for five sets of the panel: other hospitals, scanners and patients.

    python benchmarks/other_sources.py --source CLONES --output SOURCES
    python benchmarks/detection/acquisitions.py --panel OUT --sources SOURCES --seeds 0 --methods aeflow dfm knn

They are not trained on. Normal and abnormal images of each set come from the same source. CLONES holds clones of the
public repositories in `SOURCES`, at the commits named there. Images become grey PNGs of at most 512 pixels per side, up
to 200 of each class, drawn from the patients in turn; patients are guessed from the file names.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from other_organs import Kinds, distinct, found, require_both
from shared import arguments, write_rows

MOST, SIDE = 200, 512  # images per class; pixels


def fundus(least: int, most: int) -> Callable[[Path], list[Path]]:
    """Select images of IDRiD's training set by the grade of retinopathy in its table."""

    def of(clone: Path) -> list[Path]:
        folder = clone / "dataset/B. Disease Grading"
        table = folder / "2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
        if not table.exists():
            return []
        with table.open(encoding="utf-8") as stream:
            names = [row[0] for row in list(csv.reader(stream))[1:] if row[0] and least <= int(row[1]) <= most]
        return [folder / "1. Original Images/a. Training Set" / f"{name}.jpg" for name in names]

    return of


def of_head(image: Path) -> tuple[int, int]:
    """Parse patient, from 49 to 130, and slice, whose numbers are concatenated: 4914, 10010."""
    digits = 2 if int(image.stem[0]) > 3 else 3
    return int(image.stem[:digits]), int(image.stem[digits:])


def with_hemorrhage(clone: Path) -> list[Path]:
    """Return slices with a hemorrhage, which are in the folder "Negativ"."""
    return found("Data/Brain/Negativ/*.jpg")(clone)


def without_hemorrhage(clone: Path) -> list[Path]:
    """Return slices of patients without a hemorrhage, at the heights of hemorrhages in other patients."""
    abnormal = [of_head(image) for image in with_hemorrhage(clone)]
    if not abnormal:
        return []
    patients = {patient for patient, _ in abnormal}
    lowest, highest = np.percentile([height for _, height in abnormal], [10, 90])
    slices = found("Data/Brain/Positiv/*.jpg")(clone)
    return [i for i in slices if of_head(i)[0] not in patients and lowest <= of_head(i)[1] <= highest]


SOURCES = {
    # NIH ChestX-ray8: adults
    "chest_xray": Kinds(
        "muhammedtalo/COVID-19",
        "ee3e2cf",
        found("X-Ray Image DataSet/No_findings/*.png"),
        found("X-Ray Image DataSet/Pneumonia/*.png"),
        lambda image: image.stem.partition("_")[0],
    ),
    # BUS-UCLM
    "breast_ultrasound": Kinds(
        "Knightrider16/Mask_R-CNN_BUS-UCLM",
        "10b89be",
        found("BUS_UCLM/bus_uclm_separated/normal/*.png"),
        found("BUS_UCLM/bus_uclm_separated/benign/*.png", "BUS_UCLM/bus_uclm_separated/malign/*.png"),
        lambda image: image.stem[:4],
    ),
    # by names and counts of the files MosMedData, CT-0 and CT-2
    "chest_ct": Kinds(
        "Coronavirus-Visualization-Team/CVT_COVID-CT-CNN",
        "24d2b48",
        found("Data/master-data/NonCOVID/img[0-9]*.jpg"),
        found("Data/master-data/COVID/mosmed_img*"),
    ),
    # IDRiD: retinopathy of grade 2 and more, where the panel's set has cataract and glaucoma
    "fundus": Kinds("imsaksham-c/EyeDisease_IDRiD", "b82ed3a", fundus(0, 0), fundus(2, 4)),
    # CT-ICH of PhysioNet
    "head_ct": Kinds(
        "lammih/MultiModal2", "9721c6e", without_hemorrhage, with_hemorrhage, lambda image: str(of_head(image)[0])
    ),
}


def in_turns(images: list[Path], patient: Callable[[Path], str]) -> list[Path]:
    """Shuffle images: one of each patient, then another one of each, and so on."""
    rng = random.Random(0)
    rng.shuffle(images)
    seen: dict[str, int] = {}
    turns = []
    for image in images:
        turns.append(seen.setdefault(patient(image), 0))
        seen[patient(image)] += 1
    return [images[place] for place in np.argsort(turns, kind="stable")]


def write(kinds: Kinds, clone: Path, folder: Path) -> dict[str, int]:
    """Write the images and manifest.csv of a source, and return the number of images of each class."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    abnormal, normal = kinds.abnormal(clone), kinds.normal(clone)
    require_both(normal, abnormal, kinds, clone)
    seen: set[str] = set()
    rows = []
    # abnormal images first: an image in both classes is not normal
    for label, images in ((1, abnormal), (0, normal)):
        for number, (path, grey) in zip(range(MOST), distinct(in_turns(images, kinds.patient), seen), strict=False):
            grey.thumbnail((SIDE, SIDE))
            image = folder / f"images/{'abnormal' if label else 'normal'}_{number:04d}.png"
            grey.save(image)
            rows.append([str(image.absolute()), image.stem, kinds.patient(path), "test", label])
    write_rows(folder / "manifest.csv", ["path", "case", "patient", "split", "abnormal"], rows)
    return {kind: sum(row[-1] == label for row in rows) for label, kind in enumerate(("normal", "abnormal"))}


def main() -> None:
    given = arguments(__doc__, "source", "output").parse_args()
    for name, kinds in SOURCES.items():
        print(name, write(kinds, given.source / kinds.repository.partition("/")[2], given.output / name))


if __name__ == "__main__":
    main()
