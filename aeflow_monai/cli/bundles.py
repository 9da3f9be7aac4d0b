"""`aeflow bundle` and `aeflow config`: check the bundle of a training, and find the configs of trainings."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from aeflow_monai.cli.terminal import Terminal

__all__ = ["bundle", "config"]


def bundle(given: argparse.Namespace, terminal: Terminal) -> None:
    """Check a bundle, and print the commands for it.

    Raises:
        ValueError: the parts of the bundle do not belong together.
        FileNotFoundError: there is no model.
    """
    from aeflow_monai.engine.config.fixed_options import require_own_config

    folder = Path(given.folder).absolute()
    require_own_config(folder, None)
    terminal.result(f"{folder} is whole: model and configs belong together.")
    for name, what in (("inference", "SCANS"), ("evaluate", "DATA"), ("calibrate", "NORMALS")):
        options = ["--config_file", str(folder / "configs" / f"{name}.yaml"), "--dataset_dir", what]
        terminal.result(shlex.join(["python", "-m", "monai.bundle", "run", *options, "--output_dir", name.upper()]))


def config(given: argparse.Namespace, terminal: Terminal) -> None:
    """Print the paths of named configs, or the available names.

    Raises:
        ValueError: a name is unknown, or the order is wrong.
    """
    from aeflow_monai.engine.config.template import config_files, known_configs, require_order

    if not given.names:
        terminal.table(["name", "file"], [*known_configs().items()])
        return
    files = config_files(*given.names)
    require_order(files)
    terminal.result(str(files))
