"""Layout with a folder per class: `<split>/<class>/<image>` or `<class>/<image>`."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from aeflow_monai.data.datalist.dicom_patients import patient_in_header
from aeflow_monai.data.datalist.dicom_series import series_entries
from aeflow_monai.data.datalist.entries import SPLITS, UNSPLIT, Entry, Request
from aeflow_monai.data.datalist.found_images import images_below, masks_below
from aeflow_monai.data.datalist.image_files import EXTENSIONS, stem, subfolders
from aeflow_monai.data.datalist.mask_names import image_names, masks_beside, names_anatomy, several_masks
from aeflow_monai.data.dicom.paths import dicom_paths
from aeflow_monai.printable import shown, some

_logger = logging.getLogger(__name__)

REMEDY = (
    "Expected train/<class>/<image> and test/<class>/<image> below it; name the folders of normal images with "
    "--normal_classes, for example \"['NORMAL']\", or list the images in a manifest.csv (path,split,abnormal)."
)


def has_class_folders(root: Path, request: Request) -> bool:
    """Whether the root has a folder named after a split or a normal class."""
    wanted = {"train", "test", *(name.lower() for name in request.normal_classes)}
    return any(child.name.lower() in wanted for child in subfolders(root))


def read_class_folders(root: Path, request: Request) -> list[Entry]:
    """Return the images of `<split>/<class>/`, or of `<class>/` if there is neither a train nor a test folder."""
    folders = [child for child in subfolders(root) if child.name.lower() in SPLITS]
    splits = {child.name.lower(): child for child in folders}
    if len(splits) < len(folders):
        raise ValueError(
            f"Expected one folder of each split in {root}; got {some(sorted(child.name for child in folders))}. Move "
            "the images of a split into one folder."
        )
    if not splits.keys() & {"train", "test"}:
        splits = {UNSPLIT: root}
    normal = {name.lower() for name in request.normal_classes}
    entries: list[Entry] = []
    classes: set[str] = set()
    with_images: set[str] = set()
    unused: list[Path] = []
    for name, folder in splits.items():
        mask_roots = [root / (f"{folder.name}_masks" if name else "masks")]
        mask_roots += [root / "ground_truth"] if name == "test" else []  # as in MVTec AD
        masks = [path for mask_root in mask_roots for path in masks_below(mask_root, all_are=True)]
        used = set()
        for class_folder in subfolders(folder):
            classes.add(class_folder.name)
            images = {entry.named or entry.images[0]: entry for entry in _entries_in(class_folder, request)}
            with_images |= {class_folder.name} if images else set()
            found = _masks_of(list(images), masks, class_folder)
            used |= {mask for own in found.values() for mask in own}
            label = int(class_folder.name.strip().lower() not in normal)
            entries += [
                _with_masks(entry._replace(split=SPLITS.get(name, UNSPLIT), label=label), found.get(image, ()))
                for image, entry in images.items()
            ]
        unused += [path for path in masks if path not in used]
    if not entries:
        if request.series:  # if it excludes all images, raise the error that lists them
            folders = [class_folder for folder in splits.values() for class_folder in subfolders(folder)]
            series_entries((p for folder in folders for p in _images_in(folder) if p.is_dir()), root, request)
        raise ValueError(
            f"No image in the class folders of {root}: expected <class>/<image> or train/<class>/<image>, with one of "
            f"{', '.join(EXTENSIONS)}; class folders found: {some(sorted(classes))}. Move the images there, list "
            "them in a manifest.csv, or give another folder with --dataset_dir."
        )
    if not normal & {kind.strip().lower() for kind in classes}:
        raise ValueError(
            f"None of the class folders of {root} is named {' or '.join(request.normal_classes)}; found: "
            f"{some(sorted(classes))}. {REMEDY} If the folders are patients and all images normal, give the layout "
            "with --layout folder (volumes) or --layout dicom."
        )
    _say_classes(request.normal_classes, with_images)
    if unused:
        raise ValueError(
            f"{len(unused)} masks below {root} have no image: {some(unused)}. Name a mask as its image, in the class "
            "folder of the same name."
        )
    return entries


def _say_classes(normal_classes: Sequence[str], classes: Collection[str]) -> None:
    """Log which folders are normal, and warn of a given name that matches none, such as a misspelt one."""
    wanted, known = {name.lower() for name in normal_classes}, {kind.strip().lower() for kind in classes}
    normal = sorted(kind for kind in classes if kind.strip().lower() in wanted)
    told = f"Normal are the class folders {some(normal)}, abnormal {some(sorted({*classes} - {*normal}))}."
    if missing := [name for name in normal_classes if name.lower() not in known]:
        _logger.warning(f"There is no image in a class folder {some(missing)}, which was called normal. {told}")
    else:
        _logger.info(told)


def _masks_of(images: Sequence[Path], masks: Sequence[Path], class_folder: Path) -> dict[Path, list[Path]]:
    """Return the masks of each image: those of its name in the mask folder of its class, or beside the image."""
    kind = [path for path in masks if path.parent.name == class_folder.name]
    full = {path.name: path for path in kind}
    short = {name: path for path in kind for name in image_names(stem(path))} | {stem(path): path for path in kind}
    beside = [path for path in masks_below(class_folder) if not names_anatomy(path)]
    found = defaultdict(list, masks_beside(images, beside, class_folder))
    for image in images:
        if mask := full.get(image.name, short.get(stem(image))):
            found[image].append(mask)
    return found


def _with_masks(entry: Entry, masks: Sequence[Path]) -> Entry:
    if len(masks) > 1 and not entry.problem:
        return entry._replace(problem=several_masks(entry.images[0], masks))
    return entry._replace(mask=next(iter(masks), None))


def _entries_in(folder: Path, request: Request) -> list[Entry]:
    images = _images_in(folder)
    of_dicom = series_entries([path for path in images if path.is_dir()], folder, request, required=False)
    files = (path for path in images if not path.is_dir())
    return [*(Entry(UNSPLIT, (path,), patient_id=patient_in_header(path)) for path in files), *of_dicom]


def _images_in(folder: Path) -> list[Path]:
    """Return the images of one class, which lie directly in its folder."""
    images = images_below(folder)
    if folder in images:  # DICOM files directly in a class folder are one image each, such as radiographs
        images = sorted({*images, *dicom_paths(folder)} - {folder}, key=Path.as_posix)
    if deeper := [path for path in images if path.parent != folder]:
        raise ValueError(
            f"The class folder {shown(folder)} has {len(deeper)} images in folders of its own: {some(deeper)}. Move "
            "them up, or list the images in a manifest.csv, which can also name their cases."
        )
    return images
