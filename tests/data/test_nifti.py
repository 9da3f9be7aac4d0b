import gzip
import io
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from inputs import AFFINE, VOXELS, save_volume

from aeflow_monai.data.nifti import read_nifti
from aeflow_monai.output.maps import WriteMapsd


def save(path: Path, voxels: Any = VOXELS, affine: Any = AFFINE, **fields: Any) -> Path:
    image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.header.set_xyzt_units(fields.pop("unit", "mm"), fields.pop("time", None))
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def message(path: Path, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error, match="Expected") as raised:
        read_nifti(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def patched(path: Path, offset: int, layout: str, *values: Any) -> Path:
    """A good file with some bytes of its header set."""
    stream = io.BytesIO()
    nib.Nifti1Image(VOXELS, AFFINE).to_stream(stream)
    content = bytearray(stream.getvalue())
    struct.pack_into("<" + layout, content, offset, *values)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    colours = np.zeros(VOXELS.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = tmp_path / "a.nii.gz"
    assert "got complex numbers. Save their magnitude" in message(save(path, VOXELS.astype(np.complex64)))
    assert "got colours (R, G, B). Save them as one grey volume" in message(save(path, colours))
    vectors = np.stack([VOXELS] * 3, -1)[..., None, :]
    assert "got 5 dimensions, shape (16, 18, 10, 1, 3): vectors" in message(save(path, vectors))
    assert "got data of a surface (intent 1009)" in message(save(path, intent_code=1009))


def test_surfaces_of_other_kinds_are_named(tmp_path: Path) -> None:
    points = nib.gifti.GiftiDataArray(np.zeros((9, 3), np.float32), intent="NIFTI_INTENT_POINTSET")
    nib.save(nib.gifti.GiftiImage(darrays=[points]), tmp_path / "a.gii")
    (tmp_path / "b.nii").write_bytes((tmp_path / "a.gii").read_bytes())
    axes = (nib.cifti2.SeriesAxis(0, 1, 4), nib.cifti2.BrainModelAxis.from_surface(np.arange(9), 20, "CortexLeft"))
    nib.save(nib.Cifti2Image(np.zeros((4, 9), np.float32), header=axes), tmp_path / "c.dtseries.nii")
    for name in ("a.gii", "b.nii", "c.dtseries.nii"):
        assert "got data of a surface" in message(tmp_path / name)


def test_a_series_is_named_where_its_header_says_so(tmp_path: Path) -> None:
    series = np.stack([VOXELS] * 4, -1)
    path = save(tmp_path / "a.nii.gz", series, time="sec", pixdim=[1, 2, 3, 2.5, 2, 0, 0, 0])
    assert "got a time series of 4 volumes, 2 sec apart. Split the series" in message(path)
    # one point in time is a volume, and modalities are channels
    path = save(tmp_path / "a.nii.gz", series[..., :1], time="sec", pixdim=[1, 2, 3, 2.5, 2, 0, 0, 0])
    assert read_nifti(path).shape == (1, *VOXELS.shape)
    assert read_nifti(save(tmp_path / "b.nii.gz", series)).shape == (4, *VOXELS.shape)
    assert read_nifti(save(tmp_path / "c.nii.gz", VOXELS[..., None, None])).shape == (1, *VOXELS.shape)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)])
def test_distances_are_in_mm(tmp_path: Path, unit: str, factor: float) -> None:
    affine = AFFINE.copy()
    affine[:3] *= factor
    path = save(tmp_path / "a.nii.gz", affine=affine, unit=unit)
    image = read_nifti(path)
    np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-5)
    # and maps keep the units of their input
    image.meta["spatial_shape"] = np.asarray(VOXELS.shape)
    WriteMapsd(["x"], tmp_path)({"case": "a", "x": image})
    written = nib.load(tmp_path / "a_x.nii.gz")
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)
    assert written.header.get_xyzt_units()[0] == unit


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((32767, 32767, 32767), "its header claims (32767, 32767, 32767) voxels"),
        ((16, 18, 20), "got a truncated file: 11872 bytes"),
        ((16, 18, 9), "got a file that goes on behind its voxels"),
        ((15, 18, 10), "got a file that goes on behind its voxels"),
        ((16, 0, 10), "got no voxels"),
        ((16, -18, 10), "got no voxels"),
    ],
)
def test_a_header_that_lies_about_its_size(
    tmp_path: Path, extension: str, shape: tuple[int, int, int], said: str
) -> None:
    assert said in message(patched(tmp_path / f"a.{extension}", 40, "8h", 3, *shape, 1, 1, 1, 1))


def test_a_bomb_is_read_no_further_than_its_header_claims(tmp_path: Path) -> None:
    path = patched(tmp_path / "a.nii.gz", 40, "h", 3)
    with gzip.open(path, "ab") as stream:
        for _ in range(64):
            stream.write(bytes(2**20))
    assert "goes on behind its voxels: 1048576 bytes or more" in message(path)


def test_garbage_behind_compressed_data(tmp_path: Path) -> None:
    path = patched(tmp_path / "a.nii.gz", 40, "h", 3)
    path.write_bytes(path.read_bytes() + b"garbage")
    assert "got a damaged file: Not a gzipped file" in message(path)


@pytest.mark.parametrize(
    ("offset", "layout", "values", "said"),
    [
        (108, "f", [0], "it claims that they begin at byte 0"),
        (108, "f", [1e9], "got a truncated file"),
        (70, "h", [777], "got a header that is wrong: data code 777"),
        (112, "2f", [2, np.nan], "got a header that is wrong: Valid slope but invalid intercept"),
        (280, "f", [np.nan], "Expected an affine that can be inverted"),
        (123, "B", [2 + 56], "Expected units of length and time that NIfTI knows"),
        (252, "2h3f", [1, 1, 2, 2, 2], "got a header whose sform or qform cannot be understood ("),  # no quaternion
    ],
)
def test_a_header_that_is_wrong(tmp_path: Path, offset: int, layout: str, values: list[float], said: str) -> None:
    assert said in message(patched(tmp_path / "a.nii", offset, layout, *values))


@pytest.mark.parametrize(
    ("offset", "layout", "values"),
    [
        (112, "2f", [0, 5]),  # a slope of 0 means that nothing is scaled
        (112, "2f", [np.nan, np.nan]),
        (76, "4f", [1, -2, 2.5, 3]),  # the sform counts, whatever the sizes are
        (76, "4f", [1, 7, 8, 9]),
    ],
)
def test_a_header_that_is_odd_but_clear(tmp_path: Path, offset: int, layout: str, values: list[float]) -> None:
    image = read_nifti(patched(tmp_path / "a.nii", offset, layout, *values))
    np.testing.assert_array_equal(image.as_tensor()[0], VOXELS)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)


def test_forms_that_mirror_each_other(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").affine, AFFINE, atol=1e-5)
    image.set_qform(np.diag([-1, 1, 1, 1]) @ AFFINE, code=1)
    nib.save(image, tmp_path / "a.nii")
    assert "to agree on which side is left" in message(tmp_path / "a.nii")
    image.set_sform(None, code=0)  # then there is but one
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").affine, np.diag([-1, 1, 1, 1]) @ AFFINE, atol=1e-5)


def test_pairs_of_header_and_voxels(tmp_path: Path) -> None:
    for kind in (nib.Nifti1Pair, nib.Nifti2Pair):
        nib.save(kind(VOXELS, AFFINE), tmp_path / "a.img")
        for name in ("a.img", "a.hdr"):
            image = read_nifti(tmp_path / name)
            np.testing.assert_array_equal(image.as_tensor()[0], VOXELS)
            np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    voxels = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").unlink()
    assert f"there is no file {tmp_path / 'a.img'}" in message(tmp_path / "a.hdr", FileNotFoundError)
    (tmp_path / "a.img").write_bytes(voxels)
    (tmp_path / "a.hdr").unlink()
    assert f"there is no file {tmp_path / 'a.hdr'}" in message(tmp_path / "a.img")


@pytest.mark.parametrize("kind", [nib.analyze.AnalyzeImage, nib.Spm99AnalyzeImage])
def test_analyze_does_not_say_which_side_is_left(tmp_path: Path, kind: Callable[..., Any]) -> None:
    nib.save(kind(VOXELS, np.diag([-2.0, 3, 4, 1])), tmp_path / "a.img")
    assert "whose header does not say which side is left. Convert it to NIfTI" in message(tmp_path / "a.img")


def test_big_endian(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS.astype(">f4"), AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz").as_tensor()[0], VOXELS)


def test_names_in_capitals(tmp_path: Path) -> None:
    save_volume(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "A.NII.GZ")
    np.testing.assert_array_equal(read_nifti(tmp_path / "A.NII.GZ").as_tensor()[0], VOXELS)


def test_units_that_there_are_not(tmp_path: Path) -> None:
    said = message(patched(tmp_path / "a.nii", 123, "B", 128))
    assert "Expected units of length and time that NIfTI knows in" in said
    assert "a.nii; got 128" in said


def test_a_volume_that_does_not_say_which_side_is_left_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aeflow_monai.data.nifti._told_of_sides", threading.Event())
    read_nifti(save(tmp_path / "well.nii"))
    assert not caplog.text
    for name in "ab":
        read_nifti(patched(tmp_path / f"{name}.nii", 252, "hh", 0, 0))
    assert caplog.text.count("a.nii does not say which side is left") == 1
    assert "b.nii" not in caplog.text
