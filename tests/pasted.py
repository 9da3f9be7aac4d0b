"""Blocks of bash as a reader pastes them: by bash itself, whose `aeflow` and `python` are those of this process.

The start of a process with torch costs seconds; so bash calls small programs that hand their arguments to this one.
"""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import fire
import monai.bundle
from monai.bundle.scripts import run

Program = Callable[[list[str]], int]

_CALL = f"""#!{sys.executable} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect(os.environ["PASTED"])
    line.sendall(json.dumps([os.path.basename(sys.argv[0]), os.getcwd(), sys.argv[1:]]).encode() + b"\\n")
    code, out, err = json.loads(line.makefile().read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


def monai_bundle(arguments: Sequence[str]) -> int:
    """`python -m monai.bundle` with these arguments."""
    own_arguments, own_hook = sys.argv, sys.excepthook
    sys.argv = [str(Path(monai.bundle.__file__).with_name("__main__.py")), *arguments]
    try:
        # the log of MONAI would keep the streams of this call
        fire.Fire({"run": run}, command=[*arguments, "--logging_file", "False"])
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv, sys.excepthook = own_arguments, own_hook
    return 0


def paste(code: str, folder: Path, programs: Mapping[str, Program], **environment: str) -> str:
    """Run code as bash does, to its first error.

    Args:
        code: of a block.
        folder: that it is run in.
        programs: by name, what stands in for them; each gives an exit code.
        environment: further variables.

    Returns:
        What was printed to the standard output.
    """
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as line:
        place = Path(name)
        for program in programs:
            (place / program).write_text(_CALL, encoding="utf-8")
            (place / program).chmod(0o755)
        line.bind(str(place / "socket"))
        line.listen()
        line.settimeout(0.05)
        path = f"{place}:{os.environ['PATH']}"
        with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
            with subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", code],
                cwd=folder,
                env={**os.environ, "PATH": path, "PASTED": str(place / "socket"), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            ) as shell:
                while shell.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        _answer(line.accept()[0], programs)
            printed, errors = ((place / name).read_text(encoding="utf-8") for name in ("out", "err"))
    assert shell.returncode == 0, f"exit code {shell.returncode} of\n{code}\n{printed}\n{errors}"
    return printed


def _answer(caller: socket.socket, programs: Mapping[str, Program]) -> None:
    caller.settimeout(None)
    with caller, caller.makefile("rw") as stream:
        name, folder, arguments = json.loads(stream.readline())
        out, err = io.StringIO(), io.StringIO()
        with _inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = programs[name](arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
        stream.write(json.dumps([code, out.getvalue(), err.getvalue()]))


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()  # noqa: PTH109, as a shell has it
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
