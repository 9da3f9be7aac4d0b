"""Score a volume from several planes with what `aeflow export RUN --to onnx -o FOLDER` wrote, without torch.

    python onnx_planes_without_torch.py FOLDER CASE X Y Z

X Y Z is the shape of the volume after the preprocessing in FOLDER/model.json. CASE holds for each plane, such as axial,
the scored slices, axial.npy, (N, C, H, W) in [0, 1], and their numbers from 0, axial_numbers.npy, (N,), ascending.
Research use only. Not a medical device.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, case, shape = Path(sys.argv[1]), Path(sys.argv[2]), [int(size) for size in sys.argv[3:6]]
about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
how = about.get("combination") or sys.exit("Expected a model of several planes; for one use onnx_without_torch.py.")


def slices_of(volume: np.ndarray, plane: str) -> np.ndarray:
    """View a volume (X, Y, Z) as slices (n, rows, columns)."""
    return volume.transpose(how["planes"][plane]["axes"])[:, :: how["planes"][plane]["row_step"]]


def resized(maps: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize, crop or pad maps (n, h, w)."""
    return _matrix(maps.shape[1], rows) @ maps @ _matrix(maps.shape[2], columns).T


def _matrix(size: int, wanted: int) -> np.ndarray:
    if how["fit"] == "pad":
        return np.eye(wanted, size, int((size - wanted) / 2), dtype=np.float32)
    distance = (np.arange(wanted)[:, None] + 0.5) * size / wanted - np.arange(size) - 0.5
    weights = np.maximum(1 - np.abs(distance) / max(size / wanted, 1), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def top_mean(values: np.ndarray, fraction: float) -> np.ndarray:
    """Average the highest fraction along the last axis."""
    return np.sort(values)[..., -int(np.ceil(fraction * values.shape[-1])) :].mean(axis=-1)


def joined(of_maps: np.ndarray, term: np.ndarray) -> np.ndarray:
    """Join map scores and global terms to scores."""
    if how["global_term"] is None:
        return of_maps
    weight, softness, (start, sharpness) = (how["global_term"][name] for name in ("weight", "softness", "bend"))
    term = np.minimum(term, start) + sharpness * np.log1p(np.maximum(term - start, 0) / sharpness)
    return softness * (np.logaddexp(of_maps / softness, weight * term / softness) - np.log(2))


volume, seen, found = np.zeros(shape, np.float32), np.zeros(shape, np.float32), {}
for plane, file in about["files"].items():
    slices, numbers = np.load(case / f"{plane}.npy").astype(np.float32), np.load(case / f"{plane}_numbers.npy")
    if not (len(slices) and (abs(slices - 0.5) < 0.5001).all()):  # NaN is not either; resizing rounds
        sys.exit(f"Expected one or more {plane} slices in [0, 1], see preprocessing in the model's JSON file.")
    position = np.float32((numbers - numbers[0]) / (numbers[-1] - numbers[0]) if len(numbers) > 1 else [0.5])
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    maps, ease, terms = session.run(["anomaly_map", "ease", "global_terms"], {"image": slices, "position": position})
    slices_of(volume, plane)[numbers] += resized(maps[:, 0], *slices_of(volume, plane).shape[1:])
    slices_of(seen, plane)[numbers] += 1
    found[plane] = numbers, ease, terms
volume /= np.maximum(seen, 1)

slice_scores, parts = {}, []
for plane, (numbers, ease, terms) in found.items():
    maps = resized(slices_of(volume, plane)[numbers], *how["image_size"]).reshape(len(numbers), -1)
    tops = np.stack([top_mean(maps, fraction) for fraction in how["top_fractions"]], axis=1)
    of_maps = ((tops - how["fraction_mean"]) / how["fraction_std"]).mean(axis=1)
    of_maps += how["ease_weight"] * np.maximum(ease - how["ease_margin"], 0)
    slice_scores[plane] = joined(of_maps, terms)
    parts.append((top_mean(of_maps, how["case_top_fraction"]), terms.mean()))
case_score = joined(*np.mean(parts, axis=0))
print(f"case score {case_score:.4f}: {'abnormal' if case_score > about['thresholds']['case_threshold'] else 'normal'}")
plane, mask = next(iter(found)), volume > about["thresholds"]["map_threshold"]
most = found[plane][0][slice_scores[plane].argmax()]
print(f"most anomalous slice: {plane} {most}; voxels above the threshold: {mask.sum()}")
