import csv
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from outputs import contents, unequal
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from aeflow_monai.data.phantom import PhantomVolume, make_volume
from aeflow_monai.data.phantom_files import write_phantom, write_phantom_slices

COUNTS = {"n_train": 2, "n_test_normal": 1, "n_test_abnormal": 2}
SEEDS = range(10)
Pairs = list[tuple[PhantomVolume, PhantomVolume]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Each head without and with lesions."""
    return [(make_volume(seed), make_volume(seed, 1 + seed % 3)) for seed in SEEDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "new" / "volumes", **COUNTS)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_slices(tmp_path_factory.mktemp("phantom") / "slices", **COUNTS)


def upright(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(voxels, affine)).dataobj)


def test_types_and_shapes(pairs: Pairs) -> None:
    for volume in (v for pair in pairs for v in pair):
        assert volume.image.dtype == np.int16
        assert volume.mask.dtype == np.uint8
        assert volume.affine.dtype == np.float64
        assert volume.image.shape == volume.mask.shape
        assert upright(volume.image, volume.affine).shape == (96, 112, 20)
        assert volume.image.min() >= 0


def test_same_seed_same_volume_other_seed_other_volume() -> None:
    one, again, other = make_volume(3, 2), make_volume(3, 2), make_volume(4, 2)
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.image, other.image)


def test_lesions_change_nothing_but_their_surroundings(pairs: Pairs) -> None:
    for normal, abnormal in pairs:
        np.testing.assert_array_equal(normal.affine, abnormal.affine)
        assert not normal.mask.any()
        spacing = nib.affines.voxel_sizes(abnormal.affine)
        to_lesion = ndimage.distance_transform_edt(abnormal.mask == 0, sampling=spacing)
        changed = normal.image != abnormal.image
        assert changed[abnormal.mask == 1].mean() > 0.9
        assert to_lesion[changed].max() < 8  # mm


def test_lesions_lie_inside_the_head_and_fill_a_slice(pairs: Pairs) -> None:
    for seed, (normal, abnormal) in zip(SEEDS, pairs, strict=True):
        image, mask = upright(normal.image, normal.affine), upright(abnormal.mask, abnormal.affine)
        labels, n = ndimage.label(ndimage.binary_closing(mask, np.ones((3, 3, 1))))
        assert n == 1 + seed % 3
        assert min((labels == i).sum((0, 1)).max() for i in range(1, n + 1)) >= 20
        head = ndimage.binary_fill_holes(ndimage.median_filter(image, (3, 3, 1)) > 0.25 * np.percentile(image, 99))
        head = np.stack([ndimage.binary_fill_holes(head[:, :, z]) for z in range(20)], -1)
        assert head[mask == 1].all()
        assert 0.15 < head.mean() < 0.6


def test_affine_is_oblique_anisotropic_and_of_varying_orientation(pairs: Pairs) -> None:
    orientations = set()
    for volume, _ in pairs:
        in_plane, also_in_plane, slices = sorted(nib.affines.voxel_sizes(volume.affine))
        assert 1.9 < in_plane < also_in_plane < 2.2
        assert 4.5 < slices < 5.5
        assert 1 < np.degrees(nib.affines.obliquity(volume.affine)).max() < 30
        np.testing.assert_allclose(volume.affine @ np.linalg.inv(volume.affine), np.eye(4), atol=1e-9)
        centre = volume.affine @ [*(np.array(volume.image.shape) - 1) / 2, 1]
        assert np.abs(centre[:3]).max() <= 10 + 1e-6  # mm
        orientations.add(nib.aff2axcodes(volume.affine))
    assert len(orientations) >= 3


def test_intensity_statistics_do_not_tell_lesions(pairs: Pairs) -> None:
    # Both groups are the same heads, so what is measured is the lesions and not the luck of the draw.
    cases, slices = ([], []), ([], [])
    for normal, abnormal in pairs:
        heights = np.flatnonzero(upright(abnormal.mask, abnormal.affine).sum((0, 1)) >= 20)
        for group, volume in enumerate((normal, abnormal)):
            raw = upright(volume.image, volume.affine).astype(np.float64)
            scaled = np.clip(raw / np.percentile(raw, 99.5), 0, 1)
            cases[group].append(statistics(raw) + statistics(scaled))
            slices[group].extend(statistics(raw[:, :, z]) + statistics(scaled[:, :, z]) for z in heights)
    for normals, abnormals in (cases, slices):
        truth = [0] * len(normals) + [1] * len(abnormals)
        for values in np.array(normals + abnormals).T:
            assert abs(roc_auc_score(truth, values) - 0.5) < 0.15


def statistics(voxels: np.ndarray) -> list[float]:
    return [voxels.mean(), voxels.std(), *np.percentile(voxels, (5, 95, 99))]


def test_lesions_are_visible(pairs: Pairs) -> None:
    for normal, abnormal in pairs:
        change = np.abs(abnormal.image.astype(float) - normal.image)[abnormal.mask == 1].mean()
        assert change > 0.08 * np.percentile(normal.image, 99.5)


def test_manifest_matches_files(folder: Path) -> None:
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "split", "abnormal", "mask", "case"]
    assert [(r["split"], r["abnormal"]) for r in rows] == [("train", "0")] * 2 + [("test", "0")] + [("test", "1")] * 2
    assert len({r["case"] for r in rows}) == len(rows)
    for row in rows:
        image = nib.load(folder / row["path"])
        assert row["path"] == f"images/{row['case']}.nii.gz"
        assert image.get_data_dtype() == np.int16
        assert (row["mask"] != "") == (row["abnormal"] == "1")
        np.testing.assert_allclose(image.get_qform(coded=True)[0], image.get_sform(coded=True)[0], atol=1e-3)
        if row["mask"]:
            mask = nib.load(folder / row["mask"])
            assert mask.get_data_dtype() == np.uint8
            assert mask.get_fdata().any()
            np.testing.assert_array_equal(mask.affine, image.affine)
    listed = {r["path"] for r in rows} | {r["mask"] for r in rows if r["mask"]}
    assert listed | {"manifest.csv", "phantom.json"} == set(contents(folder))


def test_same_bytes_again_and_no_drafts_left(folder: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: write_phantom(tmp_path / "volumes", **COUNTS), range(2)))
    assert contents(tmp_path / "volumes") == contents(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["volumes"]


def test_cases_do_not_depend_on_the_other_counts(folder: Path, tmp_path: Path) -> None:
    few = write_phantom(tmp_path / "few", n_train=0, n_test_normal=1, n_test_abnormal=0)
    name = "images/test_normal_000.nii.gz"
    assert unequal(few, folder, [name]) == []


def test_complete_folder_is_left_alone(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder, *folder.rglob("*"))}
    assert write_phantom(folder, **COUNTS) == folder
    assert {p: p.stat().st_mtime_ns for p in (folder, *folder.rglob("*"))} == before


def test_empty_folder_is_used(tmp_path: Path) -> None:
    assert (write_phantom(tmp_path, n_train=0, n_test_normal=0, n_test_abnormal=0) / "manifest.csv").is_file()


def test_folder_with_other_arguments_is_an_error(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match=r"'seed': 0\}; asked was .*'seed': 1\}. Delete the folder or choose another"):
        write_phantom(folder, **COUNTS, seed=1)
    with pytest.raises(ValueError, match=r"holds a phantom data set with .*'kind': 'volumes'.*asked was .*'slices'"):
        write_phantom_slices(folder, **COUNTS)
    assert contents(folder) == before


def test_folder_with_users_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds something that is no complete phantom data set")):
        write_phantom(tmp_path, **COUNTS)
    with pytest.raises(ValueError, match="Delete the folder or choose another one"):
        write_phantom(tmp_path / "mine.txt", **COUNTS)
    assert contents(tmp_path) == before


def test_folder_which_lost_a_file_is_an_error(tmp_path: Path) -> None:
    counts = {"n_train": 1, "n_test_normal": 0, "n_test_abnormal": 0}
    write_phantom(tmp_path / "volumes", **counts)
    (tmp_path / "volumes" / "images" / "train_normal_000.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"which lacks images/train_normal_000\.nii\.gz"):
        write_phantom(tmp_path / "volumes", **counts)


def test_slices_layout(slices: Path) -> None:
    assert set(contents(slices)) == {
        "phantom.json",
        "train/NORMAL/train_normal_000.png",
        "train/NORMAL/train_normal_001.png",
        "test/NORMAL/test_normal_000.png",
        "test/ABNORMAL/test_abnormal_000.png",
        "test/ABNORMAL/test_abnormal_001.png",
        "test_masks/ABNORMAL/test_abnormal_000.png",
        "test_masks/ABNORMAL/test_abnormal_001.png",
    }
    for path in slices.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (96, 112))
            pixels = np.asarray(image)
        if "test_masks" in path.parts:
            assert set(np.unique(pixels)) == {0, 255}
        else:
            assert pixels.max() == 255
    before = {p: p.stat().st_mtime_ns for p in slices.rglob("*")}
    assert write_phantom_slices(slices, **COUNTS) == slices
    assert {p: p.stat().st_mtime_ns for p in slices.rglob("*")} == before


def test_slices_stand_upright(folder: Path, slices: Path) -> None:
    mask_file = nib.load(folder / "masks" / "test_abnormal_001.nii.gz")
    mask = np.asarray(mask_file.dataobj)
    with Image.open(slices / "test_masks" / "ABNORMAL" / "test_abnormal_001.png") as image:
        row, column = (int(i.mean()) for i in np.nonzero(np.asarray(image)))
    # The pixel goes back to world coordinates by hand: rows run to the back, columns to the patient's left.
    canonical = nib.as_closest_canonical(mask_file)
    z = np.asarray(canonical.dataobj).sum((0, 1)).argmax()
    world = canonical.affine @ [95 - column, 111 - row, z, 1]
    i, j, k = np.rint(np.linalg.inv(mask_file.affine) @ world)[:3].astype(int)
    assert mask[i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be 0 or larger, but is -1."),
        ({"seed": 0, "n_lesions": 4}, "n_lesions must be 0 to 3, but is 4."),
    ],
)
def test_volume_arguments_are_checked(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_volume(**arguments)


def test_counts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"n_train must be 0 or larger, but is -1\."):
        write_phantom(tmp_path / "volumes", n_train=-1)
    assert not list(tmp_path.iterdir())
