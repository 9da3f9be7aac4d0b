"""What a user gets: maps and masks in the geometry of the input, pictures, profiles, and what viewers show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aeflow_monai.imports import on_first_use

if TYPE_CHECKING:
    from aeflow_monai.output.alongside import Alongside
    from aeflow_monai.output.case_score import GatherScoresd, MaskMapd
    from aeflow_monai.output.deferred import AssembleMapsd, EachMapd
    from aeflow_monai.output.file_grid import InvertMapd
    from aeflow_monai.output.maps import WriteMapsd
    from aeflow_monai.output.overlay import WriteOverlayd
    from aeflow_monai.output.profile import WriteProfiled
    from aeflow_monai.output.slice_place import SlicePlace, slice_places
    from aeflow_monai.output.viewer import ViewerResultd

__all__ = [
    "Alongside",
    "AssembleMapsd",
    "EachMapd",
    "GatherScoresd",
    "InvertMapd",
    "MaskMapd",
    "SlicePlace",
    "ViewerResultd",
    "WriteMapsd",
    "WriteOverlayd",
    "WriteProfiled",
    "slice_places",
]

if not TYPE_CHECKING:  # or mypy would take any name
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "alongside": ["Alongside"],
            "case_score": ["GatherScoresd", "MaskMapd"],
            "deferred": ["AssembleMapsd", "EachMapd"],
            "file_grid": ["InvertMapd"],
            "maps": ["WriteMapsd"],
            "overlay": ["WriteOverlayd"],
            "profile": ["WriteProfiled"],
            "slice_place": ["SlicePlace", "slice_places"],
            "viewer": ["ViewerResultd"],
        },
    )
