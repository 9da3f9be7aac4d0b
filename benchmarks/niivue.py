"""Compare the public images of NiiVue, as read by this package, with nibabel's reading.

    python benchmarks/niivue.py FOLDER [FOLDER ...]

FOLDER holds images, such as packages/niivue/demos/images of github.com/niivue/niivue, or a clone of
github.com/niivue/niivue-demo-images. A NIfTI or MGH file is compared with nibabel's reading of it; a NRRD or MetaImage
file with the NIfTI file of the same name. Affines are compared at the corners, to 0.01 mm. Prints a table; the exit
status is 1 if an image differs from its reference, 2 if there is nothing to compare. Refused images are named with the
reason, and do not count as differences.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dcm_qa import Row, compare_volume, report

from aeflow_monai.data import CheckImaged, LoadCased

OWN_REFERENCE = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh")
OTHERS = (".nrrd", ".nhdr", ".mha", ".mhd")


def compare(folder: Path) -> Iterator[Row]:
    """Compare each volume below a folder with its reference."""
    load, check = LoadCased("image"), CheckImaged()
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith(OWN_REFERENCE + OTHERS):
            continue
        reference = path if path.name.endswith(OWN_REFERENCE) else path.with_suffix(".nii.gz")
        try:
            image = check(load({"image": str(path)}))["image"]
        except ValueError as error:
            yield Row(path.name, 0, np.nan, np.nan, str(error))
            continue
        if not reference.is_file():
            yield Row(path.name, 0, np.nan, np.nan, "read, without reference")
        else:
            yield compare_volume(image, reference)._replace(reference=path.name)


if __name__ == "__main__":
    sys.exit(report([row for folder in sys.argv[1:] for row in compare(Path(folder))], "folders of images"))
