"""Commands of Python, each in a process that is forked from one with the imports done, which spares seconds of each.

Such a process has its own environment, folder, output and exit code, as a new interpreter has. What a module does when
it is imported is not seen here: of each verb of the bundle, one test starts an interpreter.
"""

import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


class ForkServer:
    """A process that has imported what the bundle needs, started when the first command comes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self,
        words: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        ranks: int | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python <words>`.

        Args:
            words: `-m` and a module, or `-c` and code, and the arguments.
            cwd: the folder to run it in.
            environment: all of it.
            ranks: of so many processes that meet, as torch.distributed.run starts them; one process if None.
            timeout: seconds after which it is killed.
        """
        if self._process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen([sys.executable, __file__], **pipes, text=True)
        asked, told = self._process.stdin, self._process.stdout
        variables = dict(environment)
        if ranks:
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            print(json.dumps([[*words], str(cwd), variables, ranks, str(out), str(err)]), file=asked, flush=True)
            process = int(told.readline())
            if not select.select([told], [], [], timeout)[0]:
                os.kill(process, signal.SIGKILL)
                told.readline()
                raise subprocess.TimeoutExpired([*words], timeout, out.read_text(), err.read_text())
            code = int(told.readline())
            return subprocess.CompletedProcess(["python", *words], code, out.read_text(), err.read_text())

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


def _serve() -> None:
    """Fork for each line of the standard input; answer with the process, and with its exit code when it has ended."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    asked = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in asked:
        process = os.fork()
        if process == 0:
            answers.close()
            _be(*json.loads(line))
        print(process, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=answers)
    os._exit(0)  # there is nothing to tidy up


def _be(words: list[str], cwd: str, environment: dict[str, str], ranks: int | None, out: str, err: str) -> None:
    """Do as `python <words>` does: never returns."""
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[0] = cwd
    if "OMP_NUM_THREADS" in environment:  # which torch has read
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if ranks:
        _be_a_rank(ranks)
    code = 0
    try:
        option, given, *arguments = words
        if option == "-m":
            sys.argv = [given, *arguments]
            runpy.run_module(given, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [option, *arguments]
            exec(compile(given, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_a_rank(ranks: int) -> None:
    """Return in a process for each rank; the one that forks them ends with them."""
    started = []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return
        started.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    os._exit(int(any(codes)))


def _free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


if __name__ == "__main__":
    import matplotlib as mpl

    mpl.use("agg")
    import monai.bundle.scripts  # noqa: F401
    import torch
    from torch.utils import tensorboard  # noqa: F401

    from aeflow_monai import config_files
    from aeflow_monai.imports import import_names

    import_names("aeflow_monai.data", "aeflow_monai.engine", "aeflow_monai.label", "aeflow_monai.output")
    config_files("train")  # parsed once

    _serve()
