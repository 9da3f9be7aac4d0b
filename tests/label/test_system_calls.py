"""What the server's processes ask of the system: which files they write and where they connect to, by `strace`.

The audit of the other tests sees what Python opens; this sees compiled libraries and other programs too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Names of files longer than this are cut.
_LENGTH = "4096"
_CALLS = "openat,creat,mkdir,mkdirat,rmdir,rename,renameat,renameat2,unlink,unlinkat,symlink,link,linkat,connect,sendto"
TRACE = ["strace", "--seccomp-bpf", "-f", "-y", "-qq", "-s", _LENGTH, "-e", f"trace={_CALLS}", "-o"]
# A call that opens a file in order to write it, or changes a folder; the name before the flags is the last quoted one.
_WRITING = re.compile(
    r"^\d+ +(openat|creat|mkdir(?:at)?|rmdir|rename(?:at2?)?|unlink(?:at)?|symlink|link(?:at)?)\((.*)"
)
_FOLDER = re.compile(r"AT_FDCWD<([^>]*)>|\d+<([^>]*)>")


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    command = ["strace", "--seccomp-bpf", "-f", "-e", "trace=openat", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not _can_trace(), reason="strace is needed, and the right to use it: apt-get install strace"
)


def written(trace: str, cwd: Path) -> set[str]:
    """Files and folders that were made, changed or removed, or would have been."""
    places = set()
    for line in trace.splitlines():
        call = _WRITING.match(line)
        if call is None or re.search(r"= -1 E(NOENT|EXIST|ISDIR)", line):
            continue
        name, arguments = call[1], call[2].rpartition(" = ")[0] or call[2]  # what a call gives back is a path too
        if name == "openat" and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND", arguments):
            continue
        folders = [first or second for first, second in _FOLDER.findall(arguments)] or [str(cwd)]
        places |= {str(Path(folders[-1], path)) for path in re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)[-1:]}
    return places


def test_the_trace_sees_what_other_programs_write(tmp_path: Path) -> None:
    log = tmp_path / "trace"
    script = "echo 1 > made; mkdir folder; mv made folder/moved; cat folder/moved > /dev/null"
    subprocess.run([*TRACE, str(log), "sh", "-c", script], cwd=tmp_path, check=True)
    places = {place for place in written(log.read_text(), tmp_path) if not place.startswith("/dev/")}
    assert places == {str(tmp_path / name) for name in ("made", "folder", "folder/moved")}


def test_nothing_is_written_elsewhere_and_no_network_is_used(
    make_server: Callable[..., Any], studies: Path, audit: dict[str, str]
) -> None:
    of_traced = ("HOME", "PYTHONDONTWRITEBYTECODE", "TORCHINDUCTOR_CACHE_DIR")
    server = make_server(studies, **{name: audit[name] for name in of_traced})
    log = server.folder / "trace"
    server.command = [*TRACE, str(log), *server.command]
    server.start()
    at_start = len(log.read_text().splitlines())
    try:
        server.client.infer("anomaly_mask", "test_abnormal_000", {"result_extension": ".nrrd"})
        server.get("/scoring/anomaly_score", "POST", {})
        assert server.wait_for("/scoring/")["status"] == "DONE"
        time.sleep(1)
    finally:
        server.close()
    lines = log.read_text().splitlines()
    places = written("\n".join(lines), server.folder)
    # the trace sees what it should: labels and scores beside the images, and the reply on its way
    assert str(studies / "datastore_v2.json") in places
    assert any(place.startswith(str(server.folder / "app/tmp/")) and place.endswith(".nrrd") for place in places)
    allowed = (f"{studies}/", f"{server.folder / 'app'}/", "/dev/", "/proc/")
    # the imports of matplotlib and torch make folders and a list of fonts where there are none
    home = Path(audit["HOME"])
    by_imports = (f"{home / '.config'}", f"{home / '.cache'}")
    others = {place for place in places if not place.startswith((*allowed, *by_imports))}
    assert others - {str(studies), str(server.folder / "app")} == set()
    # at the start nobody is asked, and later nobody on another machine
    asked = [("AF_INET" in line and re.search(r" (connect|sendto)\(", line) is not None, line) for line in lines]
    assert [line for network, line in asked[:at_start] if network] == []
    assert [line for network, line in asked if network and '"127.0.0.1"' not in line and '"::1"' not in line] == []
