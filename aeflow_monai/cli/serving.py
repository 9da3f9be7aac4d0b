"""`aeflow label`: the MONAI Label server for 3D Slicer and OHIF."""

from __future__ import annotations

import argparse

from aeflow_monai.about import DISCLAIMER
from aeflow_monai.cli.terminal import Terminal

__all__ = ["label"]


def label(given: argparse.Namespace, terminal: Terminal) -> None:
    """Serve a folder of images, or create the app's folder.

    Raises:
        ValueError: an argument or option is invalid.
        ModuleNotFoundError: MONAI Label is not installed.
    """
    from aeflow_monai.label.requests.server import make_app_folder, serve

    if given.init:
        terminal.result(str(make_app_folder(given.app)))
        return
    if not given.studies:
        raise ValueError("Name the folder of your images with --studies <folder>.")
    terminal.result(DISCLAIMER)
    serve(
        given.studies,
        given.app,
        model=given.model,
        presets=given.preset,
        host=given.host,
        port=given.port,
        origins=given.origin,
        allow_anyone=given.allow_anyone,
        max_upload_mb=given.max_upload_mb,
        log_level=given.log_level,
    )
