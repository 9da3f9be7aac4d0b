"""List the images of a data set in any of the known layouts."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from aeflow_monai.data.channel_order import OneOrder
from aeflow_monai.data.datalist import medmnist
from aeflow_monai.data.datalist.dicom_series import series_entries
from aeflow_monai.data.datalist.entries import UNSPLIT, Entry, Request
from aeflow_monai.data.datalist.entry_checks import of_each_file_once
from aeflow_monai.data.datalist.found_images import images_below
from aeflow_monai.data.datalist.image_files import EXTENSIONS, is_dicom, is_image, stem
from aeflow_monai.data.datalist.items import SECTIONS, DividedError, one_case_per_image, to_items
from aeflow_monai.data.datalist.layouts import LAYOUTS, LISTS, existing, recognize
from aeflow_monai.data.datalist.modalities import in_order
from aeflow_monai.data.datalist.naming import fitting_name
from aeflow_monai.data.datalist.tables import free_training
from aeflow_monai.data.datalist.training_notes import training_notes
from aeflow_monai.data.datalist.unused import Datalist, Unused, find_unused
from aeflow_monai.files import user_path
from aeflow_monai.marks import has_mark
from aeflow_monai.printable import counted, shown

__all__ = ["find_images", "list_unused", "load_datalist"]

_logger = logging.getLogger(__name__)


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    section: str,
    *,
    layout: str = "auto",
    normal_classes: Any = ("NORMAL",),
    modalities: str | Sequence[str] = (),
    series: Any = (),
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Datalist:
    """List the images of one section of a data set, with case, patient, label and lesion mask where known.

    The layouts, in the order in which "auto" tries them:

    1. "manifest": a table `manifest.csv` with the columns path, split, abnormal and, optionally, mask, case and
       patient; several paths of one item, which become its channels, are separated by `;`;
    2. "decathlon": a MONAI/Decathlon list `dataset.json` or `datalist.json`;
    3. "medmnist": a MedMNIST file (.npz), or `medmnist:<flag>`, unpacked once beside the file;
    4. "classes": a folder per class, `<split>/<class>/<image>` or `<class>/<image>`, where an image may also be a
       folder of DICOM slices; recognised by a folder train, test or of a normal class;
    5. "bids": `sub-*/[ses-*/]anat/*_T1w.nii.gz`, in rawdata too, with the lesion masks of the same subject, session,
       run and space, in any folder (`*_mask`, `*_roi`, `*_dseg`, `*_label-*`, but not those of brain and tissue);
    6. "brats": `<case>/<case>_flair.nii.gz` with `<case>/<case>_seg.nii.gz`; every case is abnormal;
    7. "dicom": a folder per DICOM series, all normal; recognised at the first level, read at any level;
    8. "folder": volumes, normal unless a mask beside them marks a lesion; recognised in the folder itself, read at any
       level. Or 2D images, if there are no volumes and no subfolders with images.

    Paths in a table or JSON list are relative to its folder. An item in "training" of a JSON list that has neither
    label nor mask is normal, since training sets of this tool are normal by definition; an item with a mask but no
    label is abnormal if the mask has a nonzero value. Masks of class folders lie beside the split, in
    `<split>_masks/<class>/` (without splits: `masks/<class>/`), under the image's name with any image extension, or
    beside the image as `<image>_mask`. Files that are named as masks, or marked as outputs of this package, are not
    images. Unused files of a folder are logged; see `list_unused`.

    A case is the file name without extension, made valid as a part of a file name, unless the list gives a case. A
    name shared by two files is prefixed with the folder, in the same way in every section. A case given in the list
    may have several images.

    Args:
        dataset_dir: folder in one of the layouts; or the path of a .csv, .json or .npz file; or `medmnist:<flag>`.
        section: "train", "validation", "test", "unsplit" or "all"; images without a split are part of "train" too.
            Trainings and evaluations do not use validation images.
        layout: one of the layouts above, or "auto".
        normal_classes: names of the folders with normal images, in upper or lower case, or normal label values of a
            MedMNIST file; all others are abnormal. Other layouts ignore it.
        modalities: endings of the file names that make up an item, one channel each, in this order. If empty:
            ("flair",) for brats, ("T1w",) for bids; in a folder every file is an item of its own.
        test_fraction: fraction of the patients, in [0, 1), that become the section "test" where the layout has no
            split; the training images of a JSON list without labels in "test" count as images without a split.
        seed: seed of that split, whole number from 0.
        series: DICOM series to read, by number, identifier or modality; all if empty.

    Returns:
        One dictionary per item, sorted by path: "image" (absolute path; a list of them for several modalities or
        paths), "case" (name), "patient" (name; the case if unknown), "label" (0 normal, 1 abnormal; absent if
        unknown) and "lesion" (absolute path of the mask; absent if there is none). "sha256" and "slices" of an item
        in a JSON list are passed on. An item that cannot be used, such as a case without one of the modalities, has a
        "problem" that states the cause and the remedy; it stays in the list so that it is reported while the other
        cases are processed.

    Raises:
        FileNotFoundError: the folder does not exist, or listed files are missing: all, or any of the section "train".
        ValueError: the section or layout is unknown, the section is empty (`EmptySectionError`) or every item has a
            problem, the section "train" has neither normal images nor masks, the files do not match the layout, or an
            image is listed twice.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("train/NORMAL/a.png", "test/NORMAL/b.png", "test/LESION/c.png"):
        ...     (folder / name).parent.mkdir(parents=True)
        ...     (folder / name).touch()
        >>> [(item["case"], item["label"]) for item in load_datalist(folder, "test")]
        [('c', 1), ('b', 0)]
    """
    if section not in SECTIONS:
        raise ValueError(f"section has to be one of {', '.join(SECTIONS)}; got {section!r}.")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction has to lie between 0 and 1, 1 excluded; got {test_fraction}.")
    request = Request(_texts(normal_classes), _texts(modalities), series=_texts(series))
    name, source = recognize(dataset_dir, layout, request)
    entries = of_each_file_once(source, _read(name, source, request))
    if test_fraction:
        entries = free_training(entries) if name == "decathlon" else entries
        if all(entry.split != UNSPLIT for entry in entries):
            raise DividedError(
                f"test_fraction is {test_fraction}, but the layout {name!r} of {source} says itself what is trained "
                "and tested on. Leave test_fraction at 0."
            )
    items = _section(dataset_dir, name, source, entries, section, test_fraction=test_fraction, seed=seed)
    if section == "train":
        items.notes = training_notes(name, source, request, entries, items, test_fraction)
    return items


def _read(name: str, source: Path, request: Request) -> list[Entry]:
    """Return the entries of a layout; for a list, with their files in the order of the modalities."""
    entries = LAYOUTS[name].read(source, request)
    if name in LISTS and not request.modalities:
        order = OneOrder()
        for entry in entries:
            order.require(entry.images)
    return [_in_order(entry, request.modalities) for entry in entries] if name in LISTS else entries


def _in_order(entry: Entry, modalities: Sequence[str]) -> Entry:
    if not modalities:
        return entry
    try:
        return entry._replace(images=in_order(entry.images, modalities))
    except ValueError as error:
        return entry._replace(problem=entry.problem or str(error))


def _section(
    dataset_dir: str | os.PathLike[str],
    layout: str,
    source: Path,
    entries: Sequence[Entry],
    section: str,
    **options: Any,
) -> Datalist:
    """Return the items of a section, see `to_items`, and log them and the unused files of the folder."""
    items = to_items(layout, source, entries, section, **options)
    found = Datalist(items, find_unused(existing(dataset_dir), entries, source), layout)
    _say(f"{counted(len(items), 'case')} of the section {section!r} in {shown(dataset_dir)}", found, labels=True)
    return found


def find_images(
    dataset_dir: str | os.PathLike[str],
    exclude: str | os.PathLike[str] | None = None,
    *,
    layout: str = "auto",
    modalities: str | Sequence[str] = (),
    series: Any = (),
) -> list[dict[str, Any]]:
    """List images for inference; no labels are needed.

    Args:
        dataset_dir: one image file; or a list that `load_datalist` takes (then its test images, with label and mask
            where given); or a folder in the layout brats or bids (then one item per case); or any other folder (then
            every image at any depth, and every folder of DICOM slices as one image).
        exclude: a folder to skip, such as the output folder.
        layout: as in `load_datalist`.
        modalities: as in `load_datalist`; if empty, every file of another folder is an item of its own.
        series: as in `load_datalist`.

    Returns:
        Items as from `load_datalist`, but with unique cases, since outputs are named after them. Images that share a
        case in the list get their file name appended to it.

    Raises:
        FileNotFoundError: the folder or a listed file does not exist.
        ValueError: there is no image, or the list is not valid.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a/t1.nii.gz", "b/t1.nii.gz", "b/t2.nii.gz"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     (folder / name).touch()
        >>> [item["case"] for item in find_images(folder)]
        ['a_t1', 'b_t1', 't2']
    """
    path = existing(dataset_dir)
    if layout == "auto" and path.is_file() and (is_image(path) or is_dicom(path)):
        return [_one_image(path, _texts(modalities))]
    request = Request(modalities=_texts(modalities), masks=False, series=_texts(series))
    name, source = recognize(path, layout, request, inference=True)
    if source.is_file() and name != "medmnist":
        listed = Request(modalities=request.modalities, labels=False)
        entries = of_each_file_once(source, _read(name, source, listed))
        if n_others := sum(entry.split == "train" for entry in entries):
            _logger.warning(
                f"{shown(source)} is a list, whose test images are scored, and the {n_others} to train on are not. "
                "Give their files to score them too."
            )
        return one_case_per_image(_section(path, name, source, entries, "test", scored_only=True))
    if name == "medmnist":
        entries = [Entry("test", (image,)) for image in images_below(medmnist.unpack(source) / "test")]
    elif name == "dicom" or (name in ("bids", "brats", "folder") and (request.modalities or name != "folder")):
        entries = [entry._replace(label=None, mask=None) for entry in LAYOUTS[name].read(source, request)]
    else:
        found = images_below(source)
        series_found = series_entries((path for path in found if path.is_dir()), source, request)
        entries = [*(Entry(UNSPLIT, (path,)) for path in found if not path.is_dir()), *series_found]
    entries = of_each_file_once(source, entries)
    outputs = None if exclude is None else user_path(exclude).absolute()
    if outputs is not None and outputs != source:
        entries = [entry for entry in entries if not entry.images[0].is_relative_to(outputs)]
    unused = find_unused(path, entries, source, outputs if outputs != source else None)
    if not entries:
        raise ValueError(
            f"No image in {source} or below. Expected {', '.join(EXTENSIONS)}, or folders of DICOM files. Give "
            f"another folder with --dataset_dir. {unused if unused.kinds else ''}".rstrip()
        )
    items = Datalist(one_case_per_image(to_items(name, source, entries, "all")), unused, name)
    _say(f"{counted(len(items), 'case')} in {shown(path)}", items, labels=False)
    return items


def list_unused(
    dataset_dir: str | os.PathLike[str],
    *,
    layout: str = "auto",
    normal_classes: Any = ("NORMAL",),
    modalities: str | Sequence[str] = (),
    series: Any = (),
) -> Unused:
    """List the files in the folder of a data set that `load_datalist` does not use (it logs the same).

    Args:
        dataset_dir: as in `load_datalist`; a list file or a MedMNIST file has no unused files.
        layout: as in `load_datalist`.
        normal_classes: as in `load_datalist`.
        modalities: as in `load_datalist`.
        series: as in `load_datalist`.

    Returns:
        The unused paths by kind, with their counts and a summary as text.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.nii.gz", "notes.txt"):
        ...     (folder / name).touch()
        >>> list_unused(folder).counts()
        {'files of other kinds': 1, 'files of other kinds: .txt': 1}
    """
    request = Request(_texts(normal_classes), _texts(modalities), series=_texts(series))
    name, source = recognize(dataset_dir, layout, request)
    entries = of_each_file_once(source, LAYOUTS[name].read(source, request))
    return find_unused(existing(dataset_dir), entries, source)


def _one_image(path: Path, modalities: Sequence[str]) -> dict[str, Any]:
    if len(modalities) > 1:
        raise ValueError(
            f"Expected a file for each of the modalities {', '.join(modalities)}, which become channels; got one file, "
            f"{path}. Name its folder with --dataset_dir, and --layout folder."
        )
    if has_mark(path):
        raise ValueError(
            f"{path} is an output of this package, such as an anomaly map, and no image to be scored. Name the image "
            "that it was made of with --dataset_dir."
        )
    case = fitting_name(stem(path))
    return {"image": str(path), "case": case, "patient": case}


def _say(told: str, items: Datalist, *, labels: bool) -> None:
    """Log which files are used and which are not."""
    problems = [str(item["problem"]) for item in items if "problem" in item]
    _logger.info(f"{told}, read as {items.layout}.")
    if problems:
        _logger.warning(f"{len(problems)} of these cases cannot be used. The first: {shown(problems[0])}")
    items.unused.log(labels=labels)


def _texts(names: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in ensure_tuple(names))
