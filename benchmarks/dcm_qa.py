"""Compare DICOM images of the public dcm_qa repositories with the NIfTI files that dcm2niix makes of them.

    python benchmarks/dcm_qa.py CLONE [CLONE ...]

CLONE is a clone of github.com/neurolabusc/dcm_qa, dcm_qa_nih or another of that family, with DICOM in `In` and the
reference in `Ref`. Each DICOM image is compared with the reference of its series: the affine, to 0.01 mm at the
corners, and the voxels. Prints a table; the exit status is 1 if an image differs from its reference, 2 if there is
nothing to compare. Refused images are named with the reason, and do not count as differences.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pydicom

from aeflow_monai.data import LoadCased
from aeflow_monai.data.dicom.headers import quiet
from aeflow_monai.data.dicom.image import Image
from aeflow_monai.data.dicom.series import contents_of
from aeflow_monai.geometry import TOLERANCE_MM


class Row(NamedTuple):
    """The comparison of one image with its reference."""

    reference: str
    volume: int
    corner_mm: float  # largest distance of a corner
    voxels: float  # largest difference, as a fraction of the largest value
    said: str


def report(rows: Sequence[Row], wanted: str) -> int:
    """Print a table of the comparisons, and return the exit status."""
    if not rows:
        print(f"Nothing to compare: give the paths of {wanted}.")
        return 2
    wrong = [row for row in rows if not row.said and (row.corner_mm > TOLERANCE_MM or row.voxels > 1e-5)]
    print("| image | volume | corners, mm | voxels | |\n|---|---|---|---|---|")
    for row in rows:
        verdict = row.said or ("other" if row in wrong else "same")
        print(f"| {row.reference} | {row.volume} | {row.corner_mm:.2g} | {row.voxels:.2g} | {verdict} |")
    refused = sum(bool(row.said) for row in rows)
    print(
        f"{len(rows) - refused - len(wrong)} the same, {len(wrong)} otherwise, {refused} refused or without reference"
    )
    return int(bool(wrong))


def compare(clone: Path) -> Iterator[Row]:
    """Compare each DICOM image of a clone with its reference."""
    references = _references(clone / "Ref")
    load = LoadCased("image")
    for folder in sorted(path for path in (clone / "In").rglob("*") if path.is_dir()):
        for image in contents_of(folder).images:
            reference = references.get(_key(image.files[0].path))
            for volume, source in _sources(image):
                if reference is None:
                    yield Row(image.path.name, volume, np.nan, np.nan, "no reference")
                    continue
                try:
                    read = load({"image": source})["image"]
                except ValueError as error:
                    yield Row(reference.name, volume, np.nan, np.nan, str(error))
                    continue
                yield compare_volume(read, reference, volume)


def _sources(image: Image) -> list[tuple[int, str]]:
    """Return volume numbers in the reference and paths; each file of a mosaic series is a volume."""
    if all("MOSAIC" in file.image_type for file in image.files):
        return sorted(((file.whole("AcquisitionNumber") or 1) - 1, str(file.path)) for file in image.files)
    return [(0, str(image.path))]


def compare_volume(read: Any, reference: Path, volume: int = 0) -> Row:
    """Compare an image with one volume of a file read by nibabel."""
    wanted = nib.as_closest_canonical(nib.load(reference))
    got = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(read[0]), read.affine.numpy()))
    voxels = wanted.get_fdata()
    voxels = voxels[..., volume] if voxels.ndim > 3 else voxels
    if voxels.shape != got.shape:
        return Row(reference.name, volume, np.inf, np.inf, "")
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(np.array(got.shape) - 1), 1]
    distance = np.linalg.norm((corners @ (got.affine - wanted.affine).T)[:, :3], axis=1).max()
    return Row(reference.name, volume, distance, np.abs(got.get_fdata() - voxels).max() / np.abs(voxels).max(), "")


def _references(folder: Path) -> dict[tuple[int, str], Path]:
    """Return NIfTI files by number and description of their series, where these are unique."""
    found = defaultdict(list)
    for sidecar in sorted(folder.rglob("*.json")):
        said = json.loads(sidecar.read_text(encoding="utf-8"))
        for suffix in (".nii", ".nii.gz"):
            if (image := sidecar.with_suffix(suffix)).is_file():
                found[said.get("SeriesNumber", 0), _plain(said.get("SeriesDescription", ""))].append(image)
    return {key: images[0] for key, images in found.items() if len(images) == 1}


def _key(path: Path) -> tuple[int, str]:
    with quiet():
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesNumber", "SeriesDescription"])
    return int(header.get("SeriesNumber") or 0), _plain(str(header.get("SeriesDescription", "")))


def _plain(text: str) -> str:
    return "".join(sign for sign in text.lower() if sign.isalnum())


if __name__ == "__main__":
    sys.exit(report([row for clone in sys.argv[1:] for row in compare(Path(clone))], "clones with folders In and Ref"))
