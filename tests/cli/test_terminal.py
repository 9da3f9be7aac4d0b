"""What a terminal and a pipe show of a run."""

import io
import sys
import threading
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from aeflow_monai import progress
from aeflow_monai.cli.bundle_run import quiet_log
from aeflow_monai.cli.terminal import Terminal

Capture = pytest.CaptureFixture[str]


def in_a_terminal(width: int = 100) -> tuple[Terminal, io.StringIO]:
    """A terminal, and what appears in it."""
    shown = io.StringIO()
    terminal = Terminal()
    terminal.err = Console(file=shown, force_terminal=True, width=width)
    return terminal, shown


def test_bars_are_moved_by_several_threads() -> None:
    terminal, shown = in_a_terminal()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(1, 2001):
                progress.advance("slices", n % 5, 4)
        except BaseException as error:
            failed.append(error)

    with terminal.progress():
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert "slices" in shown.getvalue()


def test_a_bar_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, shown = in_a_terminal()
    with terminal.progress():
        for n in range(1, 20):
            progress.advance("reading", n, 20)
            assert terminal._bars is not None
            terminal._bars.refresh()
    assert "/s" in shown.getvalue()


def test_names_are_shown_as_they_are(capsys: Capture) -> None:
    terminal = Terminal()
    terminal.result("a:brain:b [red]c[/red].nii.gz")
    terminal.say("two\nlines \x1b[31mred")
    terminal.warn("[x]")
    terminal.error(str(Path("é.png")))
    shown = capsys.readouterr()
    assert shown.out == "a:brain:b [red]c[/red].nii.gz\n"
    assert shown.err == "two\nlines \\x1b[31mred\nnote: [x]\nerror: é.png\n"


def test_a_table_in_a_pipe_is_neither_cut_nor_wrapped(capsys: Capture) -> None:
    name = "sub-0001_ses-01_acq-highres_run-01_desc-preprocessed_T1w" * 3
    Terminal().table(["case", "place"], [[name, "axial, k = 37, S +12.5 mm"], ["[b]", "-"]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["case", "place"],
        [name, *["axial,", "k", "=", "37,", "S", "+12.5", "mm"]],
        ["[b]", "-"],
    ]


def test_quiet_shows_results_and_errors_alone(capsys: Capture) -> None:
    terminal = Terminal(quiet=True)
    with terminal.progress():
        progress.advance("reading", 1, 2)
        terminal.say("said")
        terminal.warn("warned")
    terminal.error("failed")
    terminal.result("found")
    assert capsys.readouterr() == ("found\n", "error: failed\n")
    assert not sys.stdout.isatty()


def test_a_pipe_gets_lines_of_what_takes_long(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr("aeflow_monai.cli.terminal.time.monotonic", lambda: next(seconds))
    with Terminal().progress():
        for _ in range(5):  # volumes of a few seconds each
            for n in (1, 2):
                progress.advance("slices", n, 2)
        for n in range(6):
            progress.advance("reading", n, 6)
    assert capsys.readouterr().err == "reading 3/6\n"


@pytest.mark.filterwarnings("always:of a library:UserWarning")
def test_warnings_of_libraries_go_to_the_log_after_a_run_within_too(capsys: Capture) -> None:
    terminal = Terminal(verbose=True)
    with quiet_log(terminal):
        with quiet_log(terminal):  # as of a run, whose libraries have made loggers
            pass
        warnings.warn("of a library", UserWarning, stacklevel=1)
    assert "py.warnings: " in capsys.readouterr().err
