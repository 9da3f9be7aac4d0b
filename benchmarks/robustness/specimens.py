"""One small file of each format that the package reads, and the way by which the package reads it."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hostile
import itk
import mutations as m
import nibabel as nib
import numpy as np
import pydicom
import torch
from digests import digest
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from safetensors.torch import save_file
from shared import write_untrained

from aeflow_monai import Encoder, Model, Workflow, config_files, load_datalist
from aeflow_monai.data import find_images
from aeflow_monai.engine import Checkpoints
from aeflow_monai.engine.config.stored_model import read_model
from aeflow_monai.files import write_json
from aeflow_monai.locks import release_all

SHAPE = (24, 20, 10)
# the smallest network that has two stages
TINY = {
    "image_size": [32, 32],
    "backbone": "test_resnet",
    "encoder_weights": "random",
    "network_def#network#n_steps": 2,
    "network_def#network#hidden_channels": 4,
    "slicer#min_foreground": 0.0,
    "device": "cpu",
}
ELEMENTS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"),
    *("RescaleIntercept", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "PixelData"),
    *("FrameOfReferenceUID", "Modality", "NumberOfFrames"),
)
VALUES: dict[str, list[Any]] = {
    "US": [0, 1, 3, 12, 65535],
    "DS": [[], ["0", "0"], ["1e38"] * 3, ["-1"] * 6, ["nan"] * 2, "0", "1e300"],
    "IS": ["0", "-1", "2147483647"],
    "UI": ["", "1.2.3", "1.2.840.10008.5.1.4.1.1.88.11"],
    "CS": ["", "RGB", "MONOCHROME1", "PALETTE COLOR", "SR", "X" * 16],
    "OW": [b"", b"\x00" * 2, b"\x00" * 100000],
    "OB or OW": [b"", b"\x00" * 2, b"\x00" * 100000],
}


class Specimen(NamedTuple):
    """A file to damage, and what reads it.

    Args:
        file: that is damaged, below the specimen's folder.
        mutations: that suit the format.
        read: what the package makes of the folder: anything that `digest` takes; an error that names the file.
        is_checked: the format carries a checksum over its content: damaged, it is refused or reads as before.
        shows_cut: whether a file that is cut can be told from a shorter one.
        names_option: an error may name a key that stands in the file in place of the file, which was read well.
        opinion: another reader of the file, which raises if it finds it damaged.
    """

    file: str
    mutations: tuple[m.Mutation, ...]
    read: Callable[[Path], Any]
    is_checked: bool = False
    shows_cut: bool = True
    names_option: bool = False
    opinion: Callable[[Path], Any] | None = None


class LeftOutError(Exception):
    """A file that should be listed is not, and nothing was said of it."""


# --- images ---------------------------------------------------------------------------------------------------------


@cache
def preprocessing() -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    parser = Workflow(config_files("train"), workflow_type="train", logging_file=False, **TINY).parser
    return parser.get_parsed_content("preprocessing")  # type: ignore[no-any-return]


def read_images(folder: Path) -> Any:
    """What inference sees of a folder of images, of which good.png is always whole."""
    items = find_images(folder)
    if not any(str(item["image"]).endswith("good.png") for item in items):
        raise LeftOutError("good.png is not listed")
    rest = [item for item in items if not str(item["image"]).endswith("good.png")]
    if not rest:
        raise LeftOutError("the file is not listed")
    return [image_of(preprocessing()(item)) for item in rest]


def image_of(data: Mapping[str, Any]) -> Any:
    image = data["image"]
    values = torch.as_tensor(image).as_subclass(torch.Tensor)
    if not (values.isfinite().all() and values.min() >= 0 and values.max() <= 1 and image.affine.isfinite().all()):
        raise AssertionError("the image is not in [0, 1] or has no place")
    return [digest(values), digest(image.affine.float())]


def picture(mode: str = "L", format: str = "PNG", **options: Any) -> bytes:
    y, x = np.mgrid[:40, :48]
    grey = np.clip(120 + 90 * np.sin(x / 5) * np.cos(y / 7) + np.random.default_rng(0).normal(0, 9, x.shape), 0, 255)
    values = (grey * 257).astype(np.uint16) if mode == "I;16" else grey.astype(np.uint8)
    image = Image.fromarray(values)
    stream = io.BytesIO()
    (image if mode in ("L", "I;16") else image.convert(mode)).save(stream, format, **options)
    return stream.getvalue()


def voxels() -> Any:
    grid = np.indices(SHAPE, dtype=np.float32)
    return (200 + 100 * np.sin(grid[0] / 3) * np.cos(grid[1] / 4) + 5 * grid[2]).astype(np.int16)


def write_nifti(path: Path) -> None:
    image = nib.Nifti1Image(voxels(), np.diag([-2.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(1.0, 0.0)
    nib.save(image, path)


def write_itk(path: Path, compress: bool = False) -> None:
    image = itk.image_from_array(voxels().transpose(2, 1, 0).copy())
    image.SetSpacing([2.0, 2.0, 3.0])
    itk.imwrite(image, str(path), compression=compress)


def write_dicom(path: Path, index: int) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.3.4.{index + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = "CT", "p", "1.2.3", "1.2.3.9"
    data.FrameOfReferenceUID, data.InstanceNumber = "1.2.3.8", index + 1
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 3 * index], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness, data.RescaleSlope, data.RescaleIntercept = [2, 2], 3, 1, -1024
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = SHAPE[1], SHAPE[0], 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = voxels()[:, :, index].T.tobytes()
    data.save_as(path, enforce_file_format=True)


def change_element(data: bytes, random: np.random.Generator) -> bytes:
    """An element of a DICOM file becomes an extreme, or is lost."""
    found = pydicom.dcmread(io.BytesIO(data))
    name = ELEMENTS[random.integers(len(ELEMENTS))]
    known = VALUES.get(found[name].VR, [""]) if name in found else [7]
    if name in found and random.integers(3) == 0:
        del found[name]
    else:
        setattr(found, name, known[random.integers(len(known))])
    stream = io.BytesIO()
    found.save_as(stream)
    return stream.getvalue()


def by_pillow(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def by_gzip(path: Path) -> None:
    """The compressed data behind the empty line that ends the header of an NRRD file."""
    gzip.decompress(path.read_bytes().partition(b"\n\n")[2])


def by_zlib(path: Path) -> None:
    """The compressed data behind the last line of the header of a MetaImage file."""
    zlib.decompress(path.read_bytes().partition(b"ElementDataFile = LOCAL\n")[2])


def by_nibabel(path: Path) -> None:
    np.asarray(nib.load(path).dataobj)


# --- lists ----------------------------------------------------------------------------------------------------------


def read_list(folder: Path) -> Any:
    items = load_datalist(folder, "all")
    relative = json.loads(json.dumps(items, default=str).replace(str(folder), "FOLDER"))
    if any(item.get("label") not in (None, 0, 1) or not item["case"] for item in relative):
        raise AssertionError(f"no list of labelled cases: {relative}")
    return relative


def read_npz(folder: Path) -> Any:
    items = load_datalist(folder / "tiny.npz", "all", normal_classes=["0"])
    outside = [path for path in folder.parent.rglob("*.png") if not path.is_relative_to(folder)]
    if outside:
        raise AssertionError(f"{outside} lie outside the folder")
    return [[item["case"], item["label"], Path(item["image"]).read_bytes().hex()] for item in items]


def write_npz(path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    labels = np.array([[0], [1], [0], [0]], np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)


def write_list(folder: Path, name: str) -> None:
    for index in range(4):
        (folder / f"{index}.png").write_bytes(picture())
    if name == "manifest.csv":
        rows = "".join(f"{i}.png,{'test' if i % 2 else 'train'},{int(i == 3)},,case{i},p{i}\n" for i in range(4))
        (folder / name).write_text(f"path,split,abnormal,mask,case,patient\n{rows}")
    else:
        items = [{"image": f"{i}.png", "label": int(i == 3), "case": f"case{i}", "patient": f"p{i}"} for i in range(4)]
        write_json(folder / name, {"name": "tiny", "training": items[:2], "test": items[2:]})


# --- bundles --------------------------------------------------------------------------------------------------------


def write_bundle(folder: Path) -> None:
    write_untrained(folder, **TINY)


def run_of(name: str) -> Callable[[Path], Any]:
    """What a run of a bundle makes of its config: all that it needs is built."""

    def read(folder: Path) -> Any:
        options = {"dataset_dir": str(folder / "images"), "output_dir": str(folder / "out")}
        (folder / "images").mkdir()
        write_list(folder / "images", "manifest.csv")
        try:
            started = start([folder / f"configs/{name}.yaml"], **options)
            if name in ("inference", "evaluate"):
                started.parser.get_parsed_content("evaluator")
            return config_of(started, folder)
        finally:
            release_all()  # as the end of a process does

    return read


def read_bundle(folder: Path) -> Any:
    model = Model(folder)
    return [digest(model.detector.state_dict()), repr(model.inferer.slicer.policy())]


def read_preset(folder: Path) -> Any:
    options = {"dataset_dir": str(folder / "images"), "output_dir": str(folder / "out")}
    (folder / "images").mkdir()
    write_list(folder / "images", "manifest.csv")
    try:
        started = start([*config_files("train"), folder / "preset.yaml"], **options)
        for part in ("network_def", "preprocessing", "slicer"):
            started.parser.get_parsed_content(part)
        return config_of(started, folder)
    finally:
        release_all()


def start(files: list[Any], **options: Any) -> ConfigWorkflow:
    workflow = Workflow([str(file) for file in files], workflow_type=None, logging_file=False, **options)
    workflow.initialize()
    return workflow


def config_of(workflow: ConfigWorkflow, folder: Path) -> Any:
    return json.loads(json.dumps(workflow.parser["given"].content, default=str).replace(str(folder), "FOLDER"))


def read_stored(folder: Path) -> Any:
    stored = read_model(folder / "model.pt")
    detector = tiny_detector()
    detector.load_state_dict(dict(stored.state))
    return [digest(detector.state_dict()), digest(stored.config), digest(stored.card)]


@cache
def tiny_training() -> Any:
    """The workflow of a training that is not run: its network, and the config that it was given."""
    workflow = Workflow(config_files("train"), workflow_type="train", logging_file=False, **TINY)
    return workflow.parser.get_parsed_content("network_def"), workflow.parser["given"]


def tiny_detector() -> Any:
    detector = tiny_training()[0]
    for parameter in detector.parameters():
        parameter.data.zero_()
    return detector


def checkpoints(folder: Path, resume: Path | None) -> tuple[Engine, dict[str, Any]]:
    """A training that does nothing but save its state, or go on from one."""
    detector, given = tiny_detector(), tiny_training()[1]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.001)
    state = {"model": detector, "optimizer": optimizer}
    split = [[{"image": str(folder / "good.png"), "case": "good", "label": 0}]] * 2
    engine = Engine(lambda engine, batch: None)
    Checkpoints(folder / "saved", state, given, split, resume).attach(engine)
    return engine, state


def write_checkpoint(folder: Path) -> None:
    (folder / "good.png").write_bytes(picture())
    detector = tiny_training()[0]
    torch.manual_seed(0)
    engine, _ = checkpoints(folder, None)
    for parameter in detector.parameters():
        parameter.data.normal_()
    engine.run([0], max_epochs=1)
    next((folder / "saved").glob("*.pt")).replace(folder / "checkpoint.pt")


def read_checkpoint(folder: Path) -> Any:
    engine, state = checkpoints(folder, folder / "checkpoint.pt")
    engine.state.max_epochs = 1
    engine.fire_event(Events.STARTED)
    return [digest({name: part.state_dict() for name, part in state.items()}), engine.state.epoch]


def encoder_from(name: str) -> Callable[[Path], Any]:
    return lambda folder: digest(Encoder("test_resnet", (2, 3), str(folder / name)).state_dict())


def write_weights(path: Path) -> None:
    torch.manual_seed(0)
    state = Encoder("test_resnet", (2, 3), "random").backbone.state_dict()
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)


# --- all ------------------------------------------------------------------------------------------------------------


def specimens() -> dict[str, Specimen]:
    """All formats, by name."""
    nifti = (*m.BINARY, *[m.fields(m.NIFTI_FIELDS)] * 5)
    header_text = (*m.BINARY, m.change_number, m.change_number, m.change_word, m.change_sign, m.move_line)
    tiff = (*m.BINARY, m.fields(m.TIFF_FIELDS), m.tiff_entry, m.tiff_entry, m.tiff_entry)
    dicom = (*m.BINARY, *[change_element] * 5)
    zipped = tuple(m.inside_gzip(mutation) for mutation in (*m.BINARY, *[m.fields(m.NIFTI_FIELDS)] * 4))
    saved = (*m.BINARY, hostile.malicious, hostile.malicious, hostile.malicious)
    own = (*saved, *[hostile.behind_its_hash] * 3)
    return {
        "NIfTI": Specimen("scan.nii", nifti, read_images, opinion=by_nibabel),
        "NIfTI, compressed": Specimen("scan.nii.gz", m.BINARY, read_images, is_checked=True),
        "NIfTI, inside the compression": Specimen("scan.nii.gz", zipped, read_images, opinion=by_nibabel),
        "PNG": Specimen("scan.png", m.BINARY, read_images, is_checked=True),
        "PNG, header": Specimen("scan.png", (m.png_header,), read_images, opinion=by_pillow),
        "PNG, 16 bit": Specimen("scan16.png", m.BINARY, read_images, is_checked=True),
        "JPEG": Specimen("scan.jpg", m.BINARY, read_images, opinion=by_pillow),
        "TIFF": Specimen("scan.tif", tiff, read_images, opinion=by_pillow),
        "TIFF, compressed": Specimen("packed.tif", tiff, read_images, opinion=by_pillow),
        "NRRD": Specimen("scan.nrrd", header_text, read_images),
        "NRRD, compressed": Specimen("packed.nrrd", header_text, read_images, opinion=by_gzip),
        "MetaImage": Specimen("scan.mha", header_text, read_images),
        "MetaImage, compressed": Specimen("packed.mha", header_text, read_images, opinion=by_zlib),
        "MetaImage, two files": Specimen("scan.mhd", m.TEXT, read_images),
        "DICOM, one file": Specimen("scan.dcm", dicom, read_images),
        "DICOM, a slice of a series": Specimen("series/3.dcm", dicom, read_images),
        "MedMNIST": Specimen("tiny.npz", m.BINARY, read_npz, is_checked=True),
        "CSV list": Specimen("manifest.csv", m.TEXT, read_list, shows_cut=False),
        "JSON list": Specimen("dataset.json", m.TEXT, read_list),
        "YAML of inference": Specimen("configs/inference.yaml", m.TEXT, run_of("inference"), names_option=True),
        "YAML of evaluation": Specimen("configs/evaluate.yaml", m.TEXT, run_of("evaluate"), names_option=True),
        "YAML of calibration": Specimen("configs/calibrate.yaml", m.TEXT, run_of("calibrate"), names_option=True),
        "YAML, opened by Model": Specimen("configs/inference.yaml", m.TEXT, read_bundle),
        "YAML preset": Specimen("preset.yaml", m.TEXT, read_preset, shows_cut=False, names_option=True),
        "metadata.json": Specimen("configs/metadata.json", m.TEXT, read_bundle),
        "model.pt": Specimen("model.pt", own, read_stored, is_checked=True),
        "model.pt in its bundle": Specimen("models/model.pt", own, read_bundle, is_checked=True),
        "checkpoint": Specimen("checkpoint.pt", own, read_checkpoint, is_checked=True),
        "encoder weights, .pth": Specimen("weights.pth", saved, encoder_from("weights.pth"), is_checked=True),
        "encoder weights, .safetensors": Specimen("weights.safetensors", m.BINARY, encoder_from("weights.safetensors")),
    }


def prepare(folder: Path) -> None:
    """Write the folder of each specimen, undamaged."""
    bundle = folder / "bundle"
    write_bundle(bundle)
    for name, specimen in specimens().items():
        own = folder / name
        path = own / specimen.file
        if specimen.file.startswith(("configs/", "models/")):
            shutil.copytree(bundle, own)
            continue
        path.parent.mkdir(parents=True)
        if specimen.read is read_images:
            (own / "good.png").write_bytes(picture())
        write_one(path)


def write_one(path: Path) -> None:
    """Write the undamaged file of one specimen, and what belongs to it."""
    name = path.name
    pictures: dict[str, dict[str, Any]] = {
        "scan.png": {},
        "scan16.png": {"mode": "I;16"},
        "scan.jpg": {"format": "JPEG", "quality": 90},
        "scan.tif": {"format": "TIFF"},
        "packed.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    }
    if name in pictures:
        path.write_bytes(picture(**pictures[name]))
    elif name.endswith((".nii", ".nii.gz")):
        write_nifti(path)
    elif name.endswith((".nrrd", ".mha", ".mhd")):
        write_itk(path, compress=name.startswith("packed"))
    elif name.endswith(".dcm"):
        for index in range(6) if path.parent.name == "series" else [3]:
            write_dicom(path.parent / (f"{index}.dcm" if path.parent.name == "series" else name), index)
    elif name == "tiny.npz":
        write_npz(path)
    elif name in ("manifest.csv", "dataset.json"):
        write_list(path.parent, name)
    elif name == "preset.yaml":
        shutil.copyfile(config_files("healthy_t1")[0], path)
    elif name == "model.pt":
        shutil.copyfile(path.parent.parent / "bundle/models/model.pt", path)
    elif name == "checkpoint.pt":
        write_checkpoint(path.parent)
    else:
        write_weights(path)
