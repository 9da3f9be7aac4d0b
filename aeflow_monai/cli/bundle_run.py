"""Runs of configs in this process, just as `python -m monai.bundle run` makes them."""

from __future__ import annotations

import io
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.imports import import_names, without_collection
from aeflow_monai.result_files import RUN_RECORD

__all__ = ["options_of", "quiet_log", "require_sections", "run_bundle"]

# What the command gives in another way, and what MONAI takes that is no option of a config.
_OF_COMMAND = {"dataset_dir": "the images behind the verb", "output_dir": "-o"}
_OF_MONAI = {"config_file", "args_file", "meta_file", "logging_file", "tracking", "workflow_name", "run_id"}
_OF_MONAI |= {"init_id", "final_id"}  # which would leave out the checks of a run
_AS_PYTHON = {"true": "True", "false": "False", "null": "None"}  # as configs write them, and as MONAI reads them
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def options_of(given: Any, **more: Any) -> dict[str, str]:
    """Options of the config that a command line gives: `--device`, `--runtime`, `--set`, and what else is not None.

    Args:
        given: the parsed command line.
        more: further options by their names in the config.

    Raises:
        ValueError: an option is set twice, is given otherwise, or is none of the config.
    """
    options = {name: str(value) for name, value in more.items() if value is not None}
    for name in ("device", "runtime"):
        if getattr(given, name, None) is not None:
            options[name] = getattr(given, name)
    for name, value in given.set:
        if name in _OF_COMMAND:
            raise ValueError(f"--set {name}={value}: give this with {_OF_COMMAND[name]}.")
        if name in _OF_MONAI:
            raise ValueError(f"--set {name}={value}: {name} is no option of the config. Leave it away.")
        if name in options:
            raise ValueError(f"--set {name}={value}: {name} is given already, as {options[name]!r}. Give it once.")
        options[name] = _AS_PYTHON.get(value, value)
    return options


def run_bundle(
    verb: str,
    configs: Sequence[str | Path],
    options: Mapping[str, str],
    folder: str | Path,
    terminal: Terminal,
    show_printed: bool = False,
) -> None:
    """Run a config; its own lines go to a log in the folder of the results.

    Args:
        verb: "run", "train" or "prepare".
        configs: paths of the config files, in the order in which they are merged.
        options: of the config, by name, as they would be typed.
        folder: of the results; the log goes to `logs` in it when the run has made it.
        terminal: shows warnings and progress.
        show_printed: also show, as results, what the run prints.

    Raises:
        Exception: whatever ends the run.
    """
    with without_collection():
        import fire
        import monai.bundle
        from monai.bundle.scripts import run

        import_names("aeflow_monai.data", "aeflow_monai.engine", "aeflow_monai.output")
    from aeflow_monai.engine.config.config_text import read_config

    files = [str(path) for path in configs]
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"Expected the folder of a training, with {file}; there is no such file.")
        read_config(file)  # which refuses what would hang MONAI, such as a YAML bomb
    require_sections(files, options)
    name = Path(files[0]).stem if verb == "run" else verb
    arguments = ["run"] if verb == "run" else ["run", verb]
    arguments += ["--config_file", files[0] if len(files) == 1 else str(files)]
    arguments += [text for name, value in options.items() for text in (f"--{name}", value)]
    terminal.detail(shlex.join(["python", "-m", "monai.bundle", *arguments]))
    own_arguments, own_hook = sys.argv, sys.excepthook
    # what the run records as its command, and reads as it was typed
    sys.argv = [str(Path(monai.bundle.__file__).with_name("__main__.py")), *arguments]
    try:
        printed = _Printed(terminal if show_printed else None)
        # imports of MONAI have made loggers that write to the terminal
        with quiet_log(terminal), _logged(Path(folder, "logs", f"{name}.log"), printed), terminal.progress():
            fire.Fire({"run": run}, command=[*arguments, "--logging_file", "False"])
    finally:
        sys.argv, sys.excepthook = own_arguments, own_hook


def require_sections(configs: Sequence[str | Path], options: Mapping[str, str]) -> None:
    """Refuse an option of a section that the configs do not have, which MONAI has no message for.

    Args:
        configs: paths, in the order in which they are merged.
        options: by name, as `network_def#network#clamp`.

    Raises:
        ValueError: names the option.
    """
    sections = {name: name.rpartition("#")[0] for name in options if "#" in name}
    if not sections:
        return
    from monai.bundle import ConfigParser

    from aeflow_monai.engine.config.config_text import read_configs

    parser = ConfigParser()
    parser.read_config(read_configs(configs))
    for name, section in sections.items():
        if section not in parser:
            raise ValueError(f"--set {name}={options[name]}: the config has no {section}. Check the spelling.")


@contextmanager
def quiet_log(terminal: Terminal) -> Iterator[None]:
    """Keep the log of all packages from the terminal, but warnings of this one; with --verbose show all.

    Args:
        terminal: shows what is shown.
    """
    root = logging.getLogger()
    known = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = {logger: (logger.handlers[:], logger.propagate) for logger in (root, *known) if logger.handlers}
    level, is_nested = root.level, any(isinstance(handler, _Shown) for handler in root.handlers)
    for logger in before:  # such as MONAI's, which write to the terminal by themselves
        logger.handlers.clear()
        logger.propagate = True
    root.handlers[:] = [_Shown(terminal)]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(is_nested)
        root.handlers.clear()
        root.setLevel(level)
        for logger, (handlers, propagate) in before.items():
            logger.handlers[:], logger.propagate = handlers, propagate


@contextmanager
def _logged(path: Path, printed: _Printed) -> Iterator[None]:
    """Send the log, and what is printed, to a file."""
    handler = _LogFile(path)
    logging.getLogger().addHandler(handler)
    try:
        with redirect_stdout(printed):
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _LogFile(logging.Handler):
    """A log that begins when the run has written its record; until then lines are kept.

    A run that is refused writes no record: it leaves nothing in a folder of results that others wrote.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.kept = path, io.StringIO()
        self.before = self._records()
        self.stream: io.TextIOBase | None = None
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if self.stream is None and self._records() != self.before:
            self.path.parent.mkdir(exist_ok=True)
            self.stream = self.path.open("a", encoding="utf-8", errors="backslashreplace")
            self.stream.write(self.kept.getvalue())
        to = self.stream or self.kept
        to.write(f"{self.format(record)}\n")
        to.flush()

    def _records(self) -> list[tuple[int, int]]:
        """Inode and time in nanoseconds of each record in the log's folder and in the one that holds it."""
        found = []
        for place in self.path.parents[:2]:
            with suppress(OSError):  # there is none, or the folder cannot be, of which the run tells
                record = (place / RUN_RECORD).stat()
                found.append((record.st_ino, record.st_mtime_ns))
        return found

    def close(self) -> None:
        """Close the file."""
        if self.stream is not None:
            self.stream.close()
        super().close()


class _Shown(logging.Handler):
    """Warnings of this package for the terminal; with --verbose all lines of everyone."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line."""
        if self.terminal.verbose:
            self.terminal.detail(f"{record.name}: {record.getMessage()}")
        elif record.levelno >= logging.WARNING and record.name.startswith("aeflow_monai"):
            self.terminal.warn(record.getMessage())


class _Printed(io.TextIOBase):
    """What is printed, as lines of the log, and as results if there is a terminal for them."""

    def __init__(self, terminal: Terminal | None) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        """Log the lines of a text."""
        for line in filter(str.strip, text.splitlines()):
            logging.getLogger("aeflow_monai.run").info(line)
            if self.terminal is not None:
                self.terminal.result(line)
        return len(text)
