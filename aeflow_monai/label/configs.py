"""The bundle's configs as the app reads them: one preprocessing, one network and one training for all ways of use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

import aeflow_monai

__all__ = ["BundleConfigs"]


class BundleConfigs:
    """The bundle's inference.yaml and train.yaml, with the same overlays on both.

    Args:
        root: the bundle's folder; `bundle` beside the installed package (a checkout) if None.
        overlays: config files with differences, such as configs/healthy_t1.yaml; a model belongs to its overlays.

    Raises:
        FileNotFoundError: a config is not there.
    """

    def __init__(self, root: str | Path | None = None, overlays: Sequence[str | Path] = ()) -> None:
        package = Path(aeflow_monai.__file__).parent
        self.root = Path(root).absolute() if root else package.parent / "bundle"
        self.overlays = tuple(Path(overlay).absolute() for overlay in overlays)
        for file in (self.root / "configs/inference.yaml", self.root / "configs/train.yaml"):
            if not file.is_file():
                raise FileNotFoundError(
                    f"Expected the bundle's config {file}; there is no such file. Name the bundle's folder with "
                    "--bundle <folder>: `bundle` in a checkout of the project."
                )
        for overlay in self.overlays:
            if not overlay.is_file():
                raise FileNotFoundError(f"Expected a config file at {overlay}; there is none. Correct --config.")

    def files(self, name: str) -> list[str]:
        """Paths of a config of the bundle and of the overlays, in the order in which MONAI merges them.

        Args:
            name: "inference.yaml" or "train.yaml".

        Returns:
            Absolute paths.
        """
        return [str(self.root / "configs" / name), *map(str, self.overlays)]

    def parser(self, name: str) -> ConfigParser:
        """A parser of its own, in which nothing is instantiated yet.

        Args:
            name: "inference.yaml" or "train.yaml".

        Returns:
            The parser.
        """
        parser = ConfigParser()
        parser.read_config(self.files(name))
        parser["bundle_root"] = str(self.root)
        return parser

    def value(self, name: str, key: str) -> Any:
        """A plain value of a config, such as the number of epochs.

        Args:
            name: "inference.yaml" or "train.yaml".
            key: its id.

        Returns:
            The value, as it is written there.
        """
        return self.parser(name)[key]
