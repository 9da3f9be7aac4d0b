"""Export of a trained model for a runtime, to a file for each plane, with a JSON file that describes its use."""

from __future__ import annotations

import inspect
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import torch

from aeflow_monai.about import DISCLAIMER, __version__
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.bundles.model import Model
from aeflow_monai.engine.bundles.plane_combination import combination_of, combination_says
from aeflow_monai.engine.config.fixed_options import fixed_options
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.engine.inference.onnx_form import onnx_of
from aeflow_monai.engine.inference.picture_warning import saw_pictures, saw_volumes
from aeflow_monai.engine.inference.runtimes import require_packages
from aeflow_monai.engine.inference.whole_model import OUTPUTS_OF_PLANE, OUTPUTS_OF_WHOLE, WholeModel
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import read_json, replacing, replacing_together, write_json

__all__ = ["FORMS", "export_model"]

FORMS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
_logger = logging.getLogger(__name__)

_PACKAGES = {"onnx": ("onnx",), "openvino": ("onnx", "openvino"), "torch": ()}

_UNIT = "standard deviations of held-out normals; larger is more anomalous"
_SAYS = {
    "anomaly_map": f"of each slice, in {_UNIT}; a voxel is abnormal above map_threshold",
    "slice_scores": "of each slice; it is abnormal above slice_threshold",
    "ease": "how much easier to reconstruct each slice is than normals",
    "map_scores": "of each slice, without the global term",
    "global_terms": "how unusual all of each slice is",
    "case_score": "of the case; it is abnormal above case_threshold",
    "case_map_score": "what of case_score is the maps'",
    "case_global_term": "what of case_score is the global terms'",
}
_PRECISION = (
    "compile with the property INFERENCE_PRECISION_HINT = f32: where the processor has half precision, OpenVINO uses "
    "it by default, and scores differ by 0.1 standard deviations and more"
)
_OF_ONE_PLANE = f"of each slice by this plane alone, in {_UNIT}; see several_planes"
_POSITION = (
    "relative slice position, in [0, 1]: of the slices from the first that is processed to the last, 0 is the first, 1 "
    "the last, 0.5 if there is only one. Slices are blurred with their neighbours by it, inside the model"
)
_WHOLE_PLANE = (
    "all slices of one case that are to be scored, in one batch of any size, since maps are blurred through them and "
    "the case score is made of all of them"
)
_TO_SIZE = {
    "resize": "brought to the input's size bilinearly, with antialiasing where they shrink, as by Pillow's resize.",
    "pad": (
        "padded with 0 around their centre to the input's size, half of the margin before them, rounded down. This "
        "file does not take larger slices, which aeflow scores in their own size: do not shrink them."
    ),
}
_SEVERAL_PLANES = (
    "Run each plane's file on the case. M is the mean of the files' case_map_score, G that of their case_global_term. "
    "The case score is {joined}. A voxel's map value is the mean over the planes that saw it."
)


def export_model(folder: str | Path, form: str, output: str | Path, overwrite: bool = False) -> list[Path]:
    """Export a bundle's model as a whole: encoder, flow, decoder, maps, position normalisation and calibration.

    Args:
        folder: folder of the bundle.
        form: one of `FORMS`.
        output: a new folder for model and JSON file, or the path of the model, with the suffix of its form.
        overwrite: replace an earlier export at this place, of any form.

    Returns:
        The written files: the model, one file for each plane, and the JSON file last.

    Raises:
        FileNotFoundError: there is no model.
        OSError: for example a full disk; then none of the files is written.
        ValueError: files exist and are not to be replaced; an unknown form; a path of one file for a model of several
            planes; a model of which it is unknown whether it is of volumes; or see `require_own_config`.
        ModuleNotFoundError: names a package that the form requires.
    """
    if form not in FORMS:
        raise ValueError(f"Expected one of {', '.join(FORMS)} to export to; got {form!r}.")
    require_packages(f"Exporting to {form}", _PACKAGES[form])
    model, path = Model(folder), Path(output)
    slicer, detector = model.inferer.slicer, model.detector
    state = detector.score.state_dict(prefix="score.")
    of_pictures = saw_pictures(state)
    if not of_pictures and not saw_volumes(state):
        raise ValueError(
            f"The model in {folder} does not tell whether it is of volumes or of 2D images: an earlier version wrote "
            "it. Set its thresholds anew with aeflow calibrate, which notes that, or train it anew; then export that."
        )
    planes = [None] if of_pictures else [*slicer.axes]
    is_file = path.suffix == FORMS[form]
    if is_file and len(planes) > 1:
        raise ValueError(
            f"The model has {len(planes)} planes, {', '.join(map(str, planes))}, with a file for each. Give a "
            f"folder in place of {path}."
        )
    if not is_file and (path.suffix in FORMS.values() or path.is_file()):
        raise ValueError(f"Expected a folder, or a file that ends with {FORMS[form]}, to export to {form}; got {path}.")
    if in_the_way := next((parent for parent in path.parents if parent.is_file()), None):
        raise ValueError(f"Expected a folder to write to; {in_the_way} is a file. Give another path.")
    stem = path.with_suffix("") if is_file else path / "model"
    json_file = stem.with_name(f"{stem.name}.json")  # a name may contain further dots
    names = [f"{stem.name}_{plane}" if len(planes) > 1 else stem.name for plane in planes]
    files = [stem.with_name(name + FORMS[form]) for name in names]
    earlier = _parts([stem.with_name(name) for name in _files_of(json_file)])
    there = {file.name for file in (json_file, *_parts(files), *earlier) if file.exists()}
    if there and not overwrite:
        raise ValueError(
            f"{stem.parent} holds {', '.join(sorted(there))}, which would be lost. Give another folder with -o, or "
            "replace them with --overwrite."
        )
    if slicer.fit == "pad":
        _logger.warning(
            f"The model pads slices, and scores larger ones in their own size. What is exported takes those of up to "
            f"{' x '.join(map(str, slicer.image_size))} pixels."
        )
    with replacing_together(stem.parent) as unfinished:
        for plane, file in zip(planes, files, strict=True):
            whole = WholeModel(detector, plane, slicer.image_size)
            size = (detector.network.encoder.in_channels, *slicer.image_size)
            _write(whole, size, form, unfinished / file.name, file)
        about = _about(Path(folder), model, planes, [file.name for file in files], form)
        write_json(unfinished / json_file.name, about)
    for file in earlier:  # for example of another form, which the new JSON file does not describe
        if file not in _parts(files):
            file.unlink(missing_ok=True)
    return [*files, json_file]


def _parts(files: Sequence[Path]) -> list[Path]:
    """Return the files, and for OpenVINO also the weights file of each."""
    return [part for file in files for part in (file, file.with_suffix(".bin"))[: 2 if file.suffix == ".xml" else 1]]


def _files_of(json_file: Path) -> list[str]:
    """Return the files that an earlier export wrote beside its JSON file."""
    try:
        about = read_json(json_file)
    except ValueError:  # it is not JSON
        return []
    if "aeflow_monai_version" not in about:
        return []
    files = about["files"]
    return [*files.values()] if isinstance(files, dict) else [files]


def _write(whole: WholeModel, size: tuple[int, ...], form: str, path: Path, place: Path) -> None:
    """Write a model to a path from which it will be moved to its place."""
    inputs = {"image": torch.rand(3, *size)}
    if whole.plane is not None:
        inputs["position"] = torch.linspace(0, 1, 3)
    of_case = () if whole.plane is None else OUTPUTS_OF_WHOLE[5:]
    of_any_size = {name: "N" for name in (*inputs, *whole.outputs) if name not in of_case}
    if form == "torch":
        any_size = torch.export.Dim("N", min=1)
        with torch.no_grad():
            shapes = tuple({0: any_size} for _ in inputs)
            program = torch.export.export(whole, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
            stream = io.BytesIO()  # torch aborts the process if a file cannot be written
            torch.export.save(program, stream)
        _write_bytes(path, stream.getvalue())
        return
    model = onnx_of(whole, inputs, whole.outputs, of_any_size)
    if form == "onnx":
        _write_bytes(path, model)
        return
    _write_openvino(path, model, place)


def _write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as unfinished:  # names the file in an error
        unfinished.write_bytes(content)


def _write_openvino(path: Path, model: bytes, place: Path) -> None:
    """Write an ONNX model as OpenVINO's pair of files, the second of which ends with .bin."""
    import openvino

    core = openvino.Core()
    layers = core.read_model(model, b"")
    try:
        openvino.save_model(layers, path, compress_to_fp16=False)
        core.read_model(path)  # reports a write error that occurred when the stream was closed
    except RuntimeError as error:  # OpenVINO raises no OSError with an error number
        said = " ".join(str(error).split()).replace(str(path.parent), str(place.parent))
        raise OSError(
            f"OpenVINO could not write {place}: {said} Is the disk full, or the size of files limited?"
        ) from error


def _about(folder: Path, model: Model, planes: list[str | None], files: list[str], form: str) -> dict[str, Any]:
    """Return the content of the JSON file."""
    score, slicer = model.detector.score, model.inferer.slicer
    of_volumes = planes[0] is not None
    height, width = slicer.image_size
    size = [model.detector.network.encoder.in_channels, height, width]
    n = "N"
    inputs: dict[str, Any] = {"image": {"type": "float32", "shape": [n, *size], "range": [0, 1]}}
    inputs["image"]["says"] = "slices as the preprocessing below makes them; rows, then columns"
    if of_volumes:
        inputs["image"]["batch"] = _WHOLE_PLANE
        inputs["position"] = {"type": "float32", "shape": [n], "range": [0, 1], "says": _POSITION}
    shapes: dict[str, list[Any]] = {"anomaly_map": [n, 1, height, width]}
    case_shape = [1] if of_volumes else [n]
    of_mean_map = bool(score.of_mean_map)
    outputs = {
        name: {
            "type": "float32",
            "shape": shapes.get(name, case_shape if name.startswith("case_") else [n]),
            "says": _OF_ONE_PLANE if of_mean_map and name == "anomaly_map" else _SAYS[name],
        }
        for name in (OUTPUTS_OF_PLANE if of_mean_map else OUTPUTS_OF_WHOLE)
    }
    about: dict[str, Any] = {
        "disclaimer": DISCLAIMER,
        "aeflow_monai_version": __version__,
        "form": form,
        "files": dict(zip(map(str, planes), files, strict=True)) if of_volumes else files[0],
        "kind": "slices of a plane of one volume" if of_volumes else "2D images, each a case of its own",
        "inputs": inputs,
        "outputs": outputs,
        "thresholds": {**score.thresholds, "unit": _UNIT, "expected_specificity": score.expected_specificity},
        "preprocessing": _preprocessing(folder, slicer),
        "model_sha256": sha256_of(model_path(folder)),
    }
    if form == "openvino":
        about["precision"] = _PRECISION
    if of_mean_map:
        about["several_planes"] = combination_says(score, slicer)
        about["combination"] = combination_of(score, slicer)
    elif len(planes) > 1:
        about["several_planes"] = _SEVERAL_PLANES.format(joined=score.formula("M", "G"))
    return about


def _preprocessing(folder: Path, slicer: Slicer) -> Mapping[str, Any]:
    """Describe the model's preprocessing in words and as the training's config."""
    config = fixed_options(read_model(model_path(folder)).config)
    parts = {name: part for name, part in config.items() if name != "network_def"}
    return {
        "says": (
            "An image is oriented (rows to posterior, columns to left, slices to superior; coronal and sagittal slices "
            "stand upright), its intensities are scaled to [0, 1] and clipped, and its slices are "
            f"{_TO_SIZE[slicer.fit]} The config below names each step with its options; background is 0."
        ),
        "steps": {name: words for name, words in map(_described, _targets(parts)) if words},
        "config": parts,
    }


def _targets(part: Any) -> Iterator[str]:
    """Names of the components in a config, in their order."""
    if isinstance(part, Mapping) and isinstance(part.get("_target_"), str):
        yield part["_target_"]
    below = part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ()
    for each in below:
        yield from _targets(each)


def _described(target: str) -> tuple[str, str]:
    """The name of a component, and what its class documents before its arguments; nothing of other packages' ones."""
    found = locate(target) if target.startswith("aeflow_monai.") else None
    words = (inspect.getdoc(found) or "").partition("\n\nArgs:")[0] if isinstance(found, type) else ""
    return target.rpartition(".")[2], " ".join(words.split())
