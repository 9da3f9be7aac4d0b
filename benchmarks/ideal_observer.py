"""Detectability of planted lesions by ideal observers, which know what nobody knows of a patient.

    python benchmarks/ideal_observer.py --data DATA --output OUT [--model RUN/seed0/aeflow ...]

The subjects are those of the development split of healthy T1 (detection/protocols.py), each without and with six
planted lesions. Three observers search for each lesion. They know its shape, size and contrast, and the power spectrum
of normal brains as background:

- `place known`: knows also the place. It compares the response there in the image with the lesion and in the same
  image without. Its AUROC is Phi(d' / sqrt(2)) for a detectability d', the mean difference over the standard deviation
  of responses within the brain of the subject.
- `place unknown`: moves the matched filter, whitened by the spectrum, through the brain where lesions may lie. It is
  the best linear observer for a stationary background (Barrett, Myers, "Foundations of Image Science", 2004).
- `unwhitened`: the same without the spectrum, with the template alone.

A lesion is found if the highest response near it exceeds the threshold of one false positive per volume, which the same
subject without lesions exceeds in one place. Anomaly maps of models that were trained on the same split are compared by
the same rule. (An evaluation's lesions.csv is not: it counts connected components, of which a planted lesion has three
on average.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import planted_lesions
from scipy import fft, ndimage
from scipy.stats import norm
from shared import arguments, commit, processor, read_rows, write_rows

from aeflow_monai import Model
from aeflow_monai.files import write_json

TILE = 32  # voxels per side of the brain tiles for the spectrum
N_SUBJECTS = 20  # normal brains for the spectrum
NEAR = 2  # voxels around a lesion's mask where its response may be highest

Array = np.ndarray[Any, np.dtype[Any]]


class Lesion(NamedTuple):
    """A lesion and the signal that it adds to the image, in a box around it."""

    case: str
    label: int
    size: str
    contrast: float
    box: tuple[slice, ...]
    signal: Array


def voxels_of(path: Path) -> Array:
    """Return the grey values of a volume."""
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)


def inside(volume: Array, spacing: float) -> Array:
    """Return where a lesion may lie, as in planted_lesions.py."""
    brain = ndimage.binary_fill_holes(volume > 0)
    return ndimage.distance_transform_edt(brain) * spacing > 8


def spectrum(volumes: Iterator[tuple[Array, Array]], shape: tuple[int, ...]) -> Array:
    """Return the mean power per voxel of normal brain at each frequency of a volume, from windowed tiles."""
    window = np.ones(())
    for _ in range(3):
        window = np.multiply.outer(window, np.hanning(TILE + 2)[1:-1])
    total, count = np.zeros((TILE,) * 3), 0
    for volume, allowed in volumes:
        for corner in np.ndindex(*(n // (TILE // 2) - 1 for n in volume.shape)):
            box = tuple(slice(c * TILE // 2, c * TILE // 2 + TILE) for c in corner)
            if allowed[box].mean() < 0.9:
                continue
            tile = volume[box]
            total += np.abs(fft.fftn((tile - tile.mean()) * window)) ** 2
            count += 1
    if not count:
        raise SystemExit(f"No tile of {TILE} voxels a side lies within the brains: are these brains at 1.5 mm?")
    power = total / count / (window**2).sum()
    power[0, 0, 0] = power[power > 0].max()  # the mean of each tile was subtracted
    places = np.meshgrid(*(fft.fftfreq(n) * TILE % TILE for n in shape), indexing="ij")
    found: Array = ndimage.map_coordinates(power, places, order=1, mode="grid-wrap")
    return found


def responses(volume: Array, template: Array, power: Array | None) -> Array:
    """Correlate a volume with a template at each position of its corner, whitened if a spectrum is given."""
    padded = np.zeros(volume.shape, np.float32)
    padded[tuple(slice(n) for n in template.shape)] = template
    product = fft.fftn(volume, workers=1) * np.conj(fft.fftn(padded, workers=1))
    return np.real(fft.ifftn(product if power is None else product / power, workers=1))


def lesions_of(planted: Path) -> Iterator[tuple[str, Array, Array, float, list[Lesion]]]:
    """Yield for each subject its name, volumes without and with lesions, the voxel size, and its lesions."""
    known = {(row["case"], int(row["label"])): row for row in read_rows(planted / "lesions.csv")}
    for path in sorted((planted / "images").glob("*_lesions.nii.gz")):
        case = path.name.removesuffix(".nii.gz")
        changed, mask = voxels_of(path), voxels_of(planted / "masks" / path.name)
        subject = planted / "images" / f"{case.removesuffix('_lesions')}.nii.gz"
        volume = voxels_of(subject)
        signal, labels = changed - volume, mask.astype(int)
        found = []
        for label, core in enumerate(ndimage.find_objects(labels), start=1):
            box = tuple(slice(max(0, c.start - 4), c.stop + 4) for c in core)
            own = np.where((labels[box] == label) | (labels[box] == 0), signal[box], 0)
            row = known[case, label]
            found.append(Lesion(case, label, row["size"], float(row["contrast"]), box, own))
        yield case, volume, changed, float(nib.load(subject).header.get_zooms()[0]), found


def second_place(response: Array, reach: int) -> float:
    """Return the second highest peak, the threshold of one false positive."""
    peak = np.unravel_index(response.argmax(), response.shape)
    rest = response.copy()
    rest[tuple(slice(max(0, p - reach), p + reach + 1) for p in peak)] = -np.inf
    return float(rest.max())


def observe(lesion: Lesion, volume: Array, changed: Array, allowed: Array, power: Array) -> dict[str, float]:
    """Return the result of each observer for a lesion."""
    found: dict[str, float] = {}
    corner = tuple(part.start for part in lesion.box)
    half = [n // 2 for n in lesion.signal.shape]
    at_corner = np.roll(allowed, [-h for h in half], axis=(0, 1, 2))  # corner of the box whose centre lies inside
    near = tuple(slice(max(0, c - NEAR), c + NEAR + 1) for c in corner)
    for name, spectrum_of in (("place unknown", power), ("unwhitened", None)):
        template = lesion.signal if spectrum_of is not None else lesion.signal - lesion.signal.mean()
        normal = responses(volume, template, spectrum_of)
        abnormal = responses(changed, template, spectrum_of)
        everywhere = np.where(at_corner, normal, -np.inf)
        limit = second_place(everywhere, max(lesion.signal.shape) // 2)
        found[name] = float(abnormal[near].max() > limit)
        if spectrum_of is not None:
            deviation = float(normal[at_corner].std())
            found["d"] = float(abnormal[corner] - normal[corner]) / deviation
    return found


def model_finds(model: Model, planted: Path, case: str, allowed: Array, lesions: Sequence[Lesion]) -> list[bool]:
    """Return for each lesion of a subject whether a model's anomaly map finds it, by the observers' rule."""
    normal, abnormal = (
        np.asarray(model.predict(planted / "images" / f"{name}.nii.gz").anomaly_map[0])
        for name in (case.removesuffix("_lesions"), case)
    )
    labels = voxels_of(planted / "masks" / f"{case}.nii.gz").astype(int)
    everywhere = np.where(allowed, normal, -np.inf)
    found = []
    for lesion in lesions:
        near = ndimage.binary_dilation(labels == lesion.label, iterations=NEAR)
        limit = second_place(everywhere, max(lesion.signal.shape) // 2)
        found.append(bool(abnormal[near].max() > limit))
    return found


def main() -> None:
    parser = arguments(__doc__, "data", "output")
    parser.add_argument("--model", nargs="*", type=Path, default=[], help="trainings on the same split")
    given = parser.parse_args()
    models = {str(path): Model(path) for path in given.model}
    healthy = sorted((given.data / "healthy_t1").glob("*.nii.gz"))
    rest, _, _ = planted_lesions.split(healthy, N_SUBJECTS, 0)
    train, test, _ = planted_lesions.split(rest, N_SUBJECTS, 1)  # the development split of protocols.healthy_t1
    planted = given.output / "planted"
    if not (planted / "manifest.csv").exists():
        shapes = given.data / "ms_lesion/gold_masks_all30"
        planted_lesions.write(healthy, [], test, set(test), shapes, planted, 1, paired=True)
    spacing = float(nib.load(train[0]).header.get_zooms()[0])
    normals = ((volume, inside(volume, spacing)) for volume in map(voxels_of, train[:N_SUBJECTS]))
    power = spectrum(normals, nib.load(train[0]).shape)
    rows: list[dict[str, Any]] = []
    for case, volume, changed, size, lesions in lesions_of(planted):
        allowed = inside(volume, size)
        by_models = {name: model_finds(model, planted, case, allowed, lesions) for name, model in models.items()}
        for number, lesion in enumerate(lesions):
            row = {"case": case, "lesion": lesion.label, "size": lesion.size, "contrast": abs(lesion.contrast)}
            row |= {name: float(found[number]) for name, found in by_models.items()}
            rows.append(row | observe(lesion, volume, changed, allowed, power))
        print(case, flush=True)
    columns = ["place unknown", "unwhitened", *models]
    write_json(given.output / "ideal_observer.json", {"commit": commit(), "machine": processor(), "lesions": rows})
    write_rows(given.output / "ideal_observer.csv", list(rows[0]), (list(row.values()) for row in rows))
    print(f"\n{len(rows)} lesions in {len(test)} subjects; commit {commit()}; {processor()}.\n")
    print(
        "| lesions | number | AUROC, place known | found at one false positive per volume: "
        + " | ".join(columns)
        + " |"
    )
    print("|---|" + "---:|" * (2 + len(columns)))
    groups = [("all", lambda row: True)]
    groups += [(size, lambda row, size=size: row["size"] == size) for size in planted_lesions.SIZES_MM3]
    groups += [(f"contrast {c}", lambda row, c=c: row["contrast"] == c) for c in planted_lesions.CONTRASTS]
    for name, belongs in groups:
        chosen = [row for row in rows if belongs(row)]
        known = float(np.mean(norm.cdf(np.array([row["d"] for row in chosen]) / np.sqrt(2))))
        shares = [f"{np.mean([row[column] for row in chosen]):.2f}" for column in columns]
        print(f"| {name} | {len(chosen)} | {known:.3f} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
