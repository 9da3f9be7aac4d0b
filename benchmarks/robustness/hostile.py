"""Files of weights that would run a command if they were loaded without care; and damage behind right hashes."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import traceback
import zipfile
from pathlib import Path
from typing import Any

import mutations as m
import numpy as np
import torch

from aeflow_monai.files import home

MARK = "a_command_was_run"
_HASH = b"aeflow_monai sha256 "  # begins the comment of an archive, behind which stands the hash of all before it


class Command:
    """An object that leaves a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {home(MARK)}",)


def malicious(data: bytes, random: np.random.Generator) -> bytes:
    """A file with a command in it: in each of torch's formats, alone, or in place of what the archive holds."""
    content: Any = [Command(), {"model": Command()}, {"model": {"weight": torch.ones(2), "more": Command()}}][
        random.integers(3)
    ]
    kind = random.integers(5)
    if kind == 0:
        return pickle.dumps(content)
    if kind == 1:
        return f"cos\nsystem\n(S'touch {home(MARK)}'\ntR.".encode()
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=kind != 2)
    if kind == 2:
        return stream.getvalue()
    return hashed(stream.getvalue() if kind == 3 else _in_archive(data, pickle.dumps(content, 2)))


def _in_archive(data: bytes, pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(stream, "w") as changed:
        for info in archive.infolist():
            changed.writestr(info, pickled if info.filename.endswith("data.pkl") else archive.read(info))
    return stream.getvalue()


def hashed(data: bytes) -> bytes:
    """The same archive with the hash that the package writes behind it."""
    archive = data.rpartition(_HASH)[0] or data
    comment = _HASH + hashlib.sha256(archive[:-2]).hexdigest().encode()
    return archive[:-2] + len(comment).to_bytes(2, "little") + comment


def behind_its_hash(data: bytes, random: np.random.Generator) -> bytes:
    """Damage to the pickle inside an archive whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        mutation = m.BINARY[random.integers(len(m.BINARY))]
        return hashed(_in_archive(data, mutation(archive.read(name), random)))


def fault_in(error: Exception | None) -> str:
    """Whether a command was run, or the error tells how to have it run; empty if neither."""
    mark = Path(home(MARK))
    if mark.exists():
        mark.unlink()
        return "a command was run"
    told = "" if error is None else "".join(traceback.format_exception(error))
    return "the error says how to run it" if "`weights_only`" in told or "trusted source" in told else ""
