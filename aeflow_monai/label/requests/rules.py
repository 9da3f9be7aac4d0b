"""Rules for the requests that a server answers."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from monailabel.config import settings

from aeflow_monai.about import PACKAGE
from aeflow_monai.label.requests.addresses import parse_origin
from aeflow_monai.label.requests.server import MAX_UPLOAD_MB

__all__ = ["Rules", "rules_of"]

_NO_IMAGES = (".svs", ".xml")  # defaults of MONAI Label that this app does not read


class Rules(NamedTuple):
    """Rules for the requests that a server answers.

    Attributes:
        origins: addresses besides its own by which browsers may reach it, see `parse_origin`.
        allow_anyone: whether other machines may send requests without a password.
        max_upload: most bytes of a request.
        suffixes: suffixes of images and labels.
        folders: folders whose paths are removed from answers.
        has_image: returns whether an image of this name exists, as far as the server knows.
        is_remote: whether the studies are on a DICOMweb server.
    """

    origins: tuple[str, ...]
    allow_anyone: bool
    max_upload: int
    suffixes: tuple[str, ...]
    folders: tuple[str, ...]
    has_image: Callable[[str], bool]
    is_remote: bool = False


def rules_of(conf: Mapping[str, str], studies: str, app_dir: str, has_image: Callable[[str], bool]) -> Rules:
    """Return the rules of a server from its configuration.

    Args:
        conf: "origins", separated by commas; "allow_anyone"; "max_upload_mb".
        studies: folder of images, or the address of a DICOMweb server.
        app_dir: folder of the app.
        has_image: returns whether an image of this name exists.

    Raises:
        ValueError: one of them has an invalid value.
    """
    is_remote = studies.startswith(("http://", "https://"))
    told = [*conf.get("origins", "").split(","), *map(str, settings.MONAI_LABEL_CORS_ORIGINS)]
    # also folders of Python, its libraries and the user, which no answer needs to name
    places = [sys.prefix, sys.base_prefix, str(PACKAGE.parent), str(Path.home()), tempfile.gettempdir()]
    given = [conf[name] for name in ("model",) if conf.get(name)]
    folders = [Path(place) for place in [*places, app_dir, *given, *([] if is_remote else [studies])]]
    listed = [pattern.removeprefix("*") for pattern in settings.MONAI_LABEL_DATASTORE_FILE_EXT]
    return Rules(
        origins=tuple(parse_origin(origin.strip()) for origin in told if origin.strip()),
        allow_anyone=conf.get("allow_anyone", "").lower() == "true" or settings.MONAI_LABEL_AUTH_ENABLE,
        max_upload=int(float(conf.get("max_upload_mb", MAX_UPLOAD_MB)) * 1e6),
        suffixes=tuple(suffix for suffix in listed if suffix not in _NO_IMAGES),
        folders=tuple({str(each) for folder in folders for each in (folder, folder.resolve()) if each.name}),
        has_image=has_image,
        is_remote=is_remote,
    )
