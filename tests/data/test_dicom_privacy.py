"""Nothing that a DICOM header says of the patient is in any output of an inference."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from dicom_writer import slice_of, with_pixels, write
from PIL import Image
from pydicom.dataset import Dataset

# One word for each element, in every value that a hospital writes about a person, a place or a wish.
PLANTED = {
    **{
        keyword: f"Planted{keyword}"
        for keyword in (
            *("PatientName", "PatientID", "OtherPatientNames", "PatientComments", "PatientAddress", "InstitutionName"),
            *("InstitutionAddress", "ReferringPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription"),
            *(
                "ProtocolName",
                "AccessionNumber",
                "StudyID",
                "StationName",
                "RequestedProcedureDescription",
                "ImageComments",
            ),
            *(
                "PerformingPhysicianName",
                "AdditionalPatientHistory",
                "DeviceSerialNumber",
                "Occupation",
            ),
        )
    },
    **{"PatientBirthDate": "19430917", "StudyDate": "20310307", "PatientAge": "087Y"},
    **{"StudyInstanceUID": "1.2.826.77.1", "FrameOfReferenceUID": "1.2.826.77.2"},
}
SERIES, INSTANCE = "1.2.826.77.3", "1.2.826.77.4"
Run = Callable[..., Any]


def patient(k: int, voxels: Any, number: int = 1, **tags: Any) -> Dataset:
    values = {
        key: value[:16] if key in ("AccessionNumber", "StudyID", "StationName", "Occupation") else value
        for key, value in PLANTED.items()
    }
    image = with_pixels(slice_of(k, **values), voxels)
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = f"{INSTANCE}.{number}.{k}"
    image.SeriesInstanceUID, image.SeriesNumber, image.InstanceNumber = f"{SERIES}.{number}", number, k + 1
    for tag, value in tags.items():
        setattr(image, tag, value)
    return image


def words() -> list[bytes]:
    texts = ["Planted", "19430917", "20310307", "087Y", "1.2.826.77"]
    return [text.encode(encoding) for text in texts for encoding in ("utf-8", "utf-16-le")]


def contents(path: Path) -> bytes:
    """Bytes of a file, unpacked, with the text of a picture and the extensions of a NIfTI header."""
    found = path.read_bytes()
    if path.suffix == ".gz":
        image = nib.load(path)
        found += gzip.decompress(found) + b"".join(bytes(e.get_content()) for e in image.header.extensions)
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
            found += repr(picture.info).encode() + repr(dict(picture.getexif())).encode()
    return found


def test_planted_values_are_in_no_output(tmp_path: Path, volumes: Path, trained: Path, run_command: Run) -> None:
    source = nib.load(next(iter(sorted((volumes / "images").glob("*.nii.gz")))))
    voxels = (np.asarray(source.dataobj, dtype=np.float32) * 1000).round().astype(np.uint16)
    scans = tmp_path / "scans"
    for number in (1, 2):
        for k in range(voxels.shape[2]):
            write(patient(k, voxels[..., k].T.copy(), number), scans / f"export/{number}{k:03d}.dcm")
    # what fails, and what is left out, is told of in messages
    for k in (0, 1, 3):
        write(patient(k, voxels[..., k].T.copy(), 3), scans / f"gap/{k}.dcm")
    cut = write(patient(0, voxels[..., 0].T.copy(), 4), scans / "cut/a.dcm")
    cut.write_bytes(cut.read_bytes()[:-100])
    write(patient(9, voxels[..., 0].T.copy(), 5, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), scans / "export/mask.dcm")
    odd = write(patient(0, voxels[..., 0].T.copy(), 6), scans / "odd/a.dcm")
    odd.write_bytes(odd.read_bytes().replace(b"MONOCHROME2 ", b"PlantedIllegl"[:12]))
    out = tmp_path / "out"
    done = run_command("monai.bundle run", trained / "configs/inference.yaml", dataset_dir=scans, output_dir=out)
    told = done.stdout + done.stderr
    assert "2 DICOM" not in told
    assert {path.name for path in out.glob("export_*_anomaly_map.nii.gz")} == {
        f"export_{number}_anomaly_map.nii.gz" for number in (1, 2)
    }, told
    assert "uneven distances" in told
    assert "1 damaged: a.dcm" in told
    files = [path for path in (*out.rglob("*"), *trained.rglob("*")) if path.is_file()]
    assert {".png", ".gz", ".csv"} <= {path.suffix for path in files}
    leaks = [(path.name, word) for path in files for word in words() if word in contents(path)]
    assert not leaks
    assert not [word for word in words() if word in told.encode()]
    assert not [path for path in out.rglob("*") if re.search("Planted|826", path.name)]
