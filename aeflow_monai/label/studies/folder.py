"""A folder of images as datastore, with unique names and safe access from several threads."""

from __future__ import annotations

import fnmatch
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from fastapi import HTTPException
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import LabelNotFoundException

from aeflow_monai.label.names import check_image_id, quoted
from aeflow_monai.label.studies.submissions import check_label
from aeflow_monai.label.temporary import removing_upload

__all__ = ["AnomalyLocalDatastore"]

_logger = logging.getLogger(__name__)

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _one_at_a_time(method: _Method) -> _Method:
    @functools.wraps(method)
    def call(self: AnomalyLocalDatastore, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            return method(self, *args, **kwargs)

    return cast("_Method", call)


def _can_be_asked_for(name: str) -> bool:
    try:
        check_image_id(name)
    except ValueError:
        return False
    return True


@functools.cache
def _warn_of_names(count: int) -> None:
    """Warn once per number, since the folder is listed all the time."""
    _logger.warning(
        f"{count} files are not listed: their names begin with a dot, are too long, or have characters that are not "
        "printed. Rename them."
    )


class AnomalyLocalDatastore(LocalDatastore):  # type: ignore[misc]
    """MONAI Label's folder datastore, made safe for the server's threads.

    MONAI Label watches the folder in a thread that clears and refills the list of images. A label saved meanwhile ends
    that thread for good, so that the server no longer sees what tasks write; an image requested meanwhile does not
    exist. Here calls are serialised by a lock.

    The name of an image is its file name without the suffix, in upper or lower case. If two files would share a name,
    such as case.nii and case.nii.gz, the second keeps its suffix; MONAI Label would leave it out.

    Args:
        datastore_path: the folder.
        options: see `monailabel.datastore.local.LocalDatastore`.
    """

    def __init__(self, datastore_path: str, **options: Any) -> None:
        self._turn = threading.RLock()  # before the watch starts
        super().__init__(datastore_path, **options)

    def _to_id(self, file: str) -> tuple[str, str]:
        suffixes = [pattern.removeprefix("*") for pattern in self._extensions]
        fitting = [suffix for suffix in suffixes if file.lower().endswith(suffix.lower())]
        length = len(max(fitting, key=len, default=Path(file).suffix))
        return (file[:-length], file[-length:]) if length else (file, "")

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """Return the files of a folder by name, without those that no request can name."""
        names = sorted(file.name for file in Path(path).iterdir() if file.is_file())
        fitting = [name for name in names if any(fnmatch.fnmatch(name.lower(), p.lower()) for p in patterns)]
        listed = [name for name in fitting if _can_be_asked_for(name)]
        if left_out := len(fitting) - len(listed):
            _warn_of_names(left_out)
        return {name: name for name in listed}

    def _add_non_existing_images(self) -> int:
        self._init_from_datastore_file()
        objects = self._datastore.objects
        known = {self._filename(image, entry.image.ext) for image, entry in objects.items()}
        added = 0
        for file in self._list_files(self._datastore.image_path(), self._extensions):
            if file in known:
                continue
            image, suffix = self._to_id(file)
            if image in objects:  # another file has this name
                image, suffix = file, ""
            info = {"ts": int(time.time()), "name": file}
            objects[image] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
            added += 1
        return added

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the info of an image without its path, which is internal to the server."""
        with self._turn:
            info: dict[str, Any] = super().get_image_info(image_id)
        info.pop("path", None)
        return info

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an uploaded image; see `LocalDatastore.add_image`.

        Raises:
            HTTPException: an image of this name exists.
        """
        with self._turn, removing_upload(image_filename):
            file = Path(self._datastore.image_path(), image_id + self._to_id(image_filename)[1])
            if image_id in self._datastore.objects or file.exists():
                raise HTTPException(409, detail=f"There is an image {quoted(image_id)} already. Choose another name.")
            return str(super().add_image(image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label that a reader submitted; see `LocalDatastore.save_label`.

        Raises:
            ValueError: see `check_label`; nothing is saved.
        """
        with self._turn, removing_upload(label_filename):
            if image := self.get_image_uri(image_id):
                check_label(label_filename, image)
            return self.save_result(image_id, label_filename, label_tag, label_info)

    def save_result(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save the result of an infer task, replacing a label of the same tag in another format."""
        with self._turn:
            before = self.get_label_uri(image_id, label_tag)
            saved = str(super().save_label(image_id, label_filename, label_tag, label_info))
            if before and before != self.get_label_uri(image_id, label_tag):
                Path(before).unlink(missing_ok=True)
            return saved

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label.

        Raises:
            LabelNotFoundException: the label does not exist.
        """
        with self._turn:
            if not Path(self.get_label_uri(label_id, label_tag)).is_file():
                raise LabelNotFoundException(f"There is no label {quoted(label_tag)} of the image {quoted(label_id)}.")
            super().remove_label(label_id, label_tag)
            self.refresh()

    # called by the watching thread
    refresh = _one_at_a_time(LocalDatastore.refresh)
    _init_from_datastore_file = _one_at_a_time(LocalDatastore._init_from_datastore_file)

    # writers
    remove_image = _one_at_a_time(LocalDatastore.remove_image)
    update_image_info = _one_at_a_time(LocalDatastore.update_image_info)
    _update_datastore_file = _one_at_a_time(LocalDatastore._update_datastore_file)
    update_label_info = _one_at_a_time(LocalDatastore.update_label_info)

    # readers
    datalist = _one_at_a_time(LocalDatastore.datalist)
    get_image_uri = _one_at_a_time(LocalDatastore.get_image_uri)
    get_label_uri = _one_at_a_time(LocalDatastore.get_label_uri)
    get_label_info = _one_at_a_time(LocalDatastore.get_label_info)
    get_labels_by_image_id = _one_at_a_time(LocalDatastore.get_labels_by_image_id)
    get_labeled_images = _one_at_a_time(LocalDatastore.get_labeled_images)
    get_unlabeled_images = _one_at_a_time(LocalDatastore.get_unlabeled_images)
    list_images = _one_at_a_time(LocalDatastore.list_images)
    status = _one_at_a_time(LocalDatastore.status)
    get_dataset_archive = _one_at_a_time(LocalDatastore.get_dataset_archive)
    json = _one_at_a_time(LocalDatastore.json)
