"""Training slices of volumes: each file is read and preprocessed once, then slices come from memory or disk."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset, Subset

from aeflow_monai.about import versions
from aeflow_monai.data.datalist.item import files_of, patient_of
from aeflow_monai.data.slicer import SliceKind, Slicer
from aeflow_monai.errors import FailureLog
from aeflow_monai.file_digests import digest_of, sha256_of
from aeflow_monai.files import read_json, replacing, write_json
from aeflow_monai.progress import tracked

__all__ = ["SliceDataset", "SomeCases"]

_logger = logging.getLogger(__name__)

_REMEDY = "Mend or remove them. `run prepare` of train.yaml writes a list of all that can be read, to train on."
_FORMAT = 7  # version of the stored slices; raise it when what is stored changes


class SliceDataset(Dataset[dict[str, Any]]):
    """The normal or the abnormal slices of preprocessed volumes, ready for the network.

    Each file is read and preprocessed once. Slices then come from memory, or from a memory-mapped file that outlives
    the run and is reused by a later one with the same files, preprocessing and policy. All workers of a loader share
    either.

    The kind of a slice is determined by the item's mask if it has one, else by its label; see `Slicer.kinds`. A volume
    with label 1 needs a mask; an abnormal 2D image is an abnormal slice, whatever its mask.

    Items hold "image" (C, H, W), "case", "patient" (the case, if no patient is named), "file", "axis", "slice" (its
    number along the axis), "volume_shape" (X, Y, Z) and "relative_position" (see `Places`). Abnormal ones also hold
    "lesion", (1, H, W) in [0, 1]: the fraction of each pixel that the mask covers, or 1 everywhere without a mask.

    Args:
        data: a datalist; each item goes through `transform` once.
        transform: returns "image" as (C, X, Y, Z), oriented to PLS, in [0, 1], and for abnormal items "lesion"
            (1, X, Y, Z). Z is 1 for a 2D image.
        slicer: the slicing policy. All slices have to come out in one size.
        step: only every step-th slice is taken, 1 or more.
        folder: folder of the memory-mapped file; slices are kept in memory if None.
        kind: kind of the slices, "normal" or "abnormal".
        others: items of another part of the data, which are read too if one of `data` cannot be read, so that the
            error names all that cannot.

    Raises:
        CaseFailures: items cannot be read, or hold NaN or infinite values; the error names all of them.
        ValueError: unknown kind; no slice is left; slices come out in different sizes; an abnormal item has no mask.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        slicer: Slicer,
        step: int = 1,
        folder: str | Path | None = None,
        kind: SliceKind = "normal",
        others: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if step < 1:
            raise ValueError(f"step has to be 1 or more; got {step}.")
        if kind not in ("normal", "abnormal"):
            raise ValueError(f"kind has to be normal or abnormal; got {kind!r}.")
        self.kind = kind
        self.step = step
        self.others = others
        self.index: list[dict[str, Any]] = []
        self.shape: tuple[int, ...] = ()
        self._volumes: list[Tensor] = []  # slices of each volume and plane, (n, C, H, W)
        self._place: list[tuple[int, int]] = []
        self._stored: Any = None
        if folder is None:
            for planes in self._read(data, transform, slicer, step):
                self._place += [(len(self._volumes), row) for row in range(len(planes))]
                self._volumes.append(planes)
        else:
            self._keep(Path(folder), data, transform, slicer, step)
        if not self.index:
            inside = f", lies in slice_range {list(slicer.slice_range)}" if slicer.slice_range else ""
            raise ValueError(
                f"No slice is left of {len(data)} cases: none is {kind}{inside} and has {slicer.min_foreground:.0%} of "
                f"its pixels above 0. {'Widen slice_range, lower' if inside else 'Lower'} min_foreground or "
                "normal_margin_mm, or check the intensity normalisation."
            )
        size = 4 * math.prod(self._stored_shape) * len(self.index) / 2**20
        _logger.info(f"{len(self.index)} slices of {len(data)} cases in {folder or 'memory'} ({size:.0f} MB)")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._stored is not None:
            image = torch.from_numpy(np.array(self._stored[index]))
        else:
            volume, row = self._place[index]
            image = self._volumes[volume][row]
        if self.kind == "abnormal":
            return {"image": image[:-1], "lesion": image[-1:], **self.index[index]}
        return {"image": image, **self.index[index]}

    @property
    def _stored_shape(self) -> tuple[int, ...]:
        """Shape of a stored slice; abnormal ones have the lesion as an additional last channel."""
        channels, *size = self.shape
        return (channels + (self.kind == "abnormal"), *size)

    def _read(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        slicer: Slicer,
        step: int,
    ) -> Iterator[Tensor]:
        failures = FailureLog(None)
        for item in tracked(data, "reading"):
            file, read = str(item["image"]), None
            with failures.catching(item, "read"):
                read, volume = _preprocessed(item, transform)
            if read is None or failures:  # after the first failure, the others are read only to name all that fail
                continue
            if volume.ndim != 4:
                raise ValueError(
                    f"Expected a volume of shape (C, X, Y, Z) from the preprocessing; got {tuple(volume.shape)} for "
                    f"{file}. A 2D image needs the transform EnsureVolumed."
                )
            for axis in slicer.axes_of(volume):
                indices = slicer.chosen(volume, axis)
                kinds = self._kinds(slicer, {**read, "image": volume, "label": item.get("label")}, axis, file)
                wanted = torch.tensor([kind == self.kind for kind in kinds])[indices]
                relative = slicer.places(indices, axis).positions[wanted][::step]
                indices = indices[wanted][::step]
                if not len(indices):
                    continue
                planes = slicer.slices(volume, axis, indices).contiguous()
                if self.shape and tuple(planes.shape[1:]) != self.shape:
                    raise ValueError(
                        f"Slices have to be of one shape (C, H, W) to be batched: {self.shape} so far, but {file} "
                        f"gives {tuple(planes.shape[1:])}. Set slicer#fit to resize, or image_size to the "
                        "largest slice."
                    )
                self.shape = tuple(planes.shape[1:])
                names: dict[str, Any] = {"case": str(item["case"]), "patient": patient_of(item), "file": file}
                names |= {"axis": axis, "volume_shape": list(volume.shape[1:])}
                self.index += [
                    {**names, "slice": number, "relative_position": position}
                    for number, position in zip(indices.tolist(), relative.tolist(), strict=True)
                ]
                if self.kind == "abnormal":
                    planes = torch.cat([planes, _lesions(slicer, read, planes, axis, indices)], dim=1)
                yield planes
        if failures:
            for item in self.others:
                with failures.catching(item, "read"):
                    _preprocessed(item, transform)
        failures.raise_if_any(len(data) + len(self.others), _REMEDY)

    def _keep(
        self,
        folder: Path,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        slicer: Slicer,
        step: int,
    ) -> None:
        """Use the slices in the folder if they are complete and were made from the same inputs, else make them."""
        made_of = _fingerprint(data, transform, slicer, step, self.kind)
        record, file = folder / "slices.json", folder / "slices.float32"
        if found := _kept(record, file, made_of):
            self.index, self.shape = found["index"], tuple(found["shape"])
            _logger.info(f"Using the slices of an earlier run in {folder}")
        else:
            # an interrupted run leaves nothing that looks complete, and does not disturb other processes that write or
            # read the same slices
            with replacing(file) as unfinished:
                with unfinished.open("wb") as stream:
                    for planes in self._read(data, transform, slicer, step):
                        stream.write(planes.numpy().data.cast("B"))
                digest = sha256_of(unfinished)
                record.unlink(missing_ok=True)  # until the new slices are written
            if not self.index:
                file.unlink()
                return
            told = {"made_of": made_of, "sha256": digest, "shape": self.shape, "index": self.index}
            write_json(record, {**told, "record": _hash_of_record(told)})
        self._stored = np.memmap(file, dtype=np.float32, mode="r", shape=(len(self.index), *self._stored_shape))

    def _kinds(self, slicer: Slicer, case: Mapping[str, Any], axis: str, file: str) -> list[SliceKind]:
        kinds = slicer.kinds(case, axis, file)
        if case["label"] != 1:
            return kinds
        if len(kinds) == 1 and self.kind == "abnormal":  # an abnormal 2D image is an abnormal slice, whatever its mask
            return ["abnormal"]
        if "lesion" not in case:
            raise ValueError(
                f"{file} is abnormal and has no mask, so its normal slices are not known. Name a mask, or set "
                "lesion_free_slices to false, and labelled_abnormal to 0."
            )
        return kinds


def _preprocessed(
    item: Mapping[str, Any], transform: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> tuple[Mapping[str, Any], Tensor]:
    """Return the preprocessed item, and its image (C, X, Y, Z)."""
    read = transform(item)
    # without metadata, which differs between file formats and then cannot be batched
    volume = convert_to_tensor(read["image"], dtype=torch.float32, track_meta=False)
    if not torch.isfinite(volume).all():
        raise ValueError(f"{item['image']} holds NaN or infinite values after the preprocessing: replace them.")
    return read, volume


def _lesions(slicer: Slicer, read: Mapping[str, Any], planes: Tensor, axis: str, indices: Tensor) -> Tensor:
    """Return the fraction of each pixel of slices (n, C, H, W) that is lesion, (n, 1, H, W)."""
    if "lesion" not in read:
        return torch.ones_like(planes[:, :1])
    lesion = convert_to_tensor(read["lesion"], track_meta=False)[:1] != 0  # the mask of a 2D image may have colours
    return slicer.slices(lesion.float(), axis, indices) if lesion.any() else torch.ones_like(planes[:, :1])


class SomeCases(Subset[dict[str, Any]]):
    """All slices of some cases, which are spread evenly over all cases, in the order of the slices.

    Args:
        dataset: the slices, or a data set with items made from them at the same indices, perhaps followed by others.
        slices: the slices, which give the cases. Slices with gaps between them are not used: maps of a volume are
            blurred through its slices, and theirs would have other neighbours than those of a new case.
        n_cases: number of cases; all if there are fewer.
    """

    def __init__(self, dataset: Dataset[dict[str, Any]] | Sequence[Any], slices: SliceDataset, n_cases: int) -> None:
        cases = list(dict.fromkeys(entry["case"] for entry in slices.index)) if slices.step == 1 else []
        spread = np.linspace(0, len(cases) - 1, min(n_cases, len(cases))).round().astype(int)
        chosen = {cases[number] for number in spread}
        rows = [row for row, entry in enumerate(slices.index) if entry["case"] in chosen]
        super().__init__(dataset, rows)  # type: ignore[arg-type]


def _kept(record: Path, file: Path, made_of: str) -> dict[str, Any]:
    """Return the record of stored slices; empty if they were made from other inputs or have changed."""
    try:
        found = read_json(record)
        same = found.get("made_of") == made_of and found.get("record") == _hash_of_record(found)
        whole = same and file.is_file() and sha256_of(file) == found["sha256"]
    except (ValueError, KeyError) as error:
        _logger.warning(f"The slices in {record.parent} are made again, since their record is damaged: {error}")
        return {}
    if found.get("made_of") == made_of and not whole:
        _logger.warning(f"The slices in {record.parent} are made again, since their file is damaged or gone.")
    return found if whole else {}


def _hash_of_record(found: Mapping[str, Any]) -> str:
    """Return a hash of the contents of a record."""
    return hashlib.sha256(json.dumps([found["shape"], found["index"]]).encode()).hexdigest()


def _fingerprint(data: Sequence[Mapping[str, Any]], transform: Any, slicer: Slicer, step: int, kind: str) -> str:
    """Return a hash of all that determines the slices: package versions, contents of the files and preprocessing."""
    files = [[str(file), digest_of(file)] for item in data for file in files_of(item)]
    named = [[str(item["case"]), str(item.get("patient")), item.get("label")] for item in data]
    digest = hashlib.sha256(json.dumps([_FORMAT, versions(), files, named, slicer.policy(), step, kind]).encode())
    stream = io.BytesIO()
    try:
        _Options(stream).dump(transform)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The preprocessing cannot be identified, so its slices cannot be kept in files ({error}). Put "
            "functions without a name into a module, or set cache_dir to null."
        ) from error
    digest.update(stream.getvalue())
    return digest.hexdigest()


class _Options(pickle.Pickler):
    """A pickler that leaves out the state of a run: Compose's unused random state, and the files last read."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.random.RandomState):
            return np.random.RandomState, ()
        if isinstance(obj, ImageReader):
            return type(obj), (), {name: value for name, value in vars(obj).items() if name != "filenames"}
        return NotImplemented
