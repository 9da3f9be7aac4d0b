"""The package's own configs: the template bundle that trainings start from, and presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.about import PACKAGE
from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.printable import meant

__all__ = ["config_files", "known_configs", "require_order", "template_root"]


def config_files(*names: str) -> list[str]:
    """Return the paths of the package's own configs, in the order in which MONAI merges them.

    Args:
        names: names in the template bundle ("train", "multi_gpu_train") and of presets ("chest_xray", "healthy_t1",
            "brats2021", "paper", "semi_supervised"); the path of a file is returned as it is.

    Raises:
        ValueError: there is no config or file of that name, or it cannot be read.

    Example:
        >>> [Path(file).name for file in config_files("train", "chest_xray")]
        ['train.yaml', 'chest_xray.yaml']
    """
    known = known_configs()
    found = []
    for name in names:
        file = known.get(name, Path(name))
        if not file.is_file():
            raise ValueError(
                f"There is no config {name!r}: choose one of {', '.join(known)}, or give the path of a file."
                + meant(name, known)
            )
        read_config(file)
        found.append(str(file.absolute()))
    return found


def known_configs() -> dict[str, Path]:
    """Return the package's own configs, from name to file: those of the template bundle, then presets.

    Example:
        >>> "chest_xray" in known_configs()
        True
    """
    folders = (template_root() / "configs", template_root().parent / "configs")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def template_root() -> Path:
    """Return the folder of the template bundle: in the package, or beside it in a checkout."""
    installed = PACKAGE / "bundle"
    return installed if installed.is_dir() else PACKAGE.parent / "bundle"


def require_order(files: Sequence[str | Path]) -> None:
    """Raise an error for config files in an order in which one would replace the content of another.

    Args:
        files: files in the order of merging: a complete config, such as train.yaml or a bundle's inference.yaml, then
            presets.

    Raises:
        ValueError: a preset comes before the config that it changes, or there are two complete configs.
    """
    paths = [Path(file) for file in files]
    whole = [file for file in paths if "bundle_root" in read_config(file)]
    if len(whole) > 1:
        raise ValueError(
            f"--config_file: expected one config and its presets; got {len(whole)} that stand alone, "
            f"{' and '.join(map(str, whole))}. Run one after the other."
        )
    if whole and whole[0] != paths[0]:
        raise ValueError(
            f"--config_file: {whole[0]} would replace the options of {paths[0]}, which stands before it. Name "
            f"{whole[0].name} first, and presets behind it."
        )
