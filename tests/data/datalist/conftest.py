from pathlib import Path

import pytest
from inputs import write_csv, write_images


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with a manifest of four images and one mask."""
    write_images(tmp_path, ["x/a.nii.gz", "x/b.nii.gz", "y/c.nii.gz", "y/d.nii.gz", "masks/d.nii.gz"])
    rows = [
        ("path", "split", "class", "abnormal", "mask", "case"),
        ("y/d.nii.gz", "test", "tumour", "1", "masks/d.nii.gz", "patient 4"),
        ("x/b.nii.gz", "train", "normal", "0", "", "patient 1"),
        ("y/c.nii.gz", "test", "normal", "0", "", ""),
        ("x/a.nii.gz", "train", "normal", "0", "", "patient 1"),
    ]
    write_csv(tmp_path, rows)
    return tmp_path
