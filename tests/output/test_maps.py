import gzip
import struct
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import ITKWriter, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Resized
from outputs import contents
from PIL import Image
from scipy.spatial.transform import Rotation

from aeflow_monai.file_digests import sha256_of
from aeflow_monai.output import nifti_files
from aeflow_monai.output.maps import WriteMapsd

Array = npt.NDArray[Any]

# MONAI's Orientation says so of every 2D image, whatever axcodes it is given.
two_dimensional = pytest.mark.filterwarnings("ignore:axcodes .* length is smaller:UserWarning")


def affine_of(
    angles: tuple[float, ...] = (0, 0, 0),
    spacing: tuple[float, ...] = (1, 1, 1),
    origin: tuple[float, ...] = (-30, 12, 7.5),
    order: tuple[int, ...] = (0, 1, 2),
) -> Array:
    affine = np.eye(4)
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, :3] = axes[:, order]
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "oblique": affine_of((10, -20, 35), (1, 1.2, 3)),
    "flipped": affine_of(spacing=(-1, 1, -2)),
    "permuted": affine_of((5, 0, 0), (0.9, 1.1, 4), order=(2, 0, 1)),
    "anisotropic": affine_of(spacing=(0.5, 0.5, 6)),
}
SHEARED = np.array([[1, 0.3, 0, 5], [0, 1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])


def smooth(shape: tuple[int, ...]) -> Array:
    """Values whose place can be told, up to interpolation."""
    axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return sum((k + 1) * axis for k, axis in enumerate(axes)).astype(np.float32)


def invert_through_network(path: Path, reader: str | None = None) -> dict[str, Any]:
    """A case as it reaches the writers: its map is twice the image, its mask where that exceeds 3."""
    ndim = 2 if reader or nib.load(path).ndim == 2 else 3
    before = Compose(
        [
            LoadImaged("image", reader=reader),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="PLS"[:ndim], labels=None),
            Resized("image", [64, 64, -1][:ndim], mode="bilinear"),
        ]
    )
    batch = list_data_collate([before({"image": path, "case": "sub-01"})])
    batch["anomaly_map"] = 2 * batch["image"][:, :1]
    batch["anomaly_mask"] = batch["anomaly_map"] > 3
    (case,) = decollate_batch(batch)
    back = Invertd(["anomaly_map", "anomaly_mask"], before, orig_keys="image", nearest_interp=[False, True])
    return back(case)


def save_nifti(path: Path, shape: tuple[int, ...], affine: Array) -> Path:
    nib.save(nib.Nifti1Image(smooth(shape), affine), path)
    return path


@pytest.mark.parametrize("shape", [(40, 50, 12), (40, 50, 1)])
@pytest.mark.parametrize("name", AFFINES)
def test_volume_comes_back_on_its_own_grid(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = save_nifti(tmp_path / "input.nii.gz", shape, AFFINES[name])
    WriteMapsd(["anomaly_map", "anomaly_mask"], tmp_path / "out")(invert_through_network(path))
    given = nib.load(path)
    written = nib.load(tmp_path / "out" / "sub-01_anomaly_map.nii.gz")
    mask = nib.load(tmp_path / "out" / "sub-01_anomaly_mask.nii.gz")
    for file in (written, mask):
        assert file.shape == given.shape
        np.testing.assert_allclose(file.affine, given.affine, atol=1e-5)
    assert written.get_data_dtype() == np.float32
    assert mask.get_data_dtype() == np.uint8
    if shape[2] > 1:
        np.testing.assert_allclose(written.get_fdata(), 2 * given.get_fdata(), atol=0.15)
    agree = (mask.get_fdata() > 0) == (2 * given.get_fdata() > 3)
    assert agree.mean() > 0.9


@two_dimensional
@pytest.mark.parametrize("affine", [AFFINES["flipped"], AFFINES["oblique"], affine_of((0, 0, 30), (2, 3, 1))])
def test_2d_nifti_comes_back_on_its_own_grid(tmp_path: Path, affine: Array) -> None:
    path = save_nifti(tmp_path / "input.nii.gz", (40, 50), affine)
    WriteMapsd(["anomaly_map"], tmp_path)(invert_through_network(path))
    written = nib.load(tmp_path / "sub-01_anomaly_map.nii.gz")
    assert written.shape == (40, 50)
    np.testing.assert_allclose(written.affine, nib.load(path).affine, atol=1e-5)
    np.testing.assert_allclose(written.get_fdata(), 2 * nib.load(path).get_fdata(), atol=0.15)


QFORM, SFORM = AFFINES["oblique"], AFFINES["flipped"]
GEOMETRY = ["pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"]
GEOMETRY += ["qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"]
CODES = {"both": (1, 4), "only qform": (3, 0), "only sform": (0, 2), "none": (0, 0)}


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(20, 30, 6), (20, 30, 1), (20, 30, 6, 1)])
@pytest.mark.parametrize("codes", CODES)
def test_both_transforms_of_the_header_round_trip(
    tmp_path: Path, codes: str, shape: tuple[int, ...], extension: str
) -> None:
    """The two transforms differ, and what only fits the input's values is left behind."""
    qform_code, sform_code = CODES[codes]
    image = nib.Nifti1Image((100 * smooth(shape)).astype(np.int16), None)
    image.header.set_zooms((1, 1.2, 3, 2.5)[: len(shape)])
    image.set_sform(SFORM, code=sform_code)
    image.set_qform(QFORM, code=qform_code)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2, 10)
    image.header["cal_max"], image.header["descrip"] = 900, b"T1 of somebody"
    nib.save(image, tmp_path / "input.nii.gz")
    WriteMapsd(["anomaly_map", "anomaly_mask"], tmp_path, extension)(invert_through_network(tmp_path / "input.nii.gz"))

    given = nib.load(tmp_path / "input.nii.gz").header
    assert (given["qform_code"], given["sform_code"]) == (qform_code, sform_code)
    for key, dtype in (("anomaly_map", np.float32), ("anomaly_mask", np.uint8)):
        path = tmp_path / f"sub-01_{key}{extension}"
        written = nib.load(path).header
        for field in GEOMETRY:
            np.testing.assert_array_equal(written[field], given[field], err_msg=field)
        np.testing.assert_array_equal(written.get_best_affine(), given.get_best_affine())
        assert written.get_data_shape() == shape
        assert written.get_data_dtype() == dtype
        assert (written["cal_max"], written["descrip"]) == (0, f"aeflow_monai {key}".encode())
        raw = (gzip.decompress if extension == ".nii.gz" else bytes)(path.read_bytes())
        assert struct.unpack("<2f", raw[112:120]) in ((1, 0), (0, 0))  # scl_slope and scl_inter
        assert len(raw) == 352 + dtype().nbytes * np.prod(shape)


def test_only_the_sform_reaches_viewers_if_the_codes_differ(tmp_path: Path) -> None:
    """By eye: 2 mm voxels from (-10, -20, -30) in the scanner, and mirrored, from (10, -20, -30), once aligned."""
    image = nib.Nifti1Image(smooth((8, 9, 5)), None)
    image.set_qform([[2, 0, 0, -10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]], code="scanner")
    image.set_sform([[-2, 0, 0, 10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]], code="aligned")
    nib.save(image, tmp_path / "input.nii")
    WriteMapsd(["anomaly_map"], tmp_path)(invert_through_network(tmp_path / "input.nii"))
    written = nib.load(tmp_path / "sub-01_anomaly_map.nii.gz")
    qform, qform_code = written.get_qform(coded=True)
    sform, sform_code = written.get_sform(coded=True)
    assert (qform_code, sform_code) == (1, 2)
    assert qform[:3, 3].tolist() == [-10, -20, -30]
    assert qform[0, 0] == 2
    assert sform[:3, 3].tolist() == [10, -20, -30]
    assert sform[0, 0] == -2


def test_big_endian_and_second_version_of_nifti_are_sources_too(tmp_path: Path) -> None:
    big = nib.Nifti1Image(smooth((8, 9, 5)), AFFINES["oblique"], nib.Nifti1Header(endianness=">"))
    for name, image in (("big", big), ("second", nib.Nifti2Image(smooth((8, 9, 5)), AFFINES["oblique"]))):
        image.set_qform(AFFINES["flipped"], code=1)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        WriteMapsd(["anomaly_map"], tmp_path)({**invert_through_network(tmp_path / f"{name}.nii.gz"), "case": name})
        given, written = nib.load(tmp_path / f"{name}.nii.gz"), nib.load(tmp_path / f"{name}_anomaly_map.nii.gz")
        assert type(written) is type(given)
        for field in GEOMETRY:
            np.testing.assert_array_equal(written.header[field], given.header[field], err_msg=field)
        assert written.get_data_dtype() == np.float32


def test_of_several_modalities_the_first_gives_the_geometry(tmp_path: Path) -> None:
    for name, code in (("first", 4), ("second", 2)):
        image = nib.Nifti1Image(smooth((20, 30, 6)), None)
        image.set_sform(AFFINES["oblique"], code=code)
        nib.save(image, tmp_path / f"{name}.nii")
    load = Compose([LoadImaged("x"), EnsureChannelFirstd("x")])
    image = load({"x": [tmp_path / "first.nii", tmp_path / "second.nii"]})["x"]
    assert image.shape == (2, 20, 30, 6)
    WriteMapsd(["map", "x"], tmp_path)({"case": "a", "map": image[:1], "x": image})
    for key, shape in (("map", (20, 30, 6)), ("x", (20, 30, 6, 2))):
        header = nib.load(tmp_path / f"a_{key}.nii.gz").header
        assert header["sform_code"] == 4
        assert header.get_data_shape() == shape


def test_a_source_that_is_gone_leaves_its_affine(tmp_path: Path) -> None:
    case = invert_through_network(save_nifti(tmp_path / "input.nii", (20, 30, 6), AFFINES["oblique"]))
    (tmp_path / "input.nii").unlink()
    WriteMapsd(["anomaly_mask"], tmp_path)(case)
    written = nib.load(tmp_path / "sub-01_anomaly_mask.nii.gz")
    np.testing.assert_allclose(written.get_sform(), AFFINES["oblique"], atol=1e-5)
    np.testing.assert_allclose(written.get_qform(), AFFINES["oblique"], atol=1e-5)
    assert (written.header["qform_code"], written.header["sform_code"]) == (1, 1)


def test_same_case_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"case": "a", "x": MetaTensor(torch.rand(1, 8, 8, 8))}
    files = []
    for folder, now in (("one", 1e9), ("two", 2e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        WriteMapsd("x", tmp_path / folder)(case)
        files.append(sha256_of(tmp_path / folder / "a_x.nii.gz"))
    assert files[0] == files[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (3, 4, 5, 6), (1, 4, 5, 1), (1, 4, 5), (2, 4, 5)])
def test_a_file_is_as_nibabel_writes_it(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, shape, dtype=dtype)
    WriteMapsd("x", tmp_path, ".nii")({"case": "a", "x": MetaTensor(values, affine=AFFINES["oblique"])})
    array = values[0].numpy() if len(values) == 1 else np.moveaxis(values.numpy(), 0, -1)
    array = array[:, :, None] if shape == (2, 4, 5) else array
    expected = nib.Nifti1Image(array, nib.load(tmp_path / "a_x.nii").affine)
    expected.set_qform(expected.affine, code=1)
    expected.set_sform(expected.affine, code=1)
    expected.header["descrip"], expected.header["intent_name"] = b"aeflow_monai x", b"aeflow_monai"
    assert (tmp_path / "a_x.nii").read_bytes() == expected.to_bytes()


def test_failure_to_write_is_raised(tmp_path: Path) -> None:
    (tmp_path / "a_x.nii.gz").mkdir()
    with pytest.raises(OSError, match=r"a_x\.nii\.gz"):
        WriteMapsd("x", tmp_path)({"case": "a", "x": MetaTensor(torch.rand(1, 4, 4, 4))})


def test_without_isal_zlib_writes_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"case": "a", "x": MetaTensor(torch.rand(1, 4, 5, 6))}
    monkeypatch.setattr(nifti_files, "gzip", gzip)
    WriteMapsd("x", tmp_path)(case)
    np.testing.assert_array_equal(nib.load(tmp_path / "a_x.nii.gz").get_fdata(), case["x"][0])


class TestOnly:
    DATA = {"case": "a", **{name: MetaTensor(torch.rand(1, 4, 4, 4)) for name in ("x", "y", "saliency")}}  # noqa: RUF012

    def written(self, folder: Path) -> set[str]:
        return {file.name.removesuffix(".nii.gz") for file in folder.iterdir()} if folder.exists() else set()

    @pytest.mark.parametrize(
        ("only", "expected"),
        [(None, {"a_x", "a_y"}), (["y"], {"a_y"}), (["y", "overlay"], {"a_y"}), ([], set()), (["z"], set())],
    )
    def test_some_of_the_keys_are_written(self, tmp_path: Path, only: Any, expected: set[str]) -> None:
        WriteMapsd(["x", "y"], tmp_path / "out", only=only)(self.DATA)
        assert self.written(tmp_path / "out") == expected

    def test_not_all_of_the_keys_have_to_be_there(self, tmp_path: Path) -> None:
        WriteMapsd(["x", "z"], tmp_path, only=["x", "z"])(self.DATA)
        assert self.written(tmp_path) == {"a_x"}
        with pytest.raises(KeyError, match="z"):
            WriteMapsd(["x", "z"], tmp_path)(self.DATA)

    def test_saliency_is_written_if_there_is_any(self, tmp_path: Path) -> None:
        write = WriteMapsd(["x", "saliency"], tmp_path, only=["x"])
        write({name: value for name, value in self.DATA.items() if name != "saliency"})
        assert self.written(tmp_path) == {"a_x"}
        write(self.DATA)
        assert self.written(tmp_path) == {"a_x", "a_saliency"}


def test_a_file_that_is_not_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier file of the name stays as it was."""
    case = {"case": "a", "x": MetaTensor(torch.rand(1, 4, 4, 4))}

    def interrupted(*options: Any, **further: Any) -> None:
        raise OSError("no space left")

    for extension in (".nii", ".nii.gz", ".nrrd"):
        WriteMapsd("x", tmp_path, extension)(case)
    before = contents(tmp_path)
    monkeypatch.setattr(nib.Nifti1Header, "write_to", interrupted)
    monkeypatch.setattr(ITKWriter, "write", interrupted)
    for extension in (".nii", ".nii.gz", ".nrrd"):
        with pytest.raises(OSError, match="no space left"):
            WriteMapsd("x", tmp_path, extension)({**case, "x": case["x"] + 1})
    assert contents(tmp_path) == before


@two_dimensional
@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(("file", "mode"), [("input.png", "L"), ("input.jpg", "L"), ("input.jpg", "RGB")])
def test_picture_comes_back_on_its_own_grid(tmp_path: Path, file: str, mode: str, extension: str) -> None:
    import itk

    pixels = np.broadcast_to(np.linspace(0, 255, 30)[:, None], (30, 40)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / file)
    case = invert_through_network(tmp_path / file, reader="ITKReader")
    WriteMapsd(["anomaly_map"], tmp_path, extension)(case)
    written = itk.imread(tmp_path / f"sub-01_anomaly_map{extension}")
    given = itk.imread(tmp_path / file)
    assert_same_itk_geometry(written, given)
    np.testing.assert_allclose(itk.array_from_image(written), 2.0 * pixels, atol=12)


def assert_same_itk_geometry(one: Any, other: Any) -> None:
    import itk

    assert list(itk.size(one)) == list(itk.size(other))
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in itk.size(one))), -1).reshape(-1, one.GetImageDimension())
    for corner in corners.tolist():
        points = [np.asarray(image.TransformIndexToPhysicalPoint(corner)) for image in (one, other)]
        np.testing.assert_allclose(*points, atol=1e-4)


@pytest.mark.parametrize("extension", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("name", AFFINES)
def test_itk_finds_the_volume_where_it_was(tmp_path: Path, name: str, extension: str) -> None:
    import itk

    path = save_nifti(tmp_path / "input.nii.gz", (20, 30, 6), AFFINES[name])
    WriteMapsd(["anomaly_map", "anomaly_mask"], tmp_path, extension)(invert_through_network(path))
    given = itk.imread(path)
    for key, dtype in (("anomaly_map", np.float32), ("anomaly_mask", np.uint8)):
        written = itk.imread(tmp_path / f"sub-01_{key}{extension}")
        assert_same_itk_geometry(written, given)
        assert itk.array_from_image(written).dtype == dtype


def test_channels_come_last(tmp_path: Path) -> None:
    import itk

    volume = MetaTensor(torch.rand(3, 4, 5, 6), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    case = {"case": "a", "volume": volume, "image": volume[..., 0], "single": volume[..., :1]}
    for extension in (".nii.gz", ".nrrd"):
        WriteMapsd(["volume", "image", "single"], tmp_path, extension)(case)
    shapes = {key: nib.load(tmp_path / f"a_{key}.nii.gz").shape for key in ("volume", "image", "single")}
    assert shapes == {"volume": (4, 5, 6, 3), "image": (4, 5, 1, 3), "single": (4, 5, 1, 3)}
    np.testing.assert_array_equal(nib.load(tmp_path / "a_volume.nii.gz").get_fdata(), volume.moveaxis(0, -1))
    written = itk.imread(tmp_path / "a_volume.nrrd")
    assert list(itk.size(written)) == [4, 5, 6]
    np.testing.assert_array_equal(itk.array_from_image(written).T, volume.numpy())


@pytest.mark.parametrize(
    ("dtype", "written"),
    [
        (torch.bool, "u1"),
        (torch.uint8, "u1"),
        (torch.int64, "f4"),
        (torch.float64, "f4"),
        (torch.bfloat16, "f4"),
    ],
)
def test_dtype_follows_the_data(tmp_path: Path, dtype: torch.dtype, written: str) -> None:
    value = MetaTensor(torch.randint(0, 2, (1, 4, 4, 4))).to(dtype)
    WriteMapsd("x", tmp_path)({"case": "a", "x": value})
    file = nib.load(tmp_path / "a_x.nii.gz")
    assert file.get_data_dtype() == np.dtype(written)
    np.testing.assert_array_equal(file.get_fdata(), value[0].float())


def test_lps_readers_change_nothing_in_the_world(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "input.nii.gz", (8, 9, 5), AFFINES["oblique"])
    load = Compose([LoadImaged("x", reader="ITKReader", affine_lps_to_ras=False), EnsureChannelFirstd("x")])
    WriteMapsd("x", tmp_path)({"case": "a", "x": load({"x": path})["x"]})
    np.testing.assert_allclose(nib.load(tmp_path / "a_x.nii.gz").affine, AFFINES["oblique"], atol=1e-4)


def test_nothing_to_write_makes_no_folder(tmp_path: Path) -> None:
    assert WriteMapsd("x", tmp_path / "none", only=["x"])({"case": "a"}) == {"case": "a"}
    assert not (tmp_path / "none").exists()


def test_data_is_unchanged(tmp_path: Path) -> None:
    data = {"case": "a.b", "x": MetaTensor(torch.rand(1, 4, 4, 4))}
    copy = data["x"].clone()
    result = WriteMapsd(["x"], tmp_path)(data)
    assert result is not data
    assert result["x"] is data["x"]
    assert torch.equal(data["x"], copy)
    assert (tmp_path / "a.b_x.nii.gz").exists()


def test_unknown_extension_is_refused_at_construction(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of \.nii\.gz, \.nii, \.nrrd, \.mha, \.mhd, got '\.tif'"):
        WriteMapsd(["x"], tmp_path, ".tif")


@pytest.mark.parametrize("case", ["../a", "a/b", "a\\b", "..", "", 7])
def test_case_cannot_leave_the_folder(tmp_path: Path, case: Any) -> None:
    data = {"case": case, "x": MetaTensor(torch.rand(1, 4, 4, 4))}
    with pytest.raises(ValueError, match="case has to be a file name without path separators"):
        WriteMapsd(["x"], tmp_path / "out")(data)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("extension", [".nrrd", ".mha", ".mhd"])
def test_shear_is_refused_by_itk_and_kept_by_nifti(tmp_path: Path, extension: str) -> None:
    case = invert_through_network(save_nifti(tmp_path / "input.nii.gz", (20, 30, 6), SHEARED))
    with pytest.raises(ValueError, match=r"case 'sub-01' is sheared .* use the extension \.nii\.gz"):
        WriteMapsd(["anomaly_mask"], tmp_path, extension)(case)
    WriteMapsd(["anomaly_mask"], tmp_path)(case)
    np.testing.assert_allclose(nib.load(tmp_path / "sub-01_anomaly_mask.nii.gz").affine, SHEARED, atol=1e-5)


@two_dimensional
@pytest.mark.parametrize("place", ["oblique", "above"])
def test_2d_outside_its_plane_is_a_slice_of_a_volume_for_itk(tmp_path: Path, place: str) -> None:
    affine = AFFINES["oblique"].copy()
    if place == "above":
        affine = np.diag([2.0, 3.0, 1.0, 1.0])
        affine[2, 3] = 20
    case = invert_through_network(save_nifti(tmp_path / "input.nii.gz", (20, 30), affine))
    WriteMapsd(["anomaly_mask"], tmp_path, ".mha")(case)
    import itk

    written = itk.imread(tmp_path / "sub-01_anomaly_mask.mha")
    assert tuple(written.GetLargestPossibleRegion().GetSize()) == (20, 30, 1)
    for index in ((0, 0, 0), (19, 29, 0)):
        point = np.diag([-1, -1, 1, 1]) @ affine @ (*index, 1)
        np.testing.assert_allclose(written.TransformIndexToPhysicalPoint(index), point[:3], atol=1e-3)


def test_wrong_data_is_named(tmp_path: Path) -> None:
    write = WriteMapsd(["anomaly_mask"], tmp_path)
    with pytest.raises(TypeError, match="'anomaly_mask' of case 'a' has to be a MetaTensor, got Tensor"):
        write({"case": "a", "anomaly_mask": torch.zeros(1, 4, 4)})
    with pytest.raises(ValueError, match=r"got \(1, 1, 4, 4, 4\): remove the batch dimension"):
        write({"case": "a", "anomaly_mask": MetaTensor(torch.zeros(1, 1, 4, 4, 4))})
    for wrong in (0.5, -1.0, 256.0, float("nan")):
        with pytest.raises(ValueError, match=r"whole numbers from 0 to 255: invert it with nearest_interp=True"):
            write({"case": "a", "anomaly_mask": MetaTensor(torch.full((1, 4, 4), wrong))})


def test_data_off_its_grid_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "input.nii.gz", (20, 30, 6), AFFINES["flipped"])
    image = LoadImaged("image")({"image": path})["image"][None]
    case = {"case": "a", "image": image}
    WriteMapsd(["image"], tmp_path)(case)
    resized = Resized("image", [64, 64, -1])(case)
    with pytest.raises(ValueError, match=r"on the grid of its input, shape \(20, 30, 6\) .* apply Invertd first"):
        WriteMapsd(["image"], tmp_path)(resized)
    moved = {**case, "image": image.clone()}
    moved["image"].affine = image.affine + torch.eye(4)[[3, 0, 0, 0]].T * 1.5  # along the first axis
    with pytest.raises(ValueError, match="on the grid of its input"):
        WriteMapsd(["image"], tmp_path)(moved)


def test_axes_of_voxels_of_half_a_micrometre_are_turned_too(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "input.nii.gz", (8, 8, 8), np.diag([0.0005, 0.0005, 0.0005, 1]))
    case = {"case": "a", "image": LoadImaged("image")({"image": path})["image"][None]}
    WriteMapsd(["image"], tmp_path)(Orientationd("image", axcodes="PRS", labels=None)(case))
    assert np.array_equal(nib.load(tmp_path / "a_image.nii.gz").get_fdata(), nib.load(path).get_fdata())


@pytest.mark.parametrize("axcodes", ["RAS", "PLS", "SRA", "IPR"])
@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_axes_in_another_order_or_direction_are_turned(tmp_path: Path, axcodes: str, extension: str) -> None:
    path = save_nifti(tmp_path / "input.nii.gz", (20, 30, 6), AFFINES["flipped"])
    case = {"case": "a", "image": LoadImaged("image")({"image": path})["image"][None]}
    WriteMapsd(["image"], tmp_path / "as it is", extension)(case)
    turned = Orientationd("image", axcodes=axcodes, labels=None)(case)
    WriteMapsd(["image"], tmp_path / "turned", extension)(turned)
    as_it_is, found = (tmp_path / folder / f"a_image{extension}" for folder in ("as it is", "turned"))
    assert found.read_bytes() == as_it_is.read_bytes()
