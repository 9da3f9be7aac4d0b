from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from aeflow_monai.data.nifti import read_nifti
from aeflow_monai.data.scaled_reader import ScaledReader

RNG = np.random.default_rng(0)


def written(path: Path, dtype: str, shape: tuple[int, ...], slope: float | None, inter: float | None) -> Path:
    voxels = RNG.uniform(0, 120, shape).astype(dtype)
    image = nib.Nifti1Image(voxels, np.diag([-1.0, 2, 3, 1]), dtype=voxels.dtype)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "int32", "float32", "float64"])
@pytest.mark.parametrize(("slope", "inter"), [(None, None), (1.0, -1024.0), (0.37, -11.3)])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6), (5, 6, 7, 1)])
def test_voxels_and_metadata_are_those_of_monai(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    dtype: str,
    slope: float | None,
    inter: float | None,
    shape: tuple[int, ...],
) -> None:
    monkeypatch.setattr("aeflow_monai.data.scaled_reader._CHUNK", 70)  # so that there are several parts
    path = written(tmp_path / f"scan{suffix}", dtype, shape, slope, inter)
    expected = LoadImage(reader="NibabelReader", image_only=True)(path)
    found = LoadImage(reader=ScaledReader, image_only=True)(path)
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert torch.equal(found.affine, expected.affine)
    assert found.meta.keys() == expected.meta.keys()


def test_a_scale_that_32_bits_cannot_tell_apart_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz", "int16", (20, 20, 20), 1e-9, 1.0)
    with pytest.raises(ValueError, match=r"Expected numbers that 32 bits can hold in .*a\.nii\.gz"):
        read_nifti(path)
