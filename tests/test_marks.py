from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from inputs import AFFINE, write_image
from matplotlib.figure import Figure
from monai.data import MetaTensor
from PIL import Image

from aeflow_monai.marks import has_mark
from aeflow_monai.output.maps import EXTENSIONS, WriteMapsd
from aeflow_monai.output.nifti_files import write_nifti
from aeflow_monai.output.panels import new_figure, save_picture


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_maps_are_known_wherever_they_lie(tmp_path: Path, extension: str, channels: int) -> None:
    case = {"case": "c", "anomaly_map": MetaTensor(torch.rand(channels, 6, 5, 4), affine=torch.as_tensor(AFFINE))}
    WriteMapsd(["anomaly_map"], tmp_path, extension)(case)
    moved = (tmp_path / f"c_anomaly_map{extension}").rename(tmp_path / f"scan{extension}")
    assert has_mark(moved)


def test_a_map_that_another_tool_saves_again_is_known(tmp_path: Path) -> None:
    for version, image_class in enumerate((nib.Nifti1Image, nib.Nifti2Image), start=1):
        source = image_class(np.zeros((3, 4, 5), np.int16), np.eye(4)).header
        path = tmp_path / f"{version}.nii.gz"
        write_nifti(path, np.ones((1, 3, 4, 5), np.float32), np.eye(4), source)
        assert has_mark(path)
        nib.save(nib.load(path), tmp_path / f"again{version}.nii")
        assert has_mark(tmp_path / f"again{version}.nii")
        image = nib.load(path)
        image.header["descrip"] = b"FSL5.0"  # which keeps the other field
        nib.save(image, tmp_path / f"fsl{version}.nii.gz")
        assert has_mark(tmp_path / f"fsl{version}.nii.gz")


def test_pictures_are_known(tmp_path: Path) -> None:
    figure: Figure = new_figure((2, 1), "a")
    save_picture(figure, tmp_path / "a.png")
    assert has_mark(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["Software"] == "aeflow_monai"


def test_other_files_bear_no_mark(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.png", "a.jpg", "empty.mha", "empty.nrrd"):
        assert not has_mark(write_image(tmp_path / name))
    (tmp_path / "text.nii.gz").write_bytes(b"no gzip aeflow_monai")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:9])
    (tmp_path / "aeflow_monai.txt").write_text("aeflow_monai")
    for name in ("text.nii.gz", "cut.nii.gz", "aeflow_monai.txt", "absent.nii", "\0.nii"):
        assert not has_mark(tmp_path / name)
