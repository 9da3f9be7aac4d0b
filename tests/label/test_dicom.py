"""The app on a DICOMweb server: Orthanc with its DICOMweb plugin, where Debian's packages are installed."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from asking import ask, form, params, refused

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

pytestmark = [
    pytest.mark.skipif(
        shutil.which("Orthanc") is None or not PLUGIN.exists(),
        reason="a DICOMweb server is needed: apt-get install orthanc orthanc-dicomweb",
    ),
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),
]

CASES = ("train_normal_000", "train_normal_001", "test_abnormal_000")


def as_series(path: Path, case: str) -> tuple[str, list[bytes]]:
    """A volume as an MR series: its UID and files."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj).astype(np.int16)
    affine = np.diag([-1, -1, 1, 1]) @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    right, down, _ = (affine[:3, :3] / spacing).T
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    files = []
    for index in range(values.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.is_little_endian, file.is_implicit_VR = True, False
        file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, series, frame
        file.PatientName = file.PatientID = case
        file.StudyDate, file.StudyTime, file.Modality = "20250101", "120000", "MR"
        file.SeriesNumber, file.InstanceNumber = 1, index + 1
        file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 1
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.Rows, file.Columns = values.shape[1], values.shape[0]
        file.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        file.SliceThickness = file.SpacingBetweenSlices = f"{spacing[2]:.6f}"
        file.ImageOrientationPatient = [f"{value:.8f}" for value in (*right, *down)]
        file.ImagePositionPatient = [f"{value:.6f}" for value in (affine @ [0, 0, index, 1])[:3]]
        file.PixelData = np.ascontiguousarray(values[:, :, index].T).tobytes()
        stream = io.BytesIO()
        dcmwrite(stream, file, write_like_original=False)
        files.append(stream.getvalue())
    return series, files


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, volumes: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a DICOMweb server on loopback, and the UIDs of its series by case."""
    folder = tmp_path_factory.mktemp("pacs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        **{"StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [str(PLUGIN)]},
        **{"HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(options))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.2)
        series = {}
        for case in CASES:
            series[case], files = as_series(volumes / f"images/{case}.nii.gz", case)
            for content in files:
                headers = {"content-type": "application/dicom"}
                request = urllib.request.Request(f"http://127.0.0.1:{port}/instances", content, headers)
                with urllib.request.urlopen(request) as answer:
                    assert answer.status == 200
        yield f"http://127.0.0.1:{port}/dicom-web", series
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture(scope="module")
def server(pacs: tuple[str, dict[str, str]], make_server: Callable[..., Any]) -> Iterator[Any]:
    limits = {"MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}', "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "1"}
    server = make_server(pacs[0], **limits)
    server.start()
    yield server
    server.close()


def test_series_are_scored_marked_normal_and_trained_on(
    pacs: tuple[str, dict[str, str]], server: Any, volumes: Path, tmp_path: Path
) -> None:
    import requests

    _, series = pacs
    path, said = server.client.infer("anomaly_mask", series["test_abnormal_000"], {})
    source = volumes / "images/test_abnormal_000.nii.gz"
    _, expected = server.client.infer("anomaly_mask", "", {}, file=str(source))
    assert said["anomaly_score"] == pytest.approx(expected["anomaly_score"], abs=1e-4)
    answer, original = (nib.as_closest_canonical(nib.load(file)) for file in (path, source))
    assert answer.shape == original.shape
    np.testing.assert_allclose(answer.affine, original.affine, atol=1e-4)
    assert "There is no series '1.2.3'" in server.refusal("infer", "anomaly_mask", "1.2.3", {})
    for method, path in (
        *(("GET", "image?image"), ("GET", "label?tag=final&label"), ("DELETE", "label?tag=final&id")),
        *(("PUT", "label?image"), ("PUT", "image/info?image")),
    ):
        files = [("label", "label.nii.gz", b"no label")] if path == "label?image" else [("info", None, b"{}")]
        answer = ask(server, method, f"/datastore/{path}=1.2.3", **(form(*files) if method == "PUT" else {}))
        assert "1.2.3" in refused(answer, 404)
    seg = f"/infer/anomaly_mask?image={series['test_abnormal_000']}&output=dicom_seg"
    wrong = params(label_info="anomaly")
    assert "list of objects" in refused(ask(server, "POST", seg, **wrong), 400)
    if shutil.which("itkimage2segimage") is None:
        assert "pip install dcmqi" in refused(ask(server, "POST", seg, **params(label_info=[{"name": "a"}])), 400)
    # what OHIF asks the DICOMweb server for, and not what else it has
    address = f"http://127.0.0.1:{server.port}/proxy/dicom/qido/studies"
    assert len(requests.get(address, timeout=60).json()) == len(CASES)
    for path in ("wado/../../tools/execute-script", "wado/%2e%2e/%2e%2e/system", "qido/system", "/system"):
        assert server.ask(f"/proxy/dicom/{path}")[0] == 404
    assert server.ask("/proxy/dicom/stow/studies", "POST", {})[0] == 403

    empty = tmp_path / "empty.nii.gz"
    for case in CASES[:2]:
        grid = nib.as_closest_canonical(nib.load(volumes / f"images/{case}.nii.gz"))  # in another order of its axes
        nib.save(nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine), empty)
        server.client.save_label(series[case], str(empty), tag="final")
    time.sleep(1.5)
    assert server.client.info()["datastore"]["completed"] == 2
    assert server.client.next_sample("most_anomalous", {})["id"] == series["test_abnormal_000"]
    server.client.train_start("anomaly", {"max_epochs": 1, "allow_fewer_normals": True})
    status = server.wait_for("/train/")
    assert status["status"] == "DONE", status["details"]
    record = json.loads((server.folder / "app/model/v2/record.json").read_text())
    # whose patients are told apart by numbers
    listed = next((server.folder / "app/model/runs").glob("*/dataset.json")).read_text()
    assert "patient 2" in listed
    assert not [case for case in CASES if case in listed]
    assert record["trained_on"] == sorted(series[case] for case in CASES[:2])
    server.get("/scoring/anomaly_score", "POST", {})
    assert server.wait_for("/scoring/")["status"] == "DONE"
    sample = server.client.next_sample("most_anomalous", {})
    assert sample["PatientID"] == "test_abnormal_000"
    assert sample["anomaly_model"] == 2


@pytest.mark.skipif(
    shutil.which("itkimage2segimage", path=str(Path(sys.executable).parent)) is None,
    reason="DICOM SEG needs a converter: pip install dcmqi",
)
def test_masks_come_and_go_as_dicom_seg(pacs: tuple[str, dict[str, str]], server: Any) -> None:
    import pydicom
    import requests

    address, series = pacs
    image = series["test_abnormal_000"]
    options = {"label_info": [{"name": "anomaly"}], "threshold": 0.5}  # so that the mask is not empty
    answer = requests.post(
        f"http://127.0.0.1:{server.port}/infer/anomaly_mask",
        params={"image": image, "output": "dicom_seg"},
        data={"params": json.dumps(options)},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert seg.Modality == "SEG"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == image

    path, said = server.client.infer("anomaly_mask", image, {"threshold": 0.5})
    server.client.save_label(image, path, tag="final", params={"label_info": [{"name": "anomaly", "idx": 1}]})
    stored = requests.get(f"{address}/series", params={"Modality": "SEG"}, timeout=60).json()
    assert len(stored) == 1
    time.sleep(1.5)
    report = server.evaluation()
    assert (report["n_images"], report["failed"]) == (1, {})
    assert 0 < report["metrics"]["n_lesion_voxels"] <= said["anomalous_voxels"]
