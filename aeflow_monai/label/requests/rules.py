"""What a server was told of the requests that it may answer."""

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

_NO_IMAGES = (".svs", ".xml")  # of MONAI Label's defaults, which this app does not read


class Rules(NamedTuple):
    """What a server was told of its requests.

    Attributes:
        origins: addresses by which browsers may reach it, see `parse_origin`, beside its own.
        allow_anyone: whether other machines may ask, although there is no password.
        max_upload: bytes of a request.
        suffixes: of images and labels.
        folders: whose paths no answer names.
        has_image: whether there is an image of a name, if the server knows.
        is_remote: whether the studies are a DICOMweb server's.
    """

    origins: tuple[str, ...]
    allow_anyone: bool
    max_upload: int
    suffixes: tuple[str, ...]
    folders: tuple[str, ...]
    has_image: Callable[[str], bool]
    is_remote: bool = False


def rules_of(conf: Mapping[str, str], studies: str, app_dir: str, has_image: Callable[[str], bool]) -> Rules:
    """The rules of a server by its configuration.

    Args:
        conf: "origins", separated by commas; "allow_anyone"; "max_upload_mb".
        studies: folder of images, or the address of a DICOMweb server.
        app_dir: folder of the app.
        has_image: whether there is an image of a name.

    Raises:
        ValueError: one of them has a value that it cannot have.
    """
    is_remote = studies.startswith(("http://", "https://"))
    told = [*conf.get("origins", "").split(","), *map(str, settings.MONAI_LABEL_CORS_ORIGINS)]
    # with those of Python, its libraries and the user, which no answer needs to name
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
