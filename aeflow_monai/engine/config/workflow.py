"""A run of a config, as MONAI's command line starts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.utils import ensure_tuple

from aeflow_monai.engine.config.config_content import GIVEN, content_of
from aeflow_monai.engine.config.config_text import read_config
from aeflow_monai.engine.config.option_types import PATHS
from aeflow_monai.engine.config.own_configs import require_unchanged
from aeflow_monai.locks import release_all

__all__ = ["GivenConfig", "Workflow", "bundle_root"]


class GivenConfig(NamedTuple):
    """Config files and options of a run, merged as MONAI does.

    Attributes:
        files: the config files, as absolute paths.
        content: the merged files and options, with macros resolved and nothing instantiated.
        command: the command line; empty if the run was started from Python.
    """

    files: tuple[Path, ...]
    content: dict[str, Any]
    command: str = ""

    @property
    def bundle_root(self) -> str:
        """Return the root folder of the bundle: the parent of the first file's `configs` folder."""
        folder = self.files[0].parent
        return str(folder.parent if folder.name == "configs" else folder)


class Workflow(ConfigWorkflow):  # type: ignore[misc]
    """MONAI's `ConfigWorkflow` for a run that is started from Python; it passes the given config to the run.

    `python -m monai.bundle run` does not need it: there the config is read from the command line.

    Args:
        config_file: paths of config files, merged in order.
        options: options of `monai.bundle.ConfigWorkflow`, and ids of the config with their values.

    Example:
        >>> from aeflow_monai import config_files
        >>> workflow = Workflow(config_files("train"), logging_file=False, epochs=2)
        >>> workflow.parser["given"].content["epochs"]
        2
    """

    def __init__(self, config_file: str | Sequence[str], **options: Any) -> None:
        for file in ensure_tuple(config_file):
            if Path(file).is_file():  # MONAI reports missing files
                if not read_config(file):
                    raise ValueError(f"{file} is no config: it is empty. Omit it, or take the file again.")
                require_unchanged(file)
        super().__init__(config_file, **options)
        self._files = tuple(Path(file).absolute() for file in ensure_tuple(config_file))
        self._paths = {name: str(options[name]) for name in PATHS if options.get(name) is not None}
        self._note()

    def initialize(self) -> Any:
        """Run the section `initialize`; whatever was set on the parser before is part of the given config."""
        self._note()
        with _releasing_on_error():
            return super().initialize()

    def run(self) -> Any:
        """Run the section `run`; see `monai.bundle.ConfigWorkflow`."""
        with _releasing_on_error():
            return super().run()

    def _note(self) -> None:
        content = content_of(self.parser)
        # MONAI replaces "#" by "::" in paths too
        content |= {k: v for k, v in self._paths.items() if content[k] == ReferenceResolver.normalize_id(v)}
        self.parser[GIVEN] = GivenConfig(self._files, content)


@contextmanager
def _releasing_on_error() -> Iterator[None]:
    """Release the folders of a run if it fails, since the process may continue."""
    try:
        yield
    except BaseException:
        release_all()
        raise


def bundle_root(given: GivenConfig | None) -> str:
    """Return the root folder of the bundle that is run; "." if unknown, as in MONAI's own bundles."""
    return "." if given is None else given.bundle_root
