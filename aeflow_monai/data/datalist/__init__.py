"""Files on disk become a list of dictionaries, or an error that says what to do.

Each layout of a data set is one small reader into the same list; `load_datalist` tells which are known and in which
order they are looked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aeflow_monai.imports import on_first_use

if TYPE_CHECKING:
    from aeflow_monai.data.datalist.class_labels import require_labels
    from aeflow_monai.data.datalist.listing import find_images, list_unused, load_datalist
    from aeflow_monai.data.datalist.splits import choose_abnormal, normals_of, split_normals
    from aeflow_monai.data.datalist.unused import Unused

__all__ = [
    "Unused",
    "choose_abnormal",
    "find_images",
    "list_unused",
    "load_datalist",
    "normals_of",
    "require_labels",
    "split_normals",
]

if not TYPE_CHECKING:  # or mypy would take any name
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "class_labels": ["require_labels"],
            "listing": ["find_images", "list_unused", "load_datalist"],
            "splits": ["choose_abnormal", "normals_of", "split_normals"],
            "unused": ["Unused"],
        },
    )
