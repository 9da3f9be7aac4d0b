import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Invertd, LoadImage, Orientationd
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from aeflow_monai.data.readers import LoadCased
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.data.transforms import EnsureVolumed, MatchChannelsd, ScaleForegroundd
from aeflow_monai.engine.inference.inferer import SlicedInferer
from aeflow_monai.geometry import Places

Array = npt.NDArray[Any]

# SWIG's types say so once, when the first module of ITK is loaded; as an error it ends the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")

READERS = ["ITKReader", "NibabelReader"]
CONFIG = Path(__file__).parents[2] / "bundle" / "configs" / "train.yaml"


@pytest.fixture(scope="module")
def chain() -> Compose:
    """The preprocessing of the bundle."""
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parsed = parser.get_parsed_content("preprocessing")
    assert isinstance(parsed, Compose)
    return parsed


def affine_of(
    angles: tuple[float, ...] = (0, 0, 0),
    spacing: tuple[float, ...] = (1, 1, 1),
    order: tuple[int, ...] = (0, 1, 2),
    origin: tuple[float, ...] = (-30, 12, 7.5),
) -> Array:
    """Voxel axis k points along patient axis order[k] (0 to the right, 1 to the front, 2 up), then all is turned."""
    affine = np.eye(4)
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, :3] = axes[:, order]
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "RAS": affine_of(),
    "oblique": affine_of((10, -20, 35), (1, 1.2, 3)),
    "flipped": affine_of(spacing=(-1, 1, -2)),
    "anisotropic": affine_of(spacing=(0.5, 0.5, 6)),
    "permuted": affine_of((5, 0, 0), (0.9, 1.1, 4), order=(2, 0, 1)),
    "permuted and flipped": affine_of((0, 8, 0), (-0.9, -1.1, 4), order=(1, 2, 0)),
}
FLAT_AFFINES = {
    **AFFINES,
    "coronal": affine_of(order=(0, 2, 1)),
    "coronal, flipped and swapped": affine_of((0, 10, 0), (-1, 2, -0.7), order=(2, 0, 1)),
    "sagittal": affine_of(order=(1, 2, 0)),
    "sagittal, flipped and swapped": affine_of((-10, 0, 15), (3, -1, -1), order=(2, 1, 0)),
    "oblique to all": affine_of((40, 40, 40), (1, 1, 1)),
}


def patient_coordinate(axis: int, shape: tuple[int, ...], affine: Array) -> Array:
    """What lies further along the patient's axis is brighter: from 100 to 1100."""
    indices = np.indices((*shape, 1)[:3]).reshape(3, -1)
    position = (affine[:3, :3] @ indices)[axis].reshape(shape)
    return (100 + 1000 * (position - position.min()) / np.ptp(position)).astype(np.float32)


def save_nifti(path: Path, array: Array, affine: Array) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def there_and_back(chain: Compose, path: Path) -> tuple[Tensor, MetaTensor]:
    """The slices as the network takes them (C, 64, 64, n), and a map which equals them there, on the file's grid."""
    seen: list[Tensor] = []

    def network(slices: Tensor, places: Places) -> Tensor:
        seen.append(slices)
        return slices

    batch = list_data_collate([chain({"image": path})])
    batch["map"] = SlicedInferer(Slicer(image_size=[64, 64]))(batch["image"], network)
    (case,) = decollate_batch(batch)
    back = Invertd("map", chain, orig_keys="image", nearest_interp=False)(dict(case))["map"]
    return torch.cat(seen).movedim(0, -1), back


def at_the_door(chain: Compose, path: Path) -> Tensor:
    return there_and_back(chain, path)[0]


def assert_on_the_grid_of_the_file(back: MetaTensor, path: Path) -> None:
    loaded = LoadImage(reader=READERS, image_only=True)(path)
    shape = loaded.shape[:2] if path.suffix == ".png" else loaded.shape  # a picture's channels come last
    assert back.shape == (1, *shape)
    assert back.affine.shape == loaded.affine.shape
    torch.testing.assert_close(back.affine, loaded.affine, rtol=0, atol=1e-6)


class TestGeometry:
    @pytest.mark.parametrize("name", AFFINES)
    def test_volume_comes_back_on_its_own_grid(self, chain: Compose, name: str, tmp_path: Path) -> None:
        shape = (40, 50, 12)
        values = sum(w * patient_coordinate(a, shape, AFFINES[name]) for a, w in enumerate((0.5, 0.3, 0.2)))
        path = save_nifti(tmp_path / "volume.nii.gz", values, AFFINES[name])
        door, back = there_and_back(chain, path)
        assert door.shape[:3] == (1, 64, 64)
        assert_on_the_grid_of_the_file(back, path)
        low, high = np.percentile(values, (0.5, 99.5))
        expected = ((values - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(back[0].numpy(), expected, atol=0.05)

    @pytest.mark.parametrize("name", FLAT_AFFINES)
    def test_2d_nifti_comes_back_on_its_own_grid(self, chain: Compose, name: str, tmp_path: Path) -> None:
        x, y = np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 2, 50), indexing="ij")
        path = save_nifti(tmp_path / "flat.nii.gz", (x + y).astype(np.float32), FLAT_AFFINES[name])
        door, back = there_and_back(chain, path)
        assert door.shape == (1, 64, 64, 1)
        assert_on_the_grid_of_the_file(back, path)
        np.testing.assert_allclose(back[0].numpy(), (x + y) / 3, atol=0.05)

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    def test_picture_comes_back_on_its_own_grid_and_stands_upright(
        self, chain: Compose, mode: str, tmp_path: Path
    ) -> None:
        rows, columns = np.meshgrid(np.linspace(0, 60, 32), np.linspace(0, 180, 48), indexing="ij")
        pixels = np.rint(rows + columns).astype(np.uint8)
        path = tmp_path / "picture.png"
        Image.fromarray(pixels).convert(mode).save(path)
        door, back = there_and_back(chain, path)
        assert door.shape == (1, 64, 64, 1)
        assert_on_the_grid_of_the_file(back, path)
        low, high = np.percentile(pixels, (0.5, 99.5))
        expected = ((pixels - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(back[0].numpy().T, expected, atol=0.05)
        # row by row and column by column what the file shows
        resized = np.asarray(Image.fromarray(expected.astype(np.float32)).resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(door[0, :, :, 0].numpy(), resized, atol=0.05)

    @pytest.mark.parametrize("name", AFFINES)
    def test_each_slice_of_a_volume_stands_upright(self, chain: Compose, name: str, tmp_path: Path) -> None:
        # the first row is in front, the first column on the patient's right, the first slice lowest
        for axis, (dimension, sign) in enumerate([(2, -1), (1, -1), (3, 1)]):
            values = patient_coordinate(axis, (40, 50, 12), AFFINES[name])
            door = at_the_door(chain, save_nifti(tmp_path / f"{axis}.nii.gz", values, AFFINES[name]))
            steps = sign * door.diff(dim=dimension)
            assert (steps.mean(dim=dimension) > 0).all()
            means = sign * door.mean(dim=[d for d in range(4) if d != dimension]).diff()
            assert (means >= 0).all()  # equal where the resampling extends the border
            assert (means > 0).sum() > len(means) / 2

    @pytest.mark.parametrize(
        ("names", "rows", "columns"),  # of the patient's axes, seen in the plane
        [
            (("RAS", "oblique", "flipped"), 1, 0),
            (("coronal", "coronal, flipped and swapped", "permuted"), 2, 0),
            (("sagittal", "sagittal, flipped and swapped", "permuted and flipped"), 2, 1),
        ],
    )
    def test_2d_nifti_stands_upright(
        self, chain: Compose, names: tuple[str, ...], rows: int, columns: int, tmp_path: Path
    ) -> None:
        # superior or front on top; the patient's right, or in a sagittal image the front, on the left
        for name in names:
            for dimension, axis in ((1, rows), (2, columns)):
                values = patient_coordinate(axis, (40, 50), FLAT_AFFINES[name])
                door = at_the_door(chain, save_nifti(tmp_path / "flat.nii", values, FLAT_AFFINES[name]))
                assert (door.diff(dim=dimension).mean(dim=dimension) < 0).all(), name

    def test_ras_volume_by_eye(self, chain: Compose, tmp_path: Path) -> None:
        values = np.zeros((64, 64, 3), np.float32)
        values[-20:, -10:, 1] = 1  # right and in front, in the middle slice
        door = at_the_door(chain, save_nifti(tmp_path / "volume.nii.gz", values, np.eye(4)))
        expected = torch.zeros(1, 64, 64, 3)
        expected[:, :10, :20, 1] = 1
        torch.testing.assert_close(door, expected)

    def test_intensities_are_in_range(self, chain: Compose, tmp_path: Path) -> None:
        values = np.random.default_rng(0).normal(-500, 300, (20, 20, 5)).astype(np.float32)
        door = at_the_door(chain, save_nifti(tmp_path / "volume.nii.gz", values, np.eye(4)))
        assert 0 <= door.min() < 0.3
        assert 0.7 < door.max() <= 1


class TestEnsureVolumed:
    @pytest.mark.parametrize("affine", [affine_of(order=(0, 2, 1)), np.diag([-0.5, -0.5, 1])])  # 4 x 4 and 3 x 3
    def test_image_becomes_a_volume_and_back(self, affine: Array) -> None:
        image = MetaTensor(torch.rand(2, 5, 6), affine=torch.as_tensor(affine))
        transform = EnsureVolumed("image")
        volume = transform({"image": image})["image"]
        assert volume.shape == (2, 5, 6, 1)
        assert volume.affine.shape == (4, 4)
        assert torch.equal(volume[..., 0].as_tensor(), image.as_tensor())
        back = transform.inverse({"image": volume})["image"]
        assert torch.equal(back.as_tensor(), image.as_tensor())
        assert torch.equal(back.affine, torch.as_tensor(affine))
        assert back.applied_operations == []
        assert image.shape == (2, 5, 6)  # what went in is as it was
        assert torch.equal(image.affine, torch.as_tensor(affine))
        assert image.applied_operations == []

    @pytest.mark.parametrize("depth", [1, 4])
    def test_volume_passes_unchanged(self, depth: int) -> None:
        image = MetaTensor(torch.rand(1, 5, 6, depth), affine=torch.as_tensor(AFFINES["permuted"]))
        transform = EnsureVolumed("image")
        volume = transform({"image": image})["image"]
        back = transform.inverse({"image": volume})["image"]
        for tensor in (volume, back):
            assert tensor.shape == (1, 5, 6, depth)
            torch.testing.assert_close(tensor.affine, torch.as_tensor(AFFINES["permuted"]))

    @pytest.mark.parametrize("shape", [(1, 4, 4, 4, 2), (4, 4)])
    def test_other_dimensions_are_refused(self, shape: tuple[int, ...]) -> None:
        image = MetaTensor(torch.zeros(shape), meta={"filename_or_obj": "series.nii.gz"})
        message = rf"at 'image'; got shape \({', '.join(map(str, shape))}\) in series\.nii\.gz\. Split a series"
        with pytest.raises(ValueError, match=message):
            EnsureVolumed("image")({"image": image})

    def test_missing_keys(self) -> None:
        assert EnsureVolumed("image", allow_missing_keys=True)({"case": "a"}) == {"case": "a"}
        with pytest.raises(KeyError, match="image"):
            EnsureVolumed("image")({"case": "a"})


class TestMatchChannels:
    @pytest.mark.parametrize(
        ("given", "wanted", "expected"),
        [
            ([5.0], 1, [5.0]),
            ([1.0, 2.0, 6.0], 3, [1.0, 2.0, 6.0]),
            ([1.0, 2.0, 6.0], 1, [3.0]),
            ([5.0], 3, [5.0, 5.0, 5.0]),
            ([5.0], 4, [5.0, 5.0, 5.0, 5.0]),
        ],
    )
    @pytest.mark.parametrize("size", [(2, 3), (2, 3, 1)])
    def test_by_hand(self, given: list[float], wanted: int, expected: list[float], size: tuple[int, ...]) -> None:
        def image(values: list[float]) -> Tensor:
            return torch.tensor(values).view(-1, *[1] * len(size)).expand(-1, *size)

        found = MatchChannelsd("image", wanted)({"image": image(given)})["image"]
        torch.testing.assert_close(found, image(expected))

    def test_geometry_stays(self) -> None:
        affine = torch.as_tensor(AFFINES["oblique"])
        for given, wanted in ((3, 1), (1, 3)):
            found = MatchChannelsd("image", wanted)({"image": MetaTensor(torch.rand(given, 4, 4, 1), affine=affine)})
            torch.testing.assert_close(found["image"].affine, affine)

    def test_a_series_is_not_merged(self) -> None:
        with pytest.raises(ValueError, match=r"takes 1 channels; 'image' has 6.*split a series \(4D\)"):
            MatchChannelsd("image", 1)({"image": torch.zeros(6, 8, 9, 5)})

    @pytest.mark.parametrize("n_files", [2, 3])
    def test_modalities_in_pictures_are_not_merged(self, tmp_path: Path, n_files: int) -> None:
        files = [str(tmp_path / f"{number}.png") for number in range(n_files)]
        for number, file in enumerate(files):
            Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(file)
        image = LoadCased("image")({"image": files})
        with pytest.raises(ValueError, match=rf"takes 1 channels; 'image' has {n_files}"):
            MatchChannelsd("image", 1)(image)
        MatchChannelsd("image", n_files)(image)

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
    def test_a_series_of_one_slice_is_no_picture(self, name: str) -> None:
        image = MetaTensor(torch.zeros(3, 8, 9, 1), meta={"filename_or_obj": name})
        with pytest.raises(ValueError, match=r"takes 1 channels; 'image' has 3.*split a series \(4D\)"):
            MatchChannelsd("image", 1)({"image": image})

    @pytest.mark.parametrize("wanted", [2, 4])
    def test_a_volume_is_not_several_modalities(self, wanted: int) -> None:
        assert MatchChannelsd("image", 3)({"image": torch.zeros(1, 8, 9, 5)})["image"].shape[0] == 3
        with pytest.raises(ValueError, match=f"takes {wanted} channels; 'image' has 1"):
            MatchChannelsd("image", wanted)({"image": torch.zeros(1, 8, 9, 5)})

    @pytest.mark.parametrize(("given", "wanted"), [(2, 3), (4, 3), (3, 2), (2, 1), (4, 1)])
    def test_other_numbers_are_named(self, given: int, wanted: int) -> None:
        image = MetaTensor(torch.zeros(given, 4, 4), meta={"filename_or_obj": "a.png"})
        message = rf"takes {wanted} channels; 'image' has {given} in a\.png\. Set in_channels"
        with pytest.raises(ValueError, match=message):
            MatchChannelsd("image", wanted)({"image": image})


def ellipsoid(shape: tuple[int, int, int] = (20, 24, 16)) -> Array:
    """Where a head might be in a volume, with margins that are background."""
    axes = [np.linspace(-1.2, 1.2, n) for n in shape]
    return sum(x**2 for x in np.meshgrid(*axes, indexing="ij")) < 1


def scale(array: Array, **options: float) -> Array:
    """One channel, scaled."""
    image = torch.as_tensor(np.asarray(array, dtype=np.float32))[None]
    return ScaleForegroundd("image", **options)({"image": image})["image"][0].numpy()


def test_colours_that_are_lost_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aeflow_monai.data.transforms._told_of_colours", threading.Event())
    grey = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "grey.jpg", quality=60)
    Image.fromarray(np.stack([grey, grey // 2, grey // 4], -1)).save(tmp_path / "colour.png")
    load, volume = LoadCased("image"), EnsureVolumed("image")
    for name, channels in (("grey.jpg", 1), ("colour.png", 3)):
        MatchChannelsd("image", channels)(volume(load({"image": str(tmp_path / name)})))
    assert "has colours" not in caplog.text
    for _ in range(2):
        MatchChannelsd("image", 1)(volume(load({"image": str(tmp_path / "colour.png")})))
    assert caplog.text.count("colour.png has colours, but the network takes one channel: their mean is taken.") == 1


class TestScaleForeground:
    # a head of 100 to 200 in air of 0; the same, z-scored; as a CT, padded below anything that is measured
    @pytest.mark.parametrize(
        ("factor", "offset", "background"), [(1, 0, 0), (0.02, -3, -3), (0.02, -3, 0), (8, 0, -2048)]
    )
    def test_background_becomes_0_and_the_head_fills_the_range(
        self, factor: float, offset: float, background: float
    ) -> None:
        head = ellipsoid()
        tissue = np.random.default_rng(0).uniform(100, 200, head.shape).astype(np.float32)
        scaled = scale(np.where(head, factor * tissue + offset, background))
        assert (scaled[~head] == 0).all()
        low, high = np.percentile(tissue[head], (0.5, 99.5))
        expected = ((tissue - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(scaled[head], expected[head], atol=1e-4)

    # zero behind the head, the same in a z-scored image, and padding as in CT
    @pytest.mark.parametrize(("factor", "offset", "background"), [(1, 0, 0), (0.02, -3, 0), (8, 0, -2048)])
    @pytest.mark.parametrize("clipped", [False, True])
    def test_ripples_of_an_interpolation_by_splines_are_background(
        self, factor: float, offset: float, background: float, clipped: bool
    ) -> None:
        head = ellipsoid()
        tissue = factor * np.random.default_rng(0).uniform(100, 200, head.shape) + offset
        image = np.pad(np.where(head, tissue, background), 12, constant_values=background)
        rippled, linear = (ndimage.shift(image, 0.3, order=order, mode="nearest") for order in (3, 1))
        rippled = np.maximum(rippled, background) if clipped and image.min() == background else rippled
        assert (rippled == background).mean() < 0.05 or clipped
        scaled = scale(rippled.astype(np.float32))
        far = ndimage.distance_transform_edt(np.pad(~head, 12, constant_values=True)) > 6
        assert (scaled[far] == 0).all()
        inner = ndimage.binary_erosion(np.pad(head, 12), iterations=2)
        assert np.corrcoef(scaled[inner], scale(linear.astype(np.float32))[inner])[0, 1] > 0.9
        assert scaled[inner].std() > 0.5 * scale(linear.astype(np.float32))[inner].std()

    @pytest.mark.parametrize("z_scored", [False, True])
    @pytest.mark.parametrize("rounded", [False, True])
    def test_ripples_beside_exact_values_of_the_background(self, z_scored: bool, rounded: bool) -> None:
        """Splines leave exact zeros where a volume ends or is rounded, and ripples between."""
        head = np.pad(ellipsoid(), 12)
        tissue = np.random.default_rng(0).normal(0 if z_scored else 2000, 1000 if z_scored else 300, head.shape)
        rippled = ndimage.shift(np.where(head, tissue, 0), 0.3, order=3).astype(np.float32)
        rippled[:, :, : rippled.shape[2] // 3] = 0
        rippled = np.rint(rippled) if rounded else rippled
        assert (rippled == 0).mean() > 0.05
        scaled = scale(rippled)
        far = ndimage.distance_transform_edt(~head) > 6
        assert (scaled[far] == 0).all()
        assert (scaled[ndimage.binary_erosion(head, iterations=2) & (rippled != 0)] > 0).mean() > 0.95

    def test_without_a_single_background_value_all_is_foreground(self) -> None:
        noise = np.random.default_rng(0).normal(-500, 300, (20, 24, 16)).astype(np.float32)
        low, high = np.percentile(noise, (0.5, 99.5))
        np.testing.assert_allclose(scale(noise), ((noise - low) / (high - low)).clip(0, 1), atol=1e-5)

    @pytest.mark.parametrize(("count", "expected"), [(4, 0.404), (5, 0.0)])
    def test_a_value_among_the_others_is_background_from_a_twentieth_on(self, count: int, expected: float) -> None:
        values = np.concatenate([np.full(count, 4.04), np.linspace(0, 10, 100 - count)])
        scaled = scale(values, lower=0, upper=100)
        np.testing.assert_allclose(scaled[:count], expected, atol=1e-6)
        np.testing.assert_allclose(scaled[count:], values[count:] / 10, atol=1e-6)

    @pytest.mark.parametrize("value", [0.0, 7.0, -1000.0, 1e-8])
    def test_constant_image_becomes_0(self, value: float) -> None:
        assert (scale(np.full((5, 6, 7), value)) == 0).all()

    @pytest.mark.parametrize("value", [1.0, 1e5, -3.0])
    def test_foreground_of_one_value_becomes_1(self, value: float) -> None:
        np.testing.assert_array_equal(scale(np.where(ellipsoid(), value, 0)), ellipsoid().astype(np.float32))

    def test_each_channel_is_scaled_by_itself(self) -> None:
        head = ellipsoid()
        generator = np.random.default_rng(0)
        channels = [np.where(head, generator.normal(m, s, head.shape), b) for m, s, b in ((0, 1, -9), (900, 90, 0))]
        image = torch.as_tensor(np.stack(channels), dtype=torch.float32)
        scaled = ScaleForegroundd("image")({"image": image})["image"].numpy()
        for channel, expected in zip(scaled, channels, strict=True):
            np.testing.assert_array_equal(channel, scale(expected))

    @pytest.mark.parametrize("background", [0.0, -3.0, -2048.0])
    def test_a_larger_field_of_view_changes_nothing_of_the_head(self, background: float) -> None:
        head = ellipsoid()
        image = np.where(head, np.random.default_rng(0).normal(1, 1, head.shape), background)
        padded = np.pad(image, ((30, 0), (5, 20), (0, 9)), constant_values=background)
        np.testing.assert_array_equal(scale(padded)[30:, 5:29, :16], scale(image))
        assert (scale(padded)[:30] == 0).all()

    def test_geometry_and_the_record_for_the_inverse_stay(self) -> None:
        affine = torch.as_tensor(AFFINES["oblique"])
        image = MetaTensor(torch.rand(1, 5, 6, 7), affine=affine, meta={"filename_or_obj": "a.nii"})
        given = Orientationd("image", axcodes="PLS", labels=None)({"image": image})["image"]
        before = given.as_tensor().clone()
        scaled = ScaleForegroundd("image")({"image": given})["image"]
        assert isinstance(scaled, MetaTensor)
        torch.testing.assert_close(scaled.affine, given.affine)
        assert scaled.applied_operations == given.applied_operations
        assert len(scaled.applied_operations) == 1
        assert scaled.meta["filename_or_obj"] == "a.nii"
        assert torch.equal(given.as_tensor(), before)  # what went in is as it was
        assert not torch.equal(scaled.as_tensor(), before)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float64])
    def test_any_kind_of_number_becomes_a_float_in_range(self, dtype: torch.dtype) -> None:
        image = torch.arange(100).view(1, 10, 10).to(dtype)
        scaled = ScaleForegroundd("image", lower=0, upper=100)({"image": image})["image"]
        assert scaled.dtype == torch.float32
        torch.testing.assert_close(scaled, torch.arange(100).view(1, 10, 10) / 99)

    @pytest.mark.parametrize(("lower", "upper"), [(-1, 99), (50, 50), (1, 101), (99, 1)])
    def test_percentiles_out_of_range_are_named(self, lower: float, upper: float) -> None:
        with pytest.raises(ValueError, match=rf"0 <= lower < upper <= 100; got {lower} and {upper}"):
            ScaleForegroundd("image", lower, upper)

    @pytest.mark.parametrize("corners", [(1,), (1, 3), (0, 1, 2, 3)])
    @pytest.mark.parametrize(("bright", "brightest"), [(255, 255), (250, 255)])
    @pytest.mark.parametrize("factor", [1.0, 0.13])  # whole numbers, and fractions
    def test_saturated_corners_stay_bright(
        self, corners: tuple[int, ...], bright: int, brightest: int, factor: float
    ) -> None:
        image = np.random.default_rng(0).integers(20, 170, (256, 256)).astype(np.float32)
        for corner in corners:
            image[:: -1 if corner // 2 else 1, :: -1 if corner % 2 else 1][:56, :70] = bright
        image[100, 100:110] = brightest
        scaled = scale(factor * image)
        assert (scaled[image == bright] == 1).all()
        assert scaled[image < 100].max() < scaled[image > 100].min()

    def test_saturated_corners_beside_black_ones(self) -> None:
        image = np.random.default_rng(0).integers(20, 170, (256, 256)).astype(np.float32)
        image[:40], image[200:, :90] = 0, 255
        scaled = scale(image)
        assert (scaled[image == 255] == 1).all()
        assert (scaled[image == 0] == 0).all()
        assert (scaled[image == 100] > 0).all()

    def test_zeros_around_negative_numbers_are_background(self) -> None:
        head = ellipsoid()
        lung = np.random.default_rng(0).uniform(-900, -500, head.shape)
        scaled = scale(np.where(head, lung, 0))
        assert (scaled[~head] == 0).all()
        assert scaled[head].max() == 1

    @pytest.mark.parametrize("factor", [1e-30, 1e-38, 3e-42, 1e30, 3e36])
    def test_extreme_numbers_scale_as_others_do(self, factor: float) -> None:
        head = ellipsoid()
        tissue = np.random.default_rng(0).uniform(-100, 100, head.shape)
        usual = np.where(head, tissue, 0).astype(np.float32)
        extreme = (usual.astype(np.float64) * factor).astype(np.float32)
        # denormal numbers have few digits in the file already
        np.testing.assert_allclose(scale(extreme), scale(usual), atol=1e-5 if factor > 1e-40 else 0.05)

    def test_a_small_range_on_a_large_offset(self) -> None:
        values = np.repeat(np.linspace(0, 1, 9, dtype=np.float32), [1] + [100] * 8)  # the lowest is no background
        np.testing.assert_allclose(scale(2**20 + values, lower=0, upper=100), values, atol=1e-6)
