"""The list of a data set's images, from whichever layout it has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import ensure_tuple

from aeflow_monai.datalist import class_folders, dicom, medmnist, volumes
from aeflow_monai.datalist.entries import UNSPLIT, Entry, Request
from aeflow_monai.datalist.files import EXTENSIONS, images_below, is_dicom, is_image, some, stem
from aeflow_monai.datalist.labels import label_of_mask
from aeflow_monai.datalist.naming import name_cases
from aeflow_monai.datalist.splits import draw_patients
from aeflow_monai.datalist.tables import free_training, read_json, read_table

__all__ = ["find_images", "load_datalist"]

_SECTIONS = {
    "train": {"train", UNSPLIT},
    "test": {"test"},
    "all": {"train", "validation", "test", UNSPLIT},
}


class _Layout(NamedTuple):
    """How an arrangement of files is recognized and read, and what to say if that fails."""

    read: Callable[[Path, Request], list[Entry]]
    remedy: str
    fits: Callable[[Path, Request], bool] = lambda source, request: False
    files: tuple[str, ...] = ()  # the file to read, looked for under these names if a folder is given
    suffix: str = ""  # of that file
    modalities: bool = False  # whether it can choose among several files of a case
    plural: str = "images"


# in the order in which they are looked for
_LAYOUTS = {
    "manifest": _Layout(
        lambda source, request: read_table(source),
        "Its column split says train, validation or test; normal images have 0 in its column abnormal.",
        files=("manifest.csv",),
        suffix=".csv",
    ),
    "decathlon": _Layout(
        lambda source, request: read_json(source),
        'Its key "training" lists training images, "test" test images; normal ones have "label": 0, an '
        "empty mask or, in training only, neither.",
        files=("dataset.json", "datalist.json"),
        suffix=".json",
    ),
    "medmnist": _Layout(medmnist.read_medmnist, medmnist.REMEDY, files=("*.npz",), suffix=".npz"),
    "classes": _Layout(
        class_folders.read_class_folders,
        class_folders.REMEDY,
        class_folders.has_class_folders,
        plural="class folders",
    ),
    "bids": _Layout(
        volumes.read_bids,
        volumes.BIDS_REMEDY,
        lambda source, request: volumes.has_bids(source),
        modalities=True,
    ),
    "brats": _Layout(
        volumes.read_brats,
        volumes.BRATS_REMEDY,
        lambda source, request: volumes.has_brats(source),
        modalities=True,
    ),
    "dicom": _Layout(
        lambda source, request: dicom.read_dicom(source),
        dicom.REMEDY,
        lambda source, request: dicom.has_dicom(source),
        plural="DICOM folders",
    ),
    "folder": _Layout(
        volumes.read_folder,
        volumes.FOLDER_REMEDY,
        lambda source, request: volumes.has_volumes(source),
        modalities=True,
        plural="volumes",
    ),
}
_UNLABELLED = ("classes", "dicom", "folder")  # of which inference takes every image below the folder


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    section: str,
    *,
    layout: str = "auto",
    normal_classes: Any = ("NORMAL",),
    modalities: str | Sequence[str] = (),
    test_fraction: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Lists the images of one section of a data set, with what is known of each.

    The layouts, in the order in which "auto" looks for them:

    1. "manifest": a table `manifest.csv` with the columns path, split, abnormal and, if wanted, mask, case and
       patient; several paths of one item, which become channels, are divided by `;`;
    2. "decathlon": a MONAI/Decathlon list `dataset.json` or `datalist.json`;
    3. "medmnist": a MedMNIST file (.npz), or `medmnist:<flag>`, unpacked once beside the file;
    4. "classes": a folder per class, `<split>/<class>/<image>` or `<class>/<image>`, where an image may also be a
       folder of DICOM slices; found if there is a folder train, test or of a normal class;
    5. "bids": `sub-*/[ses-*/]anat/*_T1w.nii.gz`, with masks of the subject and session (`*_mask`, `*_roi`, `*_dseg`;
       not those of brain and tissue);
    6. "brats": `<case>/<case>_flair.nii.gz` with `<case>/<case>_seg.nii.gz`; every case is abnormal;
    7. "dicom": a folder per DICOM series, all normal; found at the first level, read at any;
    8. "folder": volumes, all normal; found in the folder itself, read at any level.

    Paths in a table or JSON are relative to its folder. An item of a JSON's "training" that has neither label nor
    mask is normal, since training sets of this tool are normal by definition; one with a mask but no label is
    abnormal if the mask holds anything but 0. Masks of class folders lie beside the split, in
    `<split>_masks/<class>/` (without splits: `masks/<class>/`), under the image's name with any image extension.

    A case is the file name without extension unless the list gives one. Names that would stand for two files get
    their folder in front, the same in every section. A case given in the list may have several images.

    Args:
        dataset_dir: folder in one of the layouts; or the path of a .csv, .json or .npz file; or `medmnist:<flag>`.
        section: "train", "test" or "all"; validation images are part of "all" only, images without a split of
            "train" and "all".
        layout: one of those above, or "auto".
        normal_classes: names of the folders with normal images, upper or lower case, or normal label values of a
            MedMNIST file; all others are abnormal. Used for these two only.
        modalities: endings of the file names that make up an item, one channel each, in this order; for brats
            ("flair",) if none are given, for bids ("T1w",), for a folder every file is an item of its own.
        test_fraction: share of the patients, in [0, 1), that become the section "test" where the layout has no
            split; the training images of a JSON without labels in its "test" count as without a split.
        seed: of that split, whole number from 0.

    Returns:
        One dictionary per item, sorted by path: "image" (absolute path; a list of them for several modalities or
        paths), "case" (name), "patient" (name; the case if nothing is known), "label" (0 normal, 1 abnormal; absent
        if unknown) and "mask" (absolute path; absent if there is none). "sha256" and "slices" of a JSON's item are
        passed on. An item that cannot be used, such as a case without one of the modalities, has a "problem" that
        says why and what to do; it is in the list so that it is reported while the others go on.

    Raises:
        FileNotFoundError: the folder, or a file that is listed, does not exist.
        ValueError: the section or layout is unknown, the section is empty, has nothing normal and no mask to train
            on or nothing without a problem, or the layout is not as above.

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
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction has to lie between 0 and 1, 1 excluded; got {test_fraction}.")
    request = Request(_texts(normal_classes), _texts(modalities))
    name, source = _recognize(dataset_dir, layout, request)
    entries = _LAYOUTS[name].read(source, request)
    if test_fraction:
        entries = free_training(entries) if name == "decathlon" else entries
        if all(entry.split != UNSPLIT for entry in entries):
            raise ValueError(
                f"test_fraction is {test_fraction}, but the layout {name!r} of {source} says itself what is trained "
                "and tested on. Leave test_fraction at 0."
            )
    return _to_items(name, source, entries, section, test_fraction, seed)


def find_images(
    dataset_dir: str | os.PathLike[str],
    exclude: str | os.PathLike[str] | None = None,
    *,
    layout: str = "auto",
    modalities: str | Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Lists images for inference; no labels are needed.

    Args:
        dataset_dir: one image file; or what `load_datalist` takes as a list (then its test images, with label and
            mask where given); or a folder in the layout brats or bids (then one item per case); or any folder (then
            every image in it and below it, and every folder of DICOM slices as one image).
        exclude: a folder that is passed over, such as that of the outputs.
        layout: as of `load_datalist`.
        modalities: as of `load_datalist`; for any folder none means that every file is an item.

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
    path = _existing(dataset_dir)
    if layout == "auto" and path.is_file() and (is_image(path) or is_dicom(path)):
        return [{"image": str(path), "case": stem(path), "patient": stem(path)}]
    request = Request(modalities=_texts(modalities), masks=False)
    name, source = _recognize(path, layout, request, inference=True)
    if source.is_file() and name != "medmnist":
        return _one_case_per_image(load_datalist(source, "test", layout=name))
    if name == "medmnist":
        entries = [Entry("test", (image,)) for image in images_below(medmnist.unpack(source) / "test")]
    elif name == "dicom" or (name in ("bids", "brats", "folder") and (request.modalities or name != "folder")):
        entries = [entry._replace(label=None, mask=None) for entry in _LAYOUTS[name].read(source, request)]
    else:
        entries = [Entry(UNSPLIT, (image,)) for image in images_below(source)]
    if exclude is not None and (outputs := Path(exclude).expanduser().absolute()) != source:
        entries = [entry for entry in entries if not entry.images[0].is_relative_to(outputs)]
    if not entries:
        raise ValueError(
            f"No image in {source} or below. Expected {', '.join(EXTENSIONS)}. Or else folders of DICOM files. Give "
            "another folder with --dataset_dir."
        )
    return _one_case_per_image(_to_items(name, source, entries, "all", 0, 0))


def _recognize(
    dataset_dir: str | os.PathLike[str], layout: str, request: Request, inference: bool = False
) -> tuple[str, Path]:
    """Name of the layout, and the file or folder to read."""
    if layout != "auto" and layout not in _LAYOUTS:
        raise ValueError(f"layout has to be one of auto, {', '.join(_LAYOUTS)}; got {layout!r}.")
    path = _existing(dataset_dir)
    if layout == "auto":
        name, source = _search(path, request, inference)
    else:
        name, source = layout, _source(path, layout)
    if request.modalities and not _LAYOUTS[name].modalities:
        able = [name for name, known in _LAYOUTS.items() if known.modalities]
        raise ValueError(
            f"modalities are {', '.join(request.modalities)}, but the layout {name!r} of {source} says itself which "
            f"files make up an item. Leave them out, or give --layout {' or '.join(able)}."
        )
    return name, source


def _search(path: Path, request: Request, inference: bool) -> tuple[str, Path]:
    for name, layout in _LAYOUTS.items():
        if path.is_file() and layout.suffix and path.suffix.lower() == layout.suffix:
            return name, path
        if path.is_dir():
            for file in layout.files:
                if name != "medmnist" and (path / file).is_file():
                    return name, path / file
            if not (inference and name in _UNLABELLED) and layout.fits(path, request):
                return name, path
    if path.is_file():
        raise ValueError(
            "Expected a folder or a datalist (.csv, .json) or a MedMNIST file (.npz), for inference also an image "
            f"({', '.join(EXTENSIONS)}); got {path}. Give another one with --dataset_dir."
        )
    return "folder" if inference else "classes", path


def _source(path: Path, layout: str) -> Path:
    """What a layout that was asked for reads."""
    wanted = _LAYOUTS[layout]
    if not wanted.files:
        if path.is_file():
            raise ValueError(f"The layout {layout!r} is one of a folder; got the file {path}. {wanted.remedy}")
        return path
    if path.is_file():
        if path.suffix.lower() != wanted.suffix:
            raise ValueError(f"The layout {layout!r} is a {wanted.suffix} file; got {path}. {wanted.remedy}")
        return path
    found = [file for name in wanted.files for file in sorted(path.glob(name))]
    if not found or (layout == "medmnist" and len(found) > 1):
        raise FileNotFoundError(
            f"The layout {layout!r} needs one {' or '.join(wanted.files)} in {path}; found {some(found)}. Put it "
            "there, or give the file with --dataset_dir."
        )
    return found[0]


def _to_items(
    layout: str, source: Path, entries: Sequence[Entry], section: str, test_fraction: float, seed: int
) -> list[dict[str, Any]]:
    """Names the cases, picks the section, checks that its files exist and fills in the labels that masks tell."""
    remedy = _LAYOUTS[layout].remedy
    counts = Counter(path for entry in entries if not entry.problem for path in entry.images)
    if repeated := [path for path, count in counts.items() if count > 1]:
        raise ValueError(
            f"{source} lists {len(repeated)} images more than once: {some(repeated)}. Keep each in one place, so that "
            "no image is both trained and tested on."
        )
    # over all sections, so that a case has the same name in each of them
    root = source if source.is_dir() else source.parent
    entries = _name(entries, root)
    if test_fraction:
        entries = _divide(source, entries, test_fraction, seed)

    chosen = sorted((entry for entry in entries if entry.split in _SECTIONS[section]), key=_sort_key)
    if not chosen:
        plural = f"{_LAYOUTS[layout].plural} without a split"
        held = [f"{count} in {split or plural}" for split, count in Counter(entry.split for entry in entries).items()]
        divide = " Or divide the patients, with --test_fraction 0.2." if any(not e.split for e in entries) else ""
        raise ValueError(
            f"{source} holds no image for the section {section!r}; found {', '.join(held) or 'none at all'}. {remedy}"
            f"{divide}"
        )
    listed = [entry for entry in chosen if not entry.problem]
    files = [path for entry in listed for path in (*entry.images, entry.mask) if path]
    if missing := [path for path in files if not path.exists()]:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} files listed in {source} are missing: {some(missing)}. Its paths are "
            f"relative to {root}. Correct them, or put the files there."
        )

    items = [_to_item(entry) for entry in chosen]
    problems = [item["problem"] for item in items if "problem" in item]
    if len(problems) == len(items):
        raise ValueError(f"None of the {len(items)} cases in {source} can be used. The first: {problems[0]}")
    if section == "train" and not any(item.get("label") == 0 or "mask" in item for item in items):
        raise ValueError(
            f"The section 'train' of {source} holds no normal image among {len(items)}, but the model is trained on "
            f"normal images only. {remedy}"
        )
    return items


def _to_item(entry: Entry) -> dict[str, Any]:
    paths = [str(path) for path in entry.images]
    item: dict[str, Any] = {"image": paths[0] if len(paths) == 1 else paths, "case": entry.case}
    item["patient"] = entry.patient
    problem = entry.problem or next(filter(None, map(dicom.series_problem, filter(Path.is_dir, entry.images))), "")
    if entry.label is not None:
        item["label"] = entry.label
    elif entry.mask and not problem:
        item["label"] = label_of_mask(entry.mask)
    if entry.mask:
        item["mask"] = str(entry.mask)
    if problem:
        item["problem"] = problem
    return {**item, **entry.extra}


def _name(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """The entries with the case and patient that they lack."""
    named = {entry.named or entry.images[0]: entry for entry in entries if not entry.case}
    short = {path: path.name if entry.named else stem(path) for path, entry in named.items()}
    cases = name_cases(short, root, {entry.case for entry in entries if entry.case})
    full = [entry._replace(case=entry.case or cases[entry.named or entry.images[0]]) for entry in entries]
    return [entry._replace(patient=entry.patient or entry.case) for entry in full]


def _divide(source: Path, entries: Sequence[Entry], test_fraction: float, seed: int) -> list[Entry]:
    """The entries without a split put into train and test, by patient."""
    patients = sorted({entry.patient for entry in entries if entry.split == UNSPLIT})
    if len(patients) < 2:
        raise ValueError(
            f"Expected at least 2 patients in {source} to divide with test_fraction {test_fraction}; got {patients}. "
            "Leave test_fraction at 0, or name the patients in a manifest.csv."
        )
    test = draw_patients(patients, test_fraction, seed)
    return [
        entry._replace(split="test" if entry.patient in test else "train") if entry.split == UNSPLIT else entry
        for entry in entries
        if entry.split != "test"  # of a JSON, without label
    ]


def _one_case_per_image(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(item["case"] for item in items)
    shared = [_first(item) for item in items if counts[item["case"]] > 1]
    root = Path(os.path.commonpath([path.parent for path in shared])) if shared else Path()
    names = name_cases({path: stem(path) for path in shared}, root, set())
    return [
        {**item, "case": f"{item['case']}_{names[_first(item)]}"} if counts[item["case"]] > 1 else item
        for item in items
    ]


def _first(item: dict[str, Any]) -> Path:
    return Path(item["image"] if isinstance(item["image"], str) else item["image"][0])


def _sort_key(entry: Entry) -> str:
    return entry.images[0].as_posix()


def _existing(dataset_dir: str | os.PathLike[str]) -> Path:
    """The file or folder, absolute, links kept."""
    if str(dataset_dir).startswith(medmnist.PREFIX):
        return medmnist.fetch_medmnist(str(dataset_dir))
    path = Path(dataset_dir).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}. Say where the images are with --dataset_dir.")
    return path


def _texts(names: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in ensure_tuple(names))
