"""A folder of images as datastore, whose threads wait for each other."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from monailabel.datastore.local import LocalDatastore

__all__ = ["AnomalyLocalDatastore"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _one_at_a_time(method: _Method) -> _Method:
    @functools.wraps(method)
    def call(self: AnomalyLocalDatastore, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            return method(self, *args, **kwargs)

    return cast("_Method", call)


class AnomalyLocalDatastore(LocalDatastore):  # type: ignore[misc]
    """MONAI Label's datastore of a folder, safe to use from the server's threads.

    MONAI Label watches the folder in a thread of its own, which empties the list of images and fills it again. A label
    that is saved meanwhile ends that thread for good, and the server no longer sees what tasks write; an image that
    is asked for meanwhile does not exist. Here each call waits for the one before.

    Args:
        datastore_path: the folder.
        options: see `monailabel.datastore.local.LocalDatastore`.
    """

    def __init__(self, datastore_path: str, **options: Any) -> None:
        self._turn = threading.RLock()  # before the folder is watched
        super().__init__(datastore_path, **options)

    # what the watching thread does
    refresh = _one_at_a_time(LocalDatastore.refresh)
    _init_from_datastore_file = _one_at_a_time(LocalDatastore._init_from_datastore_file)

    # what writes
    add_image = _one_at_a_time(LocalDatastore.add_image)
    remove_image = _one_at_a_time(LocalDatastore.remove_image)
    save_label = _one_at_a_time(LocalDatastore.save_label)
    remove_label = _one_at_a_time(LocalDatastore.remove_label)
    update_image_info = _one_at_a_time(LocalDatastore.update_image_info)
    _update_datastore_file = _one_at_a_time(LocalDatastore._update_datastore_file)
    update_label_info = _one_at_a_time(LocalDatastore.update_label_info)

    # what reads
    datalist = _one_at_a_time(LocalDatastore.datalist)
    get_image_uri = _one_at_a_time(LocalDatastore.get_image_uri)
    get_image_info = _one_at_a_time(LocalDatastore.get_image_info)
    get_label_uri = _one_at_a_time(LocalDatastore.get_label_uri)
    get_label_info = _one_at_a_time(LocalDatastore.get_label_info)
    get_labels_by_image_id = _one_at_a_time(LocalDatastore.get_labels_by_image_id)
    get_labeled_images = _one_at_a_time(LocalDatastore.get_labeled_images)
    get_unlabeled_images = _one_at_a_time(LocalDatastore.get_unlabeled_images)
    list_images = _one_at_a_time(LocalDatastore.list_images)
    status = _one_at_a_time(LocalDatastore.status)
    get_dataset_archive = _one_at_a_time(LocalDatastore.get_dataset_archive)
    json = _one_at_a_time(LocalDatastore.json)
