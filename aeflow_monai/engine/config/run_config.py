"""The config of a run of a model, opened without MONAI's command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from aeflow_monai.engine.config.config_content import content_of
from aeflow_monai.engine.config.config_text import read_configs
from aeflow_monai.engine.config.workflow import GivenConfig

__all__ = ["open_config"]


def open_config(
    configs: Sequence[str | Path], options: Mapping[str, str], data: str, folder: str | Path
) -> tuple[ConfigParser, GivenConfig]:
    """Open configs with options that are read as on MONAI's command line; nothing is instantiated.

    Args:
        configs: paths, in the order in which they are merged.
        options: options of the config by name, as they would be typed.
        data: path of the images.
        folder: folder of the results.

    Returns:
        A parser, and the given config.
    """
    parser = ConfigParser()
    parser.read_config(read_configs(configs))
    parser.update({name: DefaultParseValue(value) for name, value in options.items()})
    given = GivenConfig(tuple(Path(config).absolute() for config in configs), content_of(parser))
    given.content.update(dataset_dir=data, output_dir=str(folder))
    return parser, given
