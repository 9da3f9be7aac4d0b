"""Files on disk become a list of dictionaries, or an error that says what to do.

Three layouts are known, looked for in this order:

1. a table `manifest.csv` with the columns path, split, abnormal and, if wanted, mask and case;
2. a MONAI/Decathlon list `dataset.json` or `datalist.json`;
3. a folder per class, `<split>/<class>/<image>` or `<class>/<image>`.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.transforms import LoadImage
from monai.utils import ensure_tuple

__all__ = ["find_images", "load_datalist", "require_labels", "split_normals"]

_EXTENSIONS = (
    *(".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"),
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
)
_LIST_FILES = ("manifest.csv", "dataset.json", "datalist.json")
_COLUMNS = ("path", "split", "abnormal")
_JSON_KEYS = {"training": "train", "validation": "validation", "test": "test"}
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_UNSPLIT = "class folders without a split"
_SECTIONS = {
    "train": {"train", _UNSPLIT},
    "test": {"test"},
    "all": {"train", "validation", "test", _UNSPLIT},
}


class _Entry(NamedTuple):
    """What a layout says of one image; nothing is looked up on disk yet."""

    split: str
    image: Path
    label: int | None = None
    mask: Path | None = None
    case: str = ""


_REMEDIES = {
    ".csv": "Its column split says train, validation or test; normal images have 0 in its column abnormal.",
    ".json": 'Its key "training" lists training images, "test" test images; normal ones have "label": 0, an '
    "empty mask or, in training only, neither.",
    "": "Expected train/<class>/<image> and test/<class>/<image> below it; name the folders of normal images with "
    "--normal_classes, for example \"['NORMAL']\", or list the images in a manifest.csv (path,split,abnormal).",
}


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    section: str,
    *,
    normal_classes: str | Sequence[str] = ("NORMAL",),
) -> list[dict[str, Any]]:
    """Lists the images of one section of a data set, with what is known of each.

    Paths in a table or JSON are relative to its folder. An item of a JSON's "training" that has neither label nor
    mask is normal, since training sets of this tool are normal by definition; one with a mask but no label is
    abnormal if the mask holds anything but 0. Masks of class folders lie beside the split, in
    `<split>_masks/<class>/` (without splits: `masks/<class>/`), under the image's name with any image extension.

    A case is the file name without extension unless the list gives one. Names that would stand for two files get
    their folder in front, the same in every section. A case given in the list may have several images.

    Args:
        dataset_dir: folder with a manifest.csv, a dataset.json, a datalist.json or a folder per class; or the path of
            a .csv or .json file.
        section: "train", "test" or "all"; validation images are part of "all" only, class folders without a split of
            "train" and "all".
        normal_classes: names of the folders with normal images, upper or lower case; all others hold abnormal ones.
            Used for class folders only.

    Returns:
        One dictionary per image, sorted by path: "image" (absolute path), "case" (name), "label" (0 normal, 1
        abnormal; absent if unknown) and "mask" (absolute path; absent if there is none).

    Raises:
        FileNotFoundError: the folder, or a file that is listed, does not exist.
        ValueError: the section is unknown, empty or has nothing normal to train on, or the layout is not as above.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("train/NORMAL/a.png", "test/NORMAL/b.png", "test/LESION/c.png"):
        ...     (folder / name).parent.mkdir(parents=True)
        ...     (folder / name).touch()
        >>> [(item["case"], item["label"]) for item in load_datalist(folder, "test")]
        [('c', 1), ('b', 0)]
    """
    if section not in _SECTIONS:
        raise ValueError(f"section has to be one of {', '.join(_SECTIONS)}; got {section!r}.")
    source = _locate(dataset_dir)
    if source.is_dir():
        entries = _read_class_folders(source, [str(name) for name in ensure_tuple(normal_classes)])
    elif source.suffix.lower() in _READERS:
        entries = _READERS[source.suffix.lower()](source)
    else:
        raise ValueError(
            f"Expected a folder or a datalist (.csv, .json), for inference also an image ({', '.join(_EXTENSIONS)}); "
            f"got {source}. Give another one with --dataset_dir."
        )
    return _to_items(source, entries, section)


def require_labels(items: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Passes on a datalist that can be evaluated, before anything is computed.

    Args:
        items: a datalist.

    Returns:
        The same.

    Raises:
        ValueError: an item has no label, or all have the same.
    """
    unlabelled = [item["image"] for item in items if "label" not in item]
    classes = {item["label"] for item in items if "label" in item}
    if unlabelled or classes != {0, 1}:
        found = f"{len(unlabelled)} of {len(items)} test images have no label" if unlabelled else f"labels {classes}"
        raise ValueError(
            f"Evaluation needs test images labelled normal (0) and abnormal (1), both; got {found}. Label them, or use "
            "inference.yaml, which needs no labels."
        )
    return items


def find_images(
    dataset_dir: str | os.PathLike[str], exclude: str | os.PathLike[str] | None = None
) -> list[dict[str, Any]]:
    """Lists images for inference; no labels are needed.

    Args:
        dataset_dir: one image file; or what `load_datalist` takes as a list (then its test images, with label and
            mask where given); or any folder (then every image in it and below it).
        exclude: a folder that is passed over, such as that of the outputs.

    Returns:
        Items as from `load_datalist`, but no two with one case: outputs are named after it. Images that share a
        case in the list get the name of their file behind it.

    Raises:
        FileNotFoundError: the folder, or a file that is listed, does not exist.
        ValueError: there is no image, or the list is not as it should be.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a/t1.nii.gz", "b/t1.nii.gz", "b/t2.nii.gz"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     (folder / name).touch()
        >>> [item["case"] for item in find_images(folder)]
        ['a_t1', 'b_t1', 't2']
    """
    source = _locate(dataset_dir)
    if source.is_file() and not _is_image(source):
        return _one_case_per_image(load_datalist(source, "test"))
    paths = [source] if source.is_file() else _images_below(source)
    if exclude is not None:
        outputs = Path(exclude).expanduser().absolute()
        paths = [path for path in paths if not path.is_relative_to(outputs) or outputs == source]
    if not paths:
        raise ValueError(
            f"No image in {source} or below. Expected {', '.join(_EXTENSIONS)}. Give another folder with --dataset_dir."
        )
    cases = _name_cases(paths, source, set())
    return [{"image": str(path), "case": cases[path]} for path in paths]


def _one_case_per_image(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(item["case"] for item in items)
    shared = [Path(item["image"]) for item in items if counts[item["case"]] > 1]
    names = _name_cases(shared, Path(os.path.commonpath([path.parent for path in shared])), set()) if shared else {}
    return [
        {**item, "case": f"{item['case']}_{names[Path(item['image'])]}"} if counts[item["case"]] > 1 else item
        for item in items
    ]


def split_normals(
    items: Iterable[Mapping[str, Any]], calibration_fraction: float = 0.1, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits the normal images by case, into those the model is fitted on and those its scores are calibrated on.

    All images of a case fall on the same side. The result depends on the cases and the seed, not on their order.

    Args:
        items: a datalist; what is not labelled 0 is left out.
        calibration_fraction: share of the cases for calibration, in (0, 1); each side gets at least one case.
        seed: of the split, whole number from 0.

    Returns:
        The items to fit and the items to calibrate, each sorted by case and path.

    Raises:
        ValueError: the fraction is out of range, or there are fewer than two normal cases.

    Example:
        >>> items = [{"image": f"{i}.png", "case": f"{i}", "label": i % 2} for i in range(20)]
        >>> fit, calibration = split_normals(items, 0.2)
        >>> len(fit), len(calibration)
        (8, 2)
    """
    if not 0 < calibration_fraction < 1:
        raise ValueError(f"calibration_fraction has to lie between 0 and 1, ends excluded; got {calibration_fraction}.")
    items = list(items)
    normals = [dict(item) for item in items if item.get("label") == 0]
    if not normals:
        raise ValueError(
            f"Got a datalist without normals: none of {len(items)} items has the label 0. Training needs normal "
            "images; check --dataset_dir and --normal_classes."
        )
    cases = sorted({item["case"] for item in normals})
    if len(cases) < 2:
        raise ValueError(
            f"Expected at least 2 normal cases, one to fit and one to calibrate; got {cases} ({len(normals)} images). "
            "Add normal images of another case."
        )
    count = min(max(round(calibration_fraction * len(cases)), 1), len(cases) - 1)
    chosen = {cases[i] for i in np.random.default_rng(seed).permutation(len(cases))[:count]}
    normals.sort(key=lambda item: (item["case"], item["image"]))
    fit = [item for item in normals if item["case"] not in chosen]
    return fit, [item for item in normals if item["case"] in chosen]


def _read_csv(file: Path) -> list[_Entry]:
    """Rows of a table with the columns path, split, abnormal and, if wanted, mask and case."""
    rows = csv.DictReader(io.StringIO(_text(file), newline=""))
    rows.fieldnames = found = [name.strip() for name in rows.fieldnames or ()]
    if lacking := [name for name in _COLUMNS if name not in found]:
        raise ValueError(
            f"{file} lacks the column {', '.join(lacking)}; found: {', '.join(found) or 'none'}. "
            f"Expected a first line with {','.join(_COLUMNS)} and, if wanted, mask and case, divided by commas."
        )
    entries = []
    for row in rows:
        cells = {name: (cell or "").strip() for name, cell in row.items() if name}
        where = f"{file}, row {rows.line_num}"
        if not cells["path"]:
            raise ValueError(f"{where}: path is empty. Name an image, or take the row out.")
        if cells["split"].lower() not in _SPLITS:
            raise ValueError(f"{where}: split has to be one of {', '.join(_SPLITS)}; got {cells['split']!r}.")
        label = _label(cells["abnormal"], f"{where}: abnormal")
        mask = file.parent / cells["mask"] if cells.get("mask") else None
        split, image = _SPLITS[cells["split"].lower()], file.parent / cells["path"]
        entries.append(_Entry(split, image, label, mask, cells.get("case", "")))
    return entries


def _read_json(file: Path) -> list[_Entry]:
    """Items of a MONAI/Decathlon list; MONAI's own loader would take a class label or a case name for a path."""
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}. Correct it there.") from error
    found = list(content) if isinstance(content, dict) else []
    if not any(isinstance(content[key], list) for key in found if key in _JSON_KEYS):
        raise ValueError(
            f'{file} has no list "training", and none of "validation" or "test"; its keys are {found}. '
            "Expected the form of the Medical Segmentation Decathlon."
        )
    return [
        _json_entry(item, split, file.parent, f"{file}, {key}[{i}]")
        for key, split in _JSON_KEYS.items()
        for i, item in enumerate(content.get(key) or ())
    ]


def _json_entry(item: Any, split: str, folder: Path, where: str) -> _Entry:
    fields = {"image": item} if isinstance(item, str) else item
    if not isinstance(fields, dict) or not isinstance(fields.get("image"), str):
        raise ValueError(f'{where} has to be a path, or a dictionary with one path as "image"; got {item!r}.')
    label, mask, case = (fields.get(key) for key in ("label", "mask", "case"))
    if isinstance(label, str) and label not in ("0", "1"):
        label, mask = None, mask or label  # a segmentation
    stated = {
        _label(value, f"{where}: {key}")
        for key, value in (("label", label), ("abnormal", fields.get("abnormal")))
        if value is not None
    }
    if len(stated) > 1:
        raise ValueError(f"{where}: label and abnormal contradict each other in {item!r}. Keep the right one.")
    if not stated and not mask and split == "train":
        stated = {0}
    return _Entry(
        split,
        folder / fields["image"],
        label=next(iter(stated), None),
        mask=folder / str(mask) if mask else None,
        case="" if case is None else str(case),
    )


def _read_class_folders(root: Path, normal_classes: Sequence[str]) -> list[_Entry]:
    """Images of `<split>/<class>/`, or of `<class>/` if there is neither a train nor a test folder."""
    splits = {child.name.lower(): child for child in _subfolders(root) if child.name.lower() in _SPLITS}
    if not splits.keys() & {"train", "test"}:
        splits = {"": root}
    normal = {name.lower() for name in normal_classes}
    entries, classes, unused = [], set(), []
    for name, folder in splits.items():
        mask_root = root / (f"{folder.name}_masks" if name else "masks")
        masks = {path.relative_to(mask_root).as_posix(): path for path in _images_below(mask_root)}
        without_extension = {f"{path.parent.name}/{_stem(path)}": path for path in masks.values()}
        used = set()
        for class_folder in _subfolders(folder):
            kind = class_folder.name
            classes.add(kind)
            for image in _images_in(class_folder):
                mask = masks.get(f"{kind}/{image.name}", without_extension.get(f"{kind}/{_stem(image)}"))
                used.add(mask)
                entries.append(_Entry(_SPLITS.get(name, _UNSPLIT), image, int(kind.lower() not in normal), mask))
        unused += [path for path in masks.values() if path not in used]
    if not entries:
        raise ValueError(
            f"No image in the class folders of {root}: expected <class>/<image> or train/<class>/<image>, with one of "
            f"{', '.join(_EXTENSIONS)}; class folders found: {_some(sorted(classes))}. Move the images there, list "
            "them in a manifest.csv, or give another folder with --dataset_dir."
        )
    if not normal & {kind.lower() for kind in classes}:
        raise ValueError(
            f"None of the class folders of {root} is named {' or '.join(normal_classes)}; found: "
            f"{_some(sorted(classes))}. {_REMEDIES['']}"
        )
    if unused:
        raise ValueError(
            f"{len(unused)} masks below {root} have no image: {_some(unused)}. Name a mask as its image, in the class "
            "folder of the same name."
        )
    return entries


_READERS: dict[str, Callable[[Path], list[_Entry]]] = {".csv": _read_csv, ".json": _read_json}


def _to_items(source: Path, entries: Sequence[_Entry], section: str) -> list[dict[str, Any]]:
    """Names the cases, picks the section, checks that its files exist and fills in the labels that masks tell."""
    remedy = _REMEDIES[source.suffix.lower() if source.is_file() else ""]
    counts = Counter(entry.image for entry in entries)
    if repeated := [path for path, count in counts.items() if count > 1]:
        raise ValueError(
            f"{source} lists {len(repeated)} images more than once: {_some(repeated)}. Keep each in one place, so that "
            "no image is both trained and tested on."
        )
    # over all sections, so that a case has the same name in each of them
    root = source if source.is_dir() else source.parent
    unnamed = [entry.image for entry in entries if not entry.case]
    cases = _name_cases(unnamed, root, {entry.case for entry in entries if entry.case})

    chosen = sorted(
        (entry for entry in entries if entry.split in _SECTIONS[section]), key=lambda entry: entry.image.as_posix()
    )
    if not chosen:
        held = [f"{count} in {split}" for split, count in Counter(entry.split for entry in entries).items()]
        raise ValueError(
            f"{source} holds no image for the section {section!r}; found {', '.join(held) or 'none at all'}. {remedy}"
        )
    files = [path for entry in chosen for path in (entry.image, entry.mask) if path]
    if missing := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} files listed in {source} are missing: {_some(missing)}. Its paths are "
            f"relative to {root}. Correct them, or put the files there."
        )

    items: list[dict[str, Any]] = []
    for entry in chosen:
        item: dict[str, Any] = {"image": str(entry.image), "case": entry.case or cases[entry.image]}
        if entry.label is not None:
            item["label"] = entry.label
        elif entry.mask:
            item["label"] = int(bool(LoadImage(image_only=True)(entry.mask).any()))
        if entry.mask:
            item["mask"] = str(entry.mask)
        items.append(item)
    if section == "train" and not any(item["label"] == 0 for item in items):
        raise ValueError(
            f"The section 'train' of {source} holds no normal image among {len(items)}, but the model is trained on "
            f"normal images only. {remedy}"
        )
    return items


def _name_cases(paths: Sequence[Path], root: Path, taken: set[str]) -> dict[Path, str]:
    """File names without extension; where that is not unique with the folder too, then with the extension too."""
    names = {path: _stem(path) for path in paths}
    for tail in (_stem, lambda path: path.name.replace(".", "_")):
        counts = Counter([*names.values(), *taken])
        for path, name in names.items():
            if counts[name] > 1:
                inner = path.relative_to(root if path.is_relative_to(root) else path.anchor)
                names[path] = "_".join([*(part for part in inner.parts[:-1] if part != ".."), tail(path)])
    counts = Counter([*names.values(), *taken])
    if clash := [path for path, name in names.items() if counts[name] > 1]:
        raise ValueError(
            f"{len(clash)} images have no case name of their own: {_some(clash)}. Rename them, or name their cases in "
            "the column case of a manifest.csv."
        )
    return names


def _locate(dataset_dir: str | os.PathLike[str]) -> Path:
    """The list file if there is one, else the folder or file itself; absolute, links kept."""
    path = Path(dataset_dir).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}. Say where the images are with --dataset_dir.")
    return next((path / name for name in _LIST_FILES if (path / name).is_file()), path)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # spreadsheets begin with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def _label(value: Any, where: str) -> int:
    if str(value) not in ("0", "1"):
        raise ValueError(f"{where} has to be 0 (normal) or 1 (abnormal), got {value!r}.")
    return int(value)


def _subfolders(folder: Path) -> list[Path]:
    """Visible folders but those of masks, sorted."""
    children = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted((path for path in children if not path.name.lower().endswith("masks")), key=Path.as_posix)


def _images_in(folder: Path) -> list[Path]:
    """Images of one class, which lie in its folder and not deeper."""
    images = _images_below(folder)
    if deeper := [path for path in images if path.parent != folder]:
        raise ValueError(
            f"The class folder {folder} has {len(deeper)} images in folders of its own: {_some(deeper)}. Move them "
            "up, or list the images in a manifest.csv, which can also name their cases."
        )
    return images


def _images_below(folder: Path) -> list[Path]:
    """Visible images at any depth, sorted; none if there is no such folder."""
    return sorted(
        (
            path
            for path in folder.rglob("*")
            if _is_image(path)
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file()
        ),
        key=Path.as_posix,
    )


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(_EXTENSIONS)


def _stem(path: Path) -> str:
    extension = next((e for e in _EXTENSIONS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(extension)]


def _some(names: Sequence[object], limit: int = 5) -> str:
    shown = ", ".join(str(name) for name in names[:limit])
    return (shown or "none") + (f" and {len(names) - limit} more" if len(names) > limit else "")
