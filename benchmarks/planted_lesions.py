"""A test set with known ground truth: healthy T1 volumes, half of the held-out ones with planted lesions.

Lesions have the shapes of real ones (connected components of expert masks of multiple sclerosis), are darker or
brighter than the tissue by a known fraction, have soft edges, and lie inside the brain. Voxels of a mask hold the
lesion's label in lesions.csv; a thin shape may be split at this resolution. Subjects are split by a seed; the same seed
gives the same bytes, which the printed checksum verifies. The data are synthetic: there is no domain shift, and the
lesions imitate no disease. Usage:

    python benchmarks/planted_lesions.py --healthy DIR/healthy_t1 --shapes DIR/ms_lesion/gold_masks_all30 --output DIR

With --paired each held-out subject is written without and with lesions, so that no difference between subjects can
favour a method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from shared import arguments, write_rows

SIZES_MM3 = {"small": (100, 300), "medium": (300, 1000), "large": (1000, 5000)}
CONTRASTS = (0.2, 0.35, 0.5)  # fraction by which the tissue's signal changes
LESIONS_PER_SUBJECT = 6


def lesion_shapes(folder: Path) -> dict[str, list[np.ndarray]]:
    """Return connected components of the masks by size, each a boolean box with 1 mm voxels."""
    shapes: dict[str, list[np.ndarray]] = {size: [] for size in SIZES_MM3}
    for file in sorted(folder.glob("*.nii.gz")):
        labels, _ = ndimage.label(np.asarray(nib.load(file).dataobj) > 0, np.ones((3, 3, 3)))
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            part = labels[box] == number
            for size, (low, high) in SIZES_MM3.items():
                if low <= part.sum() < high:
                    shapes[size].append(part)
    return shapes


def plant(
    rng: np.random.Generator, image: np.ndarray, spacing: float, shapes: dict[str, list[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, list[dict[str, object]]]:
    """Return the image with lesions, their mask, and the properties of each lesion."""
    changed = image.astype(np.float32)
    mask = np.zeros(image.shape, np.uint8)
    brain = ndimage.binary_fill_holes(image > 0)
    depth = ndimage.distance_transform_edt(brain) * spacing
    taken = np.zeros(image.shape, bool)
    planted: list[dict[str, object]] = []
    # every subject gets each size and each contrast twice, alternately darker and brighter
    sizes = list(SIZES_MM3) * (LESIONS_PER_SUBJECT // len(SIZES_MM3))
    contrasts = [sign * c for sign in (-1, 1) for c in CONTRASTS]
    for label, (size, contrast) in enumerate(zip(sizes, rng.permutation(contrasts), strict=True), start=1):
        soft = np.zeros(0)
        while (soft >= 0.5).sum() * spacing**3 < SIZES_MM3["small"][0] / 2:  # thin shapes vanish at this resolution
            shape = shapes[size][rng.integers(len(shapes[size]))]
            for flipped in np.flatnonzero(rng.integers(0, 2, 3)):
                shape = np.flip(shape, flipped)
            soft = ndimage.zoom(np.pad(shape, 3).astype(np.float32), 1 / spacing, order=1)
            soft = ndimage.gaussian_filter(soft, 0.6)
        half = [n // 2 for n in soft.shape]
        candidates = np.argwhere((depth > 8) & ~taken)
        for _ in range(1000):
            corner = candidates[rng.integers(len(candidates))] - half
            box = tuple(slice(c, c + n) for c, n in zip(corner, soft.shape, strict=True))
            if (corner < 0).any() or any(b.stop > n for b, n in zip(box, image.shape, strict=True)):
                continue
            core = soft >= 0.5
            if core.any() and brain[box][core].all() and not taken[box][core].any():
                break
        else:
            raise RuntimeError(f"No room for a {size} lesion.")
        changed[box] *= 1 + contrast * soft * brain[box]
        mask[box][core] = label
        taken[box] |= ndimage.binary_dilation(core, iterations=4)
        planted.append({"label": label, "size": size, "contrast": round(float(contrast), 2), "voxels": int(core.sum())})
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8), mask, planted


def split(files: Sequence[Path], n_test: int, seed: int) -> tuple[list[Path], list[Path], set[Path]]:
    """Split healthy volumes, sorted by name, into training and test volumes, and those of the test with lesions."""
    order = np.random.default_rng(seed).permutation(len(files))
    test = [files[i] for i in sorted(order[:n_test])]
    return [file for file in files if file not in test], test, {files[i] for i in order[: n_test // 2]}


def case_of(file: Path) -> str:
    """Return the subject's name."""
    return file.name.partition("_")[0]


def write(
    healthy: Sequence[Path],
    train: Container[Path],
    test: Container[Path],
    abnormal: Container[Path],
    shapes_of: Path,
    output: Path,
    seed: int,
    paired: bool = False,
) -> str:
    """Write the volumes, the masks, manifest.csv and lesions.csv, and return the checksum of all files.

    Args:
        healthy: healthy volumes, whose index seeds their lesions.
        train: volumes to train on.
        test: volumes to test on.
        abnormal: volumes that get lesions; if `paired`, all are also written without.
        shapes_of: folder of the masks whose components are the shapes of lesions.
        output: folder to write to.
        seed: seed of the lesions.
        paired: see `abnormal`.
    """
    shapes = lesion_shapes(shapes_of)
    print("shapes: " + ", ".join(f"{len(found)} {size}" for size, found in shapes.items()))
    (output / "images").mkdir(parents=True, exist_ok=True)
    (output / "masks").mkdir(exist_ok=True)
    rows: list[list[object]] = []
    lesions: list[list[object]] = []
    for number, file in enumerate(healthy):
        if file not in train and file not in test:
            continue
        subject, section = case_of(file), "test" if file in test else "train"
        source = nib.load(file)
        voxels = np.asarray(source.dataobj)
        written: list[tuple[str, np.ndarray, np.ndarray | None]] = []
        if file not in abnormal or paired:
            written.append((subject, voxels, None))
        if file in abnormal:
            rng = np.random.default_rng([seed, number])
            changed, found, planted = plant(rng, voxels, float(source.header.get_zooms()[0]), shapes)
            case = f"{subject}_lesions" if paired else subject
            written.append((case, changed, found))
            lesions += [[case, *lesion.values()] for lesion in planted]
        for case, image, mask in written:
            nib.save(nib.Nifti1Image(image, source.affine, source.header), output / f"images/{case}.nii.gz")
            mask_path = ""
            if mask is not None:
                mask_path = f"masks/{case}.nii.gz"
                nib.save(nib.Nifti1Image(mask, source.affine, source.header), output / mask_path)
            is_abnormal = str(int(mask is not None))
            rows.append([f"images/{case}.nii.gz", section, is_abnormal, mask_path, case, subject])
    write_rows(output / "manifest.csv", ["path", "split", "abnormal", "mask", "case", "patient"], rows)
    write_rows(output / "lesions.csv", ["case", "label", "size", "contrast", "voxels"], lesions)
    digest = hashlib.sha256()
    for path in sorted(p for p in output.rglob("*") if p.suffix in (".gz", ".csv")):
        digest.update(path.relative_to(output).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = arguments(__doc__, "healthy", "shapes", "output")
    parser.add_argument("--n_test", type=int, default=20, help="held-out subjects; half of them get lesions")
    parser.add_argument("--paired", action="store_true", help="each of them is there as it is, and with lesions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    healthy = sorted(given.healthy.glob("*.nii.gz"))
    train, test, half = split(healthy, given.n_test, given.seed)
    abnormal = set(test) if given.paired else half
    digest = write(healthy, train, test, abnormal, given.shapes, given.output, given.seed, given.paired)
    counts = f"{len(train)} to train on, {len(test)} to test on, {len(abnormal)} of them with lesions"
    print(f"{given.output}: {counts}; sha256 of all files {digest}")


if __name__ == "__main__":
    main()
