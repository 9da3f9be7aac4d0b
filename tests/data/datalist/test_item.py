from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
from inputs import AFFINE, VOXELS

from aeflow_monai.data.datalist.item import files_of, image_files_of

META_IMAGE = "ObjectType = Image\nNDims = 3\nDimSize = 16 18 10\nElementType = MET_FLOAT\nElementDataFile = {}\n"
NRRD = "NRRD0004\ntype: float\ndimension: 3\nsizes: 16 18 10\nencoding: raw\nendian: little\ndata file: {}\n"
LIST = "LIST\n" + "\n".join(f"z{number}.raw" for number in range(10))


def names(image: Any, **more: Any) -> list[str]:
    return [file.name for file in files_of({"case": "a", "image": image, **more})]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "voxels.raw").write_bytes(VOXELS.tobytes())
    for number in range(10):
        (tmp_path / f"z{number}.raw").write_bytes(VOXELS[..., number].tobytes())
    return tmp_path


@pytest.mark.parametrize(("name", "text"), [("a.mhd", META_IMAGE), ("a.mha", META_IMAGE), ("a.nhdr", NRRD)])
def test_voxels_beside_a_header_count(folder: Path, name: str, text: str) -> None:
    header = folder / name
    slices = [f"z{number}.raw" for number in range(10)]
    for data, expected in (("voxels.raw", ["voxels.raw"]), ("z%d.raw 0 9 1", slices), (LIST, slices)):
        header.write_text(text.format(data))
        assert names(str(header)) == [name, *expected]
        assert names([str(header)], lesion=str(header)) == 2 * [name, *expected]
        assert all(file.parent == folder for file in image_files_of({"case": "a", "image": str(header)}))


@pytest.mark.parametrize(
    "data", ["missing.raw", "../voxels.raw", "/dev/zero", "x" * 300, "a\0b", "LIST\nvoxels.raw\n..", ""]
)
@pytest.mark.parametrize(("name", "text"), [("a.mhd", META_IMAGE), ("a.nhdr", NRRD), ("a.nrrd", "{}")])
def test_of_a_broken_header_itself_counts(folder: Path, name: str, text: str, data: str) -> None:
    (folder / "sub").mkdir()
    header = folder / "sub" / name
    header.write_text(text.format(data))
    assert names(str(header)) == [name]


@pytest.mark.parametrize("kind", ["{}", "{}.gz"])
def test_both_halves_of_a_pair_count(tmp_path: Path, kind: str) -> None:
    header, voxels = kind.format("a.hdr"), kind.format("a.img")
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / voxels)
    assert names(str(tmp_path / header)) == [header, voxels]
    assert names(str(tmp_path / voxels)) == [voxels, header]
    (tmp_path / voxels).unlink()
    assert names(str(tmp_path / header)) == [header]
