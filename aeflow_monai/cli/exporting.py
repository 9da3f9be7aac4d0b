"""`aeflow export`: export a trained model for other programs."""

from __future__ import annotations

import argparse

from aeflow_monai.cli.given_paths import require_model
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import user_path

__all__ = ["export"]


def export(given: argparse.Namespace, terminal: Terminal) -> None:
    """Export a model, and print the path.

    Raises:
        WrongUse: the folder holds no training.
        ValueError: an argument or option is invalid.
        ModuleNotFoundError: a package is missing.
    """
    require_model(given.folder, "inference")
    terminal.say(f"Exporting {given.folder} to {given.to}.")
    from aeflow_monai.engine.bundles.model_export import export_model

    for path in export_model(user_path(given.folder), given.to, user_path(given.output).absolute(), given.overwrite):
        terminal.result(str(path))
    terminal.say("Next: look under preprocessing in the JSON file, at what images go through first (docs/speed.md).")
