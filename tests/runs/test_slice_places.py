"""A lesion is named by the slice of its file, however the file is stored: number, axis and position in mm."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from dicom_writer import SHAPE, slice_of
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Spacingd
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from outputs import table
from PIL import Image
from scipy.spatial.transform import Rotation

from aeflow_monai.geometry import PLANES
from aeflow_monai.output.maps import WriteMapsd
from aeflow_monai.output.slice_place import SlicePlace, most_anomalous_place, slice_places, voxel_of_file
from aeflow_monai.result_files import PEAK_COLUMNS

Array = npt.NDArray[Any]

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]
LESION = (3, 7, 2)  # voxel of the file in RAS


@pytest.fixture(scope="module")
def preprocessing() -> Compose:
    """The bundle's, with intensities as they are."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.yaml", CONFIGS / "inference.yaml"])
    parser["intensity"] = {"_target_": "Identityd", "keys": "image"}
    found: Compose = parser.get_parsed_content("preprocessing")
    return found


def scan(angles: tuple[float, ...] = (0, 0, 0), spacing: tuple[float, ...] = (1.0, 2.0, 5.0)) -> nib.Nifti1Image:
    """A volume in RAS with a lesion of one voxel."""
    values = np.random.default_rng(0).random((9, 12, 6), np.float32)
    values[LESION] = 100
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = -12, 34, -5
    return nib.Nifti1Image(values, affine)


def stored(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The same image with its axes in another order and direction."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def places_of(image: Any) -> dict[str, SlicePlace]:
    """Place of the brightest slice of each plane."""
    found = {}
    for name, plane in PLANES.items():
        others = [axis for axis in range(3) if axis != plane.axis]
        place = most_anomalous_place(image, {name: image.as_tensor()[0].amax(dim=others)})
        assert place is not None
        found[name] = place
    return found


def assert_of_file(places: dict[str, SlicePlace], values: Array) -> None:
    """Each names the slice of this array that holds the lesion, each along another axis."""
    lesion = np.unravel_index(values.argmax(), values.shape)
    for place in places.values():
        axis = "ijk".index(place.axis)
        assert place.slice_from_0 == lesion[axis]
        assert place.n_slices == values.shape[axis]
    assert {place.axis for place in places.values()} == set("ijk")


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("angles", [(0, 0, 0), (12, -8, 20)], ids=["straight", "oblique"])
def test_a_lesion_is_named_by_its_slice_of_the_file(
    codes: str, angles: tuple[float, ...], preprocessing: Compose, tmp_path: Path
) -> None:
    image = stored(scan(angles), codes)
    assert nib.aff2axcodes(image.affine) == tuple(codes)
    nib.save(image, tmp_path / "a.nii")
    loaded = preprocessing({"image": tmp_path / "a.nii"})["image"]
    places = places_of(loaded)
    assert_of_file(places, image.get_fdata())
    brightest = [int(index) for index in np.unravel_index(int(loaded.argmax()), loaded.shape)[1:]]
    peak, lesion = voxel_of_file(loaded, brightest), np.unravel_index(image.get_fdata().argmax(), image.shape)
    assert peak.voxel_from_0 == lesion
    assert peak.ras_mm == pytest.approx(nib.affines.apply_affine(image.affine, lesion), abs=1e-3)
    letters = dict(zip(("axial", "coronal", "sagittal"), ("SI", "AP", "RL"), strict=True))
    for name, place in places.items():
        assert codes["ijk".index(place.axis)] in letters[name]
        center = (np.array(image.shape) - 1) / 2
        center["ijk".index(place.axis)] = place.slice_from_0
        np.testing.assert_allclose(place.center_ras_mm, nib.affines.apply_affine(image.affine, center), atol=2e-3)
        assert place.position_mm == place.center_ras_mm["RAS".index(letters[name].strip("LPI"))]  # type: ignore[index]


@pytest.mark.parametrize(
    "columns",
    [
        [[2, 0, 0], [0, 3, 0], [0, 0, 5]],
        [[0, 2, 0], [0, 0, -3], [5, 0, 0]],
        [[-2, 0, 0], [0, 0, 3], [0, 5, 0]],
        [[2, 0, 0], [0, 1.732, 1], [0, -2.5, 4.33]],
        [[0, -2, 0], [3, 0, 0], [0, 0, 5]],
    ],
    ids=["axial", "sagittal", "coronal", "oblique", "turned"],
)
def test_a_lesion_of_a_2d_image_is_named_by_its_pixel_of_the_file(
    columns: list[list[float]], preprocessing: Compose, tmp_path: Path
) -> None:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.array(columns).T, (-48, -56, -50)
    values = np.random.default_rng(0).random((48, 56), dtype=np.float32)
    values[18, 31] = 4
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii")
    loaded = preprocessing({"image": tmp_path / "a.nii"})["image"]
    brightest = [int(index) for index in np.unravel_index(int(loaded.argmax()), loaded.shape)[1:]]
    peak = voxel_of_file(loaded, brightest)
    assert peak.voxel_from_0 == (18, 31)
    assert peak.ras_mm == pytest.approx(nib.affines.apply_affine(affine, (18, 31, 0)), abs=1e-3)


def test_a_picture_has_no_position_in_mm(preprocessing: Compose, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (48, 56), dtype=np.uint8)
    values[18, 31] = 255  # row and column
    Image.fromarray(values).save(tmp_path / "a.png")
    loaded = preprocessing({"image": tmp_path / "a.png"})["image"]
    brightest = [int(index) for index in np.unravel_index(int(loaded.argmax()), loaded.shape)[1:]]
    assert voxel_of_file(loaded, brightest) == ((31, 18), None)


@pytest.mark.parametrize("extension", [".nrrd", ".mha"])
def test_so_it_is_in_formats_that_count_to_the_left_and_back(
    extension: str, preprocessing: Compose, tmp_path: Path
) -> None:
    image = stored(scan((12, -8, 20)), "PIR")
    values = np.asarray(image.dataobj)
    lps = np.diag([-1, -1, 1, 1]) @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    written = itk.image_from_array(np.ascontiguousarray(values.T))
    written.SetSpacing(spacing.tolist())
    written.SetOrigin(lps[:3, 3].tolist())
    written.SetDirection(lps[:3, :3] / spacing)
    itk.imwrite(written, tmp_path / f"a{extension}")
    nib.save(image, tmp_path / "a.nii")
    found, expected = (
        places_of(preprocessing({"image": tmp_path / name})["image"]) for name in (f"a{extension}", "a.nii")
    )
    assert_of_file(found, values)
    for name, place in found.items():
        assert place[:4] == expected[name][:4]
        np.testing.assert_allclose(place.center_ras_mm, expected[name].center_ras_mm, atol=2e-3)


def test_of_a_dicom_folder_it_is_the_slice_of_the_maps_that_are_written(preprocessing: Compose, tmp_path: Path) -> None:
    """By eye: the fifth slice of 3 mm from the lowest, which is at 0; the file names run the other way."""
    folder = tmp_path / "series"
    folder.mkdir()
    for k in range(6):
        image = slice_of(k)
        values = np.zeros(SHAPE, np.uint16)
        values[30, 20] = 900 if k == 4 else 0
        image.PixelData = values.tobytes()
        image.save_as(folder / f"{9 - k}.dcm", enforce_file_format=True)
    image = preprocessing({"image": str(folder)})["image"]
    places = places_of(image)
    WriteMapsd("residual", tmp_path, ".nii")({"case": "a", "residual": image})
    written = nib.load(tmp_path / "a_residual.nii")
    assert_of_file(places, written.get_fdata())
    assert str(places["axial"]) == "axial, k = 4 (0 to 5), S +12.0 mm"


@pytest.mark.parametrize("codes", ["RAS", "PIL", "SLA"])
def test_of_a_resampled_volume_it_is_the_nearest_slice(codes: str, preprocessing: Compose, tmp_path: Path) -> None:
    image = stored(scan((12, -8, 20)), codes)
    nib.save(image, tmp_path / "a.nii")
    fine = Compose([preprocessing, Spacingd("image", pixdim=(0.9, 0.7, 1.1), mode="nearest")])
    volume = fine({"image": tmp_path / "a.nii"})["image"]
    assert_of_file(places_of(volume), image.get_fdata())
    for name, plane in PLANES.items():
        places = slice_places(volume, name)
        assert len(places) == volume.shape[1 + plane.axis]
        numbers = [place.slice_from_0 for place in places]
        assert numbers in (sorted(numbers), sorted(numbers, reverse=True))
        assert {0, places[0].n_slices - 1} <= set(numbers)
        assert len({place.position_mm for place in places}) == len(places)


def test_the_axis_of_a_file_is_found_by_its_direction_whatever_its_voxels() -> None:
    """Thick slices, thin pixels, and a volume that was turned by 20 degrees against them."""
    file = np.diag([0.2, 0.2, 8.0, 1.0])
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("y", 20, degrees=True).as_matrix() @ [[0, -1, 0], [-1, 0, 0], [0, 0, 1]]
    stored = {"original_affine": torch.as_tensor(file), "spatial_shape": (400, 400, 10)}
    volume = MetaTensor(torch.zeros(1, 40, 40, 40), affine=torch.as_tensor(turned), meta=stored)
    assert {name: slice_places(volume, name)[0].axis for name in PLANES} == {
        "axial": "k",
        "coronal": "j",
        "sagittal": "i",
    }


@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 1)])
def test_an_image_of_one_slice_has_no_slice_to_name(
    shape: tuple[int, ...], preprocessing: Compose, tmp_path: Path
) -> None:
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape, np.float32), scan().affine), tmp_path / "a.nii")
    image = preprocessing({"image": tmp_path / "a.nii"})["image"]
    assert slice_places(image, "axial") == []
    assert most_anomalous_place(image, {"axial": torch.ones(1)}) is None


def test_without_a_slice_or_an_affine_no_more_is_said_than_is_known() -> None:
    volume = torch.zeros(1, 4, 5, 3)
    assert most_anomalous_place(volume, {"axial": torch.full((3,), torch.nan)}) is None
    place = most_anomalous_place(volume, {"sagittal": torch.arange(5.0)})
    assert place == SlicePlace("sagittal", "j", 4, 5, None)
    assert str(place) == "sagittal, j = 4 (0 to 4)"
    assert place.position_mm is None


def test_the_peak_in_the_table_is_that_of_the_map(inferred: Path) -> None:
    rows = table(inferred / "scores.csv")
    assert rows
    for row in rows:
        image = nib.load(inferred / f"{row['case']}_anomaly_map.nii.gz")
        values = image.get_fdata()
        *indices, right, front, up = (float(row[column]) for column in PEAK_COLUMNS)
        voxel = tuple(map(int, indices))
        axis, number = "ijk".index(row["axis"]), int(row["slice_from_0"])
        assert voxel[axis] == number
        assert values[voxel] == pytest.approx(values.take(number, axis=axis).max())
        assert (right, front, up) == pytest.approx(nib.affines.apply_affine(image.affine, voxel), abs=1e-3)


def test_the_peak_of_a_picture_is_a_column_and_a_row(
    tmp_path: Path, trained: Path, run_workflow: Callable[..., Any]
) -> None:
    pixels = np.random.default_rng(0).integers(90, 110, (50, 80), np.uint8)
    pixels[5:12, 60:70] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    where = {"dataset_dir": str(tmp_path / "a.png"), "output_dir": str(tmp_path / "MAPS")}
    run_workflow(trained / "configs/inference.yaml", **where)
    (row,) = table(tmp_path / "MAPS/scores.csv")
    values = nib.load(tmp_path / "MAPS/a_anomaly_map.nii.gz").get_fdata().squeeze()
    assert values.shape == (80, 50)
    assert np.unravel_index(values.argmax(), values.shape) == (int(row["peak_i"]), int(row["peak_j"]))
    assert row["peak_k"] == ""
