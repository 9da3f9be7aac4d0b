"""`aeflow bundle`: the bundle that a training wrote, and the configs that trainings begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from aeflow_monai.cli.terminal import Terminal

__all__ = ["bundle"]


def bundle(given: argparse.Namespace, terminal: Terminal) -> None:
    """Check a bundle and print the commands for it; or print paths of configs.

    Raises:
        ValueError: the bundle's parts do not belong together, or there is no config of a name.
        FileNotFoundError: there is no model.
    """
    from aeflow_monai.engine.config import config_files, require_order
    from aeflow_monai.engine.fixed_options import require_own_config

    if given.config:
        files = config_files(*given.config)
        require_order(files)
        terminal.result(str(files))
        return
    folder = Path(given.folder).absolute()
    require_own_config(folder, None)
    terminal.result(f"{folder} is a whole bundle: model and configs belong together.")
    for name, what in (("inference", "SCANS"), ("evaluate", "DATA"), ("calibrate", "NORMALS")):
        config = folder / "configs" / f"{name}.yaml"
        terminal.result(
            f"python -m monai.bundle run --config_file {config} --dataset_dir {what} --output_dir {name.upper()}"
        )
