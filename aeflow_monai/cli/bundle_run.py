"""Run configs in this process, just as `python -m monai.bundle run` does."""

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

# Options that the command sets in another way, and arguments of MONAI that are not options of a config.
_OF_COMMAND = {"dataset_dir": "the images behind the verb", "output_dir": "-o"}
_OF_MONAI = {"config_file", "args_file", "meta_file", "logging_file", "tracking", "workflow_name", "run_id"}
_OF_MONAI |= {"init_id", "final_id"}  # these would skip the checks of a run
_AS_PYTHON = {"true": "True", "false": "False", "null": "None"}  # from YAML to MONAI's spelling
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def options_of(given: Any, **more: Any) -> dict[str, str]:
    """Collect the config options of a command line: `--device`, `--runtime`, `--set`, and others that are not None.

    Args:
        given: the parsed command line.
        more: further options, by their names in the config.

    Raises:
        ValueError: an option is set twice, has an argument of its own, or is not in the config.
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
    """Run a config, with its log in the output folder.

    Args:
        verb: "run", "train" or "prepare".
        configs: paths of the config files, in merging order.
        options: config options by name, as typed.
        folder: output folder; the log goes to `logs` in it once the run has created it.
        terminal: shows warnings and progress.
        show_printed: also show the output of the run as results.

    Raises:
        Exception: the error that ends the run.
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
        read_config(file)  # refuses files that would hang MONAI, such as a YAML bomb
    require_sections(files, options)
    name = Path(files[0]).stem if verb == "run" else verb
    arguments = ["run"] if verb == "run" else ["run", verb]
    arguments += ["--config_file", files[0] if len(files) == 1 else str(files)]
    arguments += [text for name, value in options.items() for text in (f"--{name}", value)]
    terminal.detail(shlex.join(["python", "-m", "monai.bundle", *arguments]))
    own_arguments, own_hook = sys.argv, sys.excepthook
    # the run records this as its command, and reads typed options from it
    sys.argv = [str(Path(monai.bundle.__file__).with_name("__main__.py")), *arguments]
    try:
        printed = _Printed(terminal if show_printed else None)
        # importing MONAI has made loggers that write to the terminal
        with quiet_log(terminal), _logged(Path(folder, "logs", f"{name}.log"), printed), terminal.progress():
            fire.Fire({"run": run}, command=[*arguments, "--logging_file", "False"])
    finally:
        sys.argv, sys.excepthook = own_arguments, own_hook


def require_sections(configs: Sequence[str | Path], options: Mapping[str, str]) -> None:
    """Refuse an option of a section that the configs lack, for which MONAI has no clear message.

    Args:
        configs: paths of the config files, in merging order.
        options: options by name, such as `network_def#network#clamp`.

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
    """Show only this package's warnings of all logs in the terminal; with --verbose show everything.

    Args:
        terminal: shows the lines.
    """
    root = logging.getLogger()
    known = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = {logger: (logger.handlers[:], logger.propagate) for logger in (root, *known) if logger.handlers}
    level, is_nested = root.level, any(isinstance(handler, _Shown) for handler in root.handlers)
    for logger in before:  # such as MONAI's, which have handlers of their own for the terminal
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
    """Send the log and printed output to a file."""
    handler = _LogFile(path)
    logging.getLogger().addHandler(handler)
    try:
        with redirect_stdout(printed):
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _LogFile(logging.Handler):
    """A log file that is created once the run has written its record; earlier lines are buffered.

    A refused run writes no record, and so leaves nothing in an output folder of other runs.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.kept = path, io.StringIO()
        self.before = self._records()
        self.stream: io.TextIOBase | None = None
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Write or buffer a line."""
        if self.stream is None and self._records() != self.before:
            self.path.parent.mkdir(exist_ok=True)
            self.stream = self.path.open("a", encoding="utf-8", errors="backslashreplace")
            self.stream.write(self.kept.getvalue())
        to = self.stream or self.kept
        to.write(f"{self.format(record)}\n")
        to.flush()

    def _records(self) -> list[tuple[int, int]]:
        """Return inode and time in nanoseconds of each run record in the log's folder and its parent."""
        found = []
        for place in self.path.parents[:2]:
            with suppress(OSError):  # absent, or an impossible folder, which the run reports
                record = (place / RUN_RECORD).stat()
                found.append((record.st_ino, record.st_mtime_ns))
        return found

    def close(self) -> None:
        """Close the file."""
        if self.stream is not None:
            self.stream.close()
        super().close()


class _Shown(logging.Handler):
    """Show warnings of this package in the terminal; with --verbose all lines of all packages."""

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
    """A stream that writes printed output to the log, and shows it as results if it has a terminal."""

    def __init__(self, terminal: Terminal | None) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        """Log the lines of a text, and show them if there is a terminal."""
        for line in filter(str.strip, text.splitlines()):
            logging.getLogger("aeflow_monai.run").info(line)
            if self.terminal is not None:
                self.terminal.result(line)
        return len(text)
