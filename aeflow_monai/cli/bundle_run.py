"""Runs of configs in this process, just as `python -m monai.bundle run` makes them."""

from __future__ import annotations

import io
import logging
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from aeflow_monai.cli.terminal import Terminal

__all__ = ["options_of", "run_bundle"]

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def options_of(given: Any, **more: Any) -> dict[str, str]:
    """Options of the config that a command line gives: `--device`, `--set`, and what else is not None.

    Args:
        given: the parsed command line.
        more: further options by their names in the config.

    Raises:
        ValueError: an option is set twice.
    """
    options = {name: str(value) for name, value in more.items() if value is not None}
    if given.device is not None:
        options["device"] = given.device
    for name, value in given.set:
        if name in options:
            raise ValueError(f"--set {name}={value}: {name} is given already, as {options[name]!r}. Give it once.")
        options[name] = value
    return options


def run_bundle(
    verb: str, configs: Sequence[str | Path], options: Mapping[str, str], folder: str | Path, terminal: Terminal
) -> None:
    """Run a config; its own lines go to a log in the folder of the results.

    Args:
        verb: "run", "train" or "prepare".
        configs: paths of the config files, in the order in which they are merged.
        options: of the config, by name, as they would be typed.
        folder: of the results; the log goes to `logs` in it when the run has made it.
        terminal: shows warnings and progress.

    Raises:
        Exception: whatever ends the run.
    """
    import fire
    import monai.bundle
    from monai.bundle.scripts import run

    files = [str(path) for path in configs]
    arguments = ["run", *([] if verb == "run" else [verb]), "--config_file", files[0] if len(files) == 1 else str(files)]
    arguments += [text for name, value in options.items() for text in (f"--{name}", value)]
    terminal.detail(shlex.join(["python", "-m", "monai.bundle", *arguments]))
    own_arguments, own_hook = sys.argv, sys.excepthook
    # what the run records as its command, and reads as it was typed
    sys.argv = [str(Path(monai.bundle.__file__).with_name("__main__.py")), *arguments]
    try:
        with _logged(Path(folder, "logs", f"{'inference' if verb == 'run' else verb}.log"), terminal), terminal.progress():
            fire.Fire({"run": run}, command=[*arguments, "--logging_file", "False"])
    finally:
        sys.argv, sys.excepthook = own_arguments, own_hook


@contextmanager
def _logged(path: Path, terminal: Terminal) -> Iterator[None]:
    """Send the log and what is printed to a file, and warnings to the terminal too."""
    root = logging.getLogger()
    handlers = [_LogFile(path), _Warnings(terminal)]
    level, before = root.level, root.handlers[:]
    root.handlers[:] = handlers
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    try:
        with redirect_stdout(_ToLog()):
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
        handlers[0].close()


class _LogFile(logging.Handler):
    """A log that begins when the run has made its folder; until then lines are kept."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.kept = path, io.StringIO()
        self.stream: io.TextIOBase | None = None
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if self.stream is None and (self.path.parent.parent / "run.json").exists():
            self.path.parent.mkdir(exist_ok=True)
            self.stream = self.path.open("a", encoding="utf-8", errors="backslashreplace")
            self.stream.write(self.kept.getvalue())
        to = self.stream or self.kept
        to.write(f"{self.format(record)}\n")
        to.flush()

    def close(self) -> None:
        """Close the file."""
        if self.stream is not None:
            self.stream.close()
        super().close()


class _Warnings(logging.Handler):
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


class _ToLog(io.TextIOBase):
    """What is printed, as lines of the log."""

    def write(self, text: str) -> int:
        """Log the lines of a text."""
        for line in text.splitlines():
            if line.strip():
                logging.getLogger("aeflow_monai.run").info(line)
        return len(text)
