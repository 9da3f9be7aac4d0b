"""The embedded data set on disk: synthetic volumes or slices, with masks and a manifest."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aeflow_monai.data.phantom import MAX_LESIONS, RECIPE, make_volume
from aeflow_monai.files import new_folder, write_json

__all__ = ["write_phantom", "write_phantom_slices"]


def write_phantom(
    folder: str | os.PathLike[str],
    *,
    n_train: int = 40,
    n_test_normal: int = 20,
    n_test_abnormal: int = 20,
    seed: int = 0,
) -> Path:
    """Write the data set as NIfTI volumes with a manifest, unless it is already there.

    The folder gets `images/<case>.nii.gz`, `masks/<case>.nii.gz` for abnormal cases, `manifest.csv` with the
    columns path, split, abnormal, mask, case, and `phantom.json`, which records how the folder was made. It
    appears complete or not at all, even if several processes write it at once.

    Args:
        folder: where the data set goes; absent, empty, or written earlier with the same arguments.
        n_train: normal volumes to train on.
        n_test_normal: normal volumes to test on.
        n_test_abnormal: volumes with 1 to 3 lesions to test on.
        seed: whole number from 0; the same seed gives the same bytes.

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is negative, or if the folder holds anything else.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "volumes")
        >>> folder = write_phantom(folder, n_train=1, n_test_normal=0, n_test_abnormal=1)
        >>> print((folder / "manifest.csv").read_text())
        path,split,abnormal,mask,case
        images/train_normal_000.nii.gz,train,0,,train_normal_000
        images/test_abnormal_000.nii.gz,test,1,masks/test_abnormal_000.nii.gz,test_abnormal_000
        <BLANKLINE>
    """
    counts = {"n_train": n_train, "n_test_normal": n_test_normal, "n_test_abnormal": n_test_abnormal}
    return _write_once(Path(folder), {"kind": "volumes", **counts, "seed": seed}, _write_volumes)


def write_phantom_slices(
    folder: str | os.PathLike[str],
    *,
    n_train: int = 40,
    n_test_normal: int = 20,
    n_test_abnormal: int = 20,
    seed: int = 0,
) -> Path:
    """Write one axial slice per volume as an 8-bit PNG, in a folder per class, unless it is already there.

    The folder gets `train/NORMAL`, `test/NORMAL`, `test/ABNORMAL` and, with the same file names,
    `test_masks/ABNORMAL` (0 and 255). Anterior is up and the patient's right is on the left. An abnormal slice
    is the one with the largest lesion area; a normal one lies where the same seed would have it, so heights agree.

    Args:
        folder: where the data set goes; absent, empty, or written earlier with the same arguments.
        n_train: normal slices to train on.
        n_test_normal: normal slices to test on.
        n_test_abnormal: slices with a lesion to test on.
        seed: whole number from 0; the same seed gives the same bytes.

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is negative, or if the folder holds anything else.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "slices")
        >>> folder = write_phantom_slices(folder, n_train=1, n_test_normal=0, n_test_abnormal=1)
        >>> sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))[:2]
        ['test/ABNORMAL/test_abnormal_000.png', 'test_masks/ABNORMAL/test_abnormal_000.png']
    """
    counts = {"n_train": n_train, "n_test_normal": n_test_normal, "n_test_abnormal": n_test_abnormal}
    return _write_once(Path(folder), {"kind": "slices", **counts, "seed": seed}, _write_slices)


def _write_volumes(folder: Path, asked: dict[str, Any]) -> None:
    """Fill a new folder with volumes, masks and the manifest."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rows = [("path", "split", "abnormal", "mask", "case")]
    for case, split, abnormal, seed, n_lesions in _cases(asked):
        volume = make_volume(seed, n_lesions if abnormal else 0)
        path, mask = f"images/{case}.nii.gz", f"masks/{case}.nii.gz" if abnormal else ""
        for name, voxels in ((path, volume.image), (mask, volume.mask)):
            if name:
                image = nib.Nifti1Image(voxels, volume.affine)
                image.set_qform(volume.affine, code="scanner")
                image.set_sform(volume.affine, code="scanner")
                image.header.set_xyzt_units("mm")
                nib.save(image, folder / name)
        rows.append((path, split, str(int(abnormal)), mask, case))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_slices(folder: Path, asked: dict[str, Any]) -> None:
    """Fill a new folder with slices and masks, one folder per class."""
    for name in ("train/NORMAL", "test/NORMAL", "test/ABNORMAL", "test_masks/ABNORMAL"):
        (folder / name).mkdir(parents=True)
    for case, split, abnormal, seed, n_lesions in _cases(asked):
        with_lesions = make_volume(seed, n_lesions)
        volume = with_lesions if abnormal else make_volume(seed)
        image, mask = (
            np.asarray(nib.as_closest_canonical(nib.Nifti1Image(a, volume.affine)).dataobj)
            for a in (volume.image, with_lesions.mask)
        )
        z = int(mask.sum((0, 1)).argmax())
        grey = np.clip(image / np.percentile(image, 99.5), 0, 1)
        kind = "ABNORMAL" if abnormal else "NORMAL"
        _save_png(folder / split / kind / f"{case}.png", grey[:, :, z])
        if abnormal:
            _save_png(folder / "test_masks" / kind / f"{case}.png", mask[:, :, z])


def _save_png(path: Path, plane: NDArray[Any]) -> None:
    """Save a RAS plane (X, Y) in [0, 1]: rows from front to back, columns from right to left."""
    Image.fromarray(np.rint(255 * plane[::-1, ::-1].T).astype(np.uint8)).save(path)


def _cases(asked: dict[str, Any]) -> list[tuple[str, str, bool, int, int]]:
    """Return name, split, abnormal, seed and number of lesions of each case; other counts do not affect a case."""
    cases = []
    groups = (
        ("train", False, "n_train"),
        ("test", False, "n_test_normal"),
        ("test", True, "n_test_abnormal"),
    )
    for group, (split, abnormal, count) in enumerate(groups):
        first = int(np.random.SeedSequence([asked["seed"], group]).generate_state(1)[0])
        for i in range(asked[count]):
            name = f"{split}_{'abnormal' if abnormal else 'normal'}_{i:03d}"
            cases.append((name, split, abnormal, first + i, 1 + i % MAX_LESIONS))
    return cases


def _write_once(folder: Path, asked: dict[str, Any], write: Callable[[Path, dict[str, Any]], None]) -> Path:
    """Write to a temporary folder and rename it, so that nobody ever sees half a data set."""
    for name in ("n_train", "n_test_normal", "n_test_abnormal", "seed"):
        if asked[name] < 0:
            raise ValueError(f"{name} must be 0 or larger, but is {asked[name]}.")
    asked = {"recipe": RECIPE, **asked}
    target = folder.resolve()  # a link to an empty folder is written through, not replaced
    if _is_written(target, asked):
        return folder
    try:
        with new_folder(target) as draft:
            write(draft, asked)
            files = sorted(p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file())
            write_json(draft / "phantom.json", {**asked, "files": files})
    except OSError:  # another process was first, which is fine if it wrote the same data set
        if not _is_written(target, asked):
            raise
    return folder


def _is_written(target: Path, asked: dict[str, Any]) -> bool:
    """Return whether the data set is there; refuse a folder that holds something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / "phantom.json").read_text(encoding="utf-8"))
        files = found.pop("files")
        missing = [name for name in files if not (target / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        held = "something that is no complete phantom data set (it has no readable phantom.json)"
    else:
        if found == asked and not missing:
            return True
        held = f"a phantom data set with {found}" + (f" which lacks {missing[0]}" if missing else "")
    raise ValueError(f"{target} holds {held}; asked was {asked}. Delete the folder or choose another one.")
