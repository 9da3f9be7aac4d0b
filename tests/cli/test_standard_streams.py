"""Readers of the command's output that leave before it ends."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_results import MODEL, write_results

from aeflow_monai.cli.standard_streams import lasting
from aeflow_monai.output.report import write_report


def run_unread(arguments: list[str], stream: str, *, closed: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run `aeflow`; nobody reads one of its streams, or it is closed before the start."""
    reader, writer = os.pipe()
    os.close(reader)
    redirected = {"stdout": 1, "stderr": 2}[stream]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    command = [sys.executable, "-m", "aeflow_monai.cli.main", *arguments]
    if closed:
        command = ["sh", "-c", f'exec "$@" {redirected}>&-', "sh", *command]
    try:
        return subprocess.run(command, **streams, text=True, timeout=120, check=False)  # type: ignore[call-overload,no-any-return]
    finally:
        os.close(writer)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["config", "train"], 0),
        (["--help"], 0),
        (["--print-completion", "bash"], 0),
        (["predict"], 2),
        (["report", "/absent"], 2),
    ],
)
def test_a_reader_that_leaves_is_no_error(arguments: list[str], code: int, stream: str) -> None:
    done = run_unread(arguments, stream)
    assert done.returncode == code
    assert "Traceback" not in f"{done.stdout}{done.stderr}"
    assert "BrokenPipe" not in f"{done.stdout}{done.stderr}"


class Left(io.StringIO):
    """A stream whose reader left, as Windows tells it."""

    def write(self, text: str) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    def flush(self) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("platform", ["win32", "linux"])
def test_windows_tells_in_its_own_words_that_a_reader_left(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    silenced: list[object] = []
    monkeypatch.setattr("aeflow_monai.cli.standard_streams._silence", silenced.append)
    stream = lasting(Left())
    monkeypatch.setattr(sys, "platform", platform)
    if platform == "linux":  # where an invalid argument is one
        with pytest.raises(OSError, match="Invalid argument"):
            stream.write("text")
        return
    assert stream.write("text") == 4
    stream.flush()
    assert len(silenced) == 2


@pytest.mark.parametrize("closed", [False, True])
def test_what_a_run_writes_is_whole_if_nobody_reads_what_it_says(tmp_path: Path, closed: bool) -> None:
    write_results(tmp_path)
    page = write_report(tmp_path, {}, MODEL)
    before = page.read_bytes()
    done = run_unread(["report", str(tmp_path)], "stdout", closed=closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert page.read_bytes() == before
