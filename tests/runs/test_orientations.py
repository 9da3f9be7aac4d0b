"""The big law: a head gives the same maps in the world, however its volume is stored."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from aeflow_monai.geometry import Places
from aeflow_monai.output.inversion import InvertMapd
from aeflow_monai.output.maps import WriteMapsd

Array = npt.NDArray[Any]
Maps = dict[str, tuple[Array, Array]]

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
PLANES = ["axial", "coronal", "sagittal"]
MAPS = ("anomaly_map", "reconstruction", "residual", "log_likelihood")
NETWORK = {
    "image_size": [64, 64],
    "encoder_weights": "random",
    "network_def#network#n_steps": 1,
    "network_def#network#hidden_channels": 4,
    "slicer#fit": "pad",
    "device": "cpu",
}
RESAMPLING = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"},
    ],
}

# --- a head in the world, in mm to the right, to the front and up -----------------------------------------------------

CENTRE = np.array([5.0, -8.0, 12.0])
RADII = np.array([15.0, 19.0, 13.0])
BLOBS = [((7, 4, 3), 4.0, 500), ((-6, 8, -2), 3.0, 300), ((2, -9, 5), 3.5, -250)]  # place from the centre, size, value


def depth(points: Array) -> Array:
    """Of points (3, ...): 1 in the head's centre, 0 on its surface, negative outside."""
    distance = (points - CENTRE.reshape(3, *[1] * (points.ndim - 1))) / RADII.reshape(3, *[1] * (points.ndim - 1))
    return 1 - np.sqrt((distance**2).sum(axis=0))


def head(points: Array) -> Array:
    """Intensity at points (3, ...): a soft rim, then tissue with two bright blobs and a dark one; 0 outside."""
    values = np.full(points.shape[1:], 400.0)
    for place, size, value in BLOBS:
        offset = points - (CENTRE + place).reshape(3, *[1] * (points.ndim - 1))
        values += value * np.exp(-0.5 * (offset**2).sum(axis=0) / size**2)
    return values * np.clip(4 * depth(points), 0, 1)


def grid(shape: tuple[int, ...], affine: Array) -> Array:
    """World coordinates (3, X, Y, Z) of voxels."""
    indices = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ indices + affine[:3, 3:]).reshape(3, *shape)


def affine_of(
    shape: tuple[int, ...], spacing: tuple[float, ...] = (1, 1, 1), angles: tuple[float, ...] = (0, 0, 0)
) -> Array:
    """Of a grid around the head, to the right, front and up before it is turned."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = CENTRE + 0.3 - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def scan(shape: tuple[int, ...] = (40, 48, 36), **geometry: Any) -> nib.Nifti1Image:
    affine = affine_of(shape, **geometry)
    return nib.Nifti1Image(head(grid(shape, affine)).astype(np.float32), affine)


def stored(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The same image with its axes in another order and direction."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]

# --- the bundle's inference -------------------------------------------------------------------------------------------


class Pipeline:
    """Preprocessing, network, inferer and inverse of a bundle, with a small network of random weights."""

    def __init__(self, **options: Any) -> None:
        parser = ConfigParser()
        parser.read_config([CONFIGS / "train.yaml", CONFIGS / "inference.yaml"])
        for key, value in {**NETWORK, **options}.items():
            parser[key] = value
        torch.manual_seed(0)
        self.network = parser.get_parsed_content("network").eval()
        self.network.score.case_threshold.zero_()  # maps do not depend on it, but only a calibrated model is run
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.inferer = parser.get_parsed_content("inferer")
        self.inverse = parser.get_parsed_content("postprocessing#transforms#3#transforms#0#transform#transforms#0")
        assert isinstance(self.inverse, InvertMapd)

    def __call__(self, path: Path, network: Callable[[Tensor, Places], dict[str, Tensor]] | None = None) -> Maps:
        """Maps as they are written: on the grid of the file, with its affine."""
        batch = list_data_collate([self.preprocessing({"image": path})])
        with torch.no_grad():
            batch.update(self.inferer(batch["image"], network or self.network))
        (case,) = decollate_batch(batch)
        folder = path.parent / "maps"
        WriteMapsd(MAPS, folder, ".nii")({**self.inverse(case), "case": "scan"})
        written = {name: nib.load(folder / f"scan_{name}.nii") for name in MAPS}
        return {name: (np.asarray(image.dataobj), image.affine) for name, image in written.items()}


def the_image_itself(slices: Tensor, places: Places) -> dict[str, Tensor]:
    return dict.fromkeys(MAPS, slices)


def maps_of(pipeline: Pipeline, image: nib.Nifti1Image, path: Path, **options: Any) -> Maps:
    nib.save(image, path)
    maps = pipeline(path, **options)
    for array, affine in maps.values():
        assert array.shape == image.shape
        np.testing.assert_allclose(affine, image.affine, atol=1e-4)
        assert np.isfinite(array).all()
    return maps


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(axes=PLANES)


@pytest.fixture(scope="module")
def resampling() -> Pipeline:
    return Pipeline(axes=PLANES, resampling=RESAMPLING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("geometry")


@pytest.fixture(scope="module")
def reference(pipeline: Pipeline, folder: Path) -> Maps:
    return maps_of(pipeline, scan(), folder / "reference.nii")


@pytest.fixture(scope="module")
def resampled_reference(resampling: Pipeline, folder: Path) -> Maps:
    return maps_of(resampling, scan(), folder / "resampled.nii")


def at(maps: Maps, name: str, points: Array) -> Array:
    """Values of a map at points (3, ...) of the world."""
    array, affine = maps[name]
    inverse = np.linalg.inv(affine)
    indices = inverse[:3, :3] @ points.reshape(3, -1) + inverse[:3, 3:]
    return map_coordinates(array, indices, order=1, mode="nearest").reshape(points.shape[1:])


def assert_equal_in_the_world(found: Maps, expected: Maps) -> None:
    for name, (array, affine) in found.items():
        back = stored(nib.Nifti1Image(array, affine), "RAS")
        np.testing.assert_allclose(back.affine, expected[name][1], atol=1e-4)
        np.testing.assert_allclose(np.asarray(back.dataobj), expected[name][0], rtol=0, atol=1e-4, err_msg=name)


def test_the_maps_say_something_of_the_place(reference: Maps) -> None:
    image = scan()
    points = grid(image.shape, image.affine)
    inside = depth(points) > 0.3
    for name, (array, _) in reference.items():
        assert array[inside].std() > 1e-3, name  # ten times the tolerance below
        assert np.abs(array - at(reference, name, points + 1))[inside].max() > 1e-3, name


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_each_orientation_gives_the_same_maps(codes: str, pipeline: Pipeline, reference: Maps, tmp_path: Path) -> None:
    image = stored(scan(), codes)
    assert nib.aff2axcodes(image.affine) == tuple(codes)
    assert_equal_in_the_world(maps_of(pipeline, image, tmp_path / "volume.nii"), reference)


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIL", "ARI"])
@pytest.mark.parametrize("which", ["pipeline", "resampling"])
def test_each_orientation_of_an_oblique_anisotropic_scan_gives_the_same_maps(
    codes: str, which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Pipeline = request.getfixturevalue(which)
    image = scan((36, 34, 20), spacing=(1.0, 1.3, 1.8), angles=(12, -8, 20))
    expected = maps_of(run, image, tmp_path / "reference.nii")
    assert_equal_in_the_world(maps_of(run, stored(image, codes), tmp_path / "volume.nii"), expected)


def test_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


# --- other grids, brought to one voxel size and to the head -----------------------------------------------------------

SAME_VOXELS: dict[str, dict[str, Any]] = {
    "larger field of view": {"shape": (60, 52, 50)},
    "background cropped away": {"shape": (32, 40, 28)},
}
OTHER_VOXELS: dict[str, dict[str, Any]] = {
    "anisotropic": {"shape": (34, 48, 20), "spacing": (1.2, 1.0, 1.8)},
    "fine": {"shape": (60, 60, 50), "spacing": (0.7, 0.8, 0.75)},
    "oblique": {"shape": (44, 50, 40), "angles": (7, -5, 6)},
    "oblique and anisotropic": {"shape": (44, 50, 22), "spacing": (1, 1, 1.8), "angles": (-6, 8, 4)},
}


@pytest.mark.parametrize("variant", SAME_VOXELS)
def test_the_field_of_view_does_not_matter(
    variant: str, resampling: Pipeline, resampled_reference: Maps, tmp_path: Path
) -> None:
    image = stored(scan(**SAME_VOXELS[variant]), "IPR")
    found = maps_of(resampling, image, tmp_path / "volume.nii")
    points = grid(image.shape, image.affine)
    inside = depth(points) > 0
    for name, (array, _) in found.items():
        expected = at(resampled_reference, name, points)
        np.testing.assert_allclose(array[inside], expected[inside], rtol=0, atol=1e-4, err_msg=name)
        # nothing was looked at beyond the box around the head
        beyond = (np.abs(points - CENTRE.reshape(3, 1, 1, 1)) > RADII.reshape(3, 1, 1, 1) + 1.5).any(axis=0)
        assert (array[beyond] == 0).all()


@pytest.mark.parametrize("variant", OTHER_VOXELS)
def test_other_grids_give_the_same_up_to_resampling(
    variant: str, resampling: Pipeline, resampled_reference: Maps, tmp_path: Path
) -> None:
    image = stored(scan(**OTHER_VOXELS[variant]), "IPR")
    points = grid(image.shape, image.affine)
    inside, outside = depth(points) > 0.1, depth(points) < -0.15

    # The grid itself: a map that is the image lies within interpolation where the image lies, in [0, 1] ...
    found = maps_of(resampling, image, tmp_path / "volume.nii", network=the_image_itself)
    expected = maps_of(resampling, scan(), tmp_path / "reference.nii", network=the_image_itself)
    difference = np.abs(found["residual"][0] - at(expected, "residual", points))
    assert difference[inside].mean() < 0.01
    assert difference[inside].max() < 0.08
    assert found["residual"][0][outside].max() < 0.001
    # ... and half a millimetre would be noticed, in any direction.
    for shift in np.eye(3)[:, :, None, None, None] / 2:
        moved = np.abs(found["residual"][0] - at(expected, "residual", points + shift))
        assert moved[inside].mean() > 1.1 * difference[inside].mean()

    # The network sees the head in other pixels and at another place of its strides, so it says the same roughly. (Not
    # so the reconstruction, which a random decoder makes of the strides alone.)
    found = maps_of(resampling, image, tmp_path / "volume.nii")
    for name, least, most in (("anomaly_map", 0.94, 0.3), ("log_likelihood", 0.94, 0.3), ("residual", 0.99, 0.1)):
        one, other = found[name][0][inside], at(resampled_reference, name, points)[inside]
        assert np.corrcoef(one, other)[0, 1] > least, name
        assert np.abs(one - other).mean() < most * other.std(), name


def test_a_turned_header_does_not_change_what_the_preset_crops() -> None:
    """Rounding of turned grids leaves about 1e-8 beyond the edge of a brain, which is none of it."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.yaml", CONFIGS.parents[1] / "configs/healthy_t1.yaml"])
    resampling = parser.get_parsed_content("resampling")
    sides = [np.linspace(-1.3, 1.3, size) for size in (62, 70, 58)]
    brain = sum(side**2 for side in np.meshgrid(*sides, indexing="ij")) < 1
    voxels = np.where(brain, np.random.default_rng(0).uniform(0.2, 1, brain.shape), 0).astype(np.float32)
    found = set()
    for angles in ((0, 0, 0), (1, 2, 3), (5, 0, 0), (0, 0, 4), (-3, 2, 5), (2, -4, 1)):
        affine = torch.eye(4, dtype=torch.float64)
        affine[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
        image = resampling({"image": MetaTensor(torch.from_numpy(voxels)[None], affine=affine)})["image"]
        found.add((*image.shape, int((image > 0).sum())))
    assert len(found) == 1
