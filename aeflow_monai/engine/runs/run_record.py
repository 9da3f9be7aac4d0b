"""run.json: the config, data and result of a run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents

from aeflow_monai.about import PACKAGE, versions
from aeflow_monai.data.datalist.item import files_of
from aeflow_monai.engine.config.own_configs import FREE
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.inference.inferer import SlicedInferer
from aeflow_monai.engine.inference.runtimes import chosen_runtime
from aeflow_monai.engine.runs.case_handler import CaseHandler
from aeflow_monai.file_digests import digest_of
from aeflow_monai.files import read_json, write_json
from aeflow_monai.locks import release_folder
from aeflow_monai.result_files import RUN_RECORD

__all__ = ["RunRecord", "add_note", "describe_run", "finish_record", "hashes_of"]


def describe_run(given: GivenConfig) -> dict[str, Any]:
    """Describe a run at its start, for run.json.

    Args:
        given: config of the run.

    Returns:
        "state", "command", "working_folder" (base of relative paths), "config_files", "started", "process", "machine"
        (hardware and runtime), "versions", "commit" of a checkout, "options" (those at the top of the config and those
        of a run, with expressions evaluated), and "config_sha256" of the whole config.
    """
    content = {name: value for name, value in given.content.items() if name != "imports"}
    text = json.dumps(content, sort_keys=True, default=str)
    options = _options(given.content)
    return {
        "state": "unfinished",
        "command": given.command,
        "working_folder": str(Path.cwd()),
        "config_files": [str(file) for file in given.files],
        "started": _now(),
        "process": os.getpid(),
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            **_runtime(options),
        },
        "versions": versions(),
        "commit": _commit(),
        "options": options,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


class RunRecord(CaseHandler):
    """Write run.json: at the start what the run was given, and after the last case the results.

    It has to come after the handlers that write results. Results of an earlier run that are to be replaced are kept
    with their run.json until the first case has been scored, or all have failed.

    Args:
        folder: folder of the results.
        datalist: datalist of the run.
        inferer: inferer of the run, which knows the runtime in use and which images were unlike those of the training;
            None to record neither.
    """

    def __init__(
        self, folder: str | Path, datalist: Sequence[Mapping[str, Any]], inferer: SlicedInferer | None = None
    ) -> None:
        self.folder = Path(folder)
        self.datalist = datalist
        self.inferer = inferer
        self.noted: tuple[str | None, int] = (None, 0)  # runtime and number of notes that run.json contains
        self.begun: Mapping[str, Any] | None = None
        self.replaced: Sequence[Path] = ()

    def begin(self, begun: Mapping[str, Any], replaced: Sequence[Path] = ()) -> None:
        """Write run.json: now, or later if there are results of an earlier run.

        Args:
            begun: its content at the start.
            replaced: files of an earlier run that are replaced.
        """
        self.begun, self.replaced = begun, replaced
        if not replaced:
            self._begin()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        super().attach(engine)
        for event in (IterationEvents.FORWARD_COMPLETED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, self._begin)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._note)

    def _begin(self) -> None:
        if self.begun is not None:
            write_json(self.folder / RUN_RECORD, self.begun)  # first, so that no finished record describes half a run
            self.begun = None
            for path in self.replaced:
                path.unlink(missing_ok=True)

    def _note(self) -> None:
        """Record the runtime in use, which may differ from the requested one, and the inferer's notes."""
        if self.inferer is None:
            return
        used, notes = self.inferer.runtimes.used, self.inferer.notes
        if (used, len(notes)) == self.noted:
            return
        self.noted = used, len(notes)
        record = read_json(self.folder / RUN_RECORD)
        machine = record["machine"] if used is None else {**record["machine"], "runtime": used}
        known = record.get("notes", [])
        known += [note for note in notes if note not in known]
        write_json(self.folder / RUN_RECORD, {**record, "machine": machine, "notes": known})

    def start(self, engine: Engine) -> None:
        """Reset the collected cases."""
        self.inputs: list[dict[str, str]] = []

    def __call__(self, engine: Engine) -> None:
        """Add the hashes of a case, whose files have just been read."""
        self.inputs.append(hashes_of(self.datalist[len(self.inputs)]))

    def finish(self, engine: Engine) -> None:
        """Write the results of the run, and release its folder."""
        n_failed = len(getattr(engine, "failures", ()))
        finish_record(self.folder / RUN_RECORD, n_cases=len(self.datalist), n_failed=n_failed, inputs=self.inputs)
        release_folder(self.folder)


def add_note(path: str | Path, note: str) -> None:
    """Add a sentence to the notes of a run.json, which the report shows, unless it is already there.

    Args:
        path: path of the file, which need not exist.
        note: the sentence.
    """
    record = read_json(path)
    if record and note not in (known := record.get("notes", [])):
        write_json(path, {**record, "notes": [*known, note]})


def finish_record(path: str | Path, **more: Any) -> None:
    """Complete a run.json.

    Args:
        path: path of the file.
        more: results of the run.
    """
    write_json(path, {**read_json(path), "state": "finished", "ended": _now(), **more})


def hashes_of(item: Mapping[str, Any]) -> dict[str, str]:
    """Hash a case's image and mask for run.json.

    Args:
        item: an item of a datalist.

    Returns:
        "case", "image_sha256" and, if it has a mask, "lesion_sha256": for a single file its SHA-256, for several files
        that of their hexadecimal digests in order.
    """
    found = {"case": str(item["case"])}
    for name in ("image", "lesion"):
        if item.get(name):
            try:
                digests = [digest_of(file) for file in files_of({"image": item[name]})]
            except OSError as error:  # the case failed because of it
                found[f"{name}_error"] = str(error)
                continue
            found[f"{name}_sha256"] = (
                digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
            )
    return found


def _options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options at the top of a config, and nested ones, with expressions evaluated."""
    parser = ConfigParser(deepcopy(dict(content)))
    names = list(content)
    on_top = names[: names.index("bundle_root")] if "bundle_root" in content else names
    found = {name: content[name] for name in on_top if name != "imports" and _is_plain(content[name])}
    found |= {name: parser[name] for name in FREE if "#" in name and name in parser}
    if str(found.get("device")).startswith("$"):
        found["device"] = str(parser.get_parsed_content("device"))
    return found


def _runtime(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the runtime that a run with these options uses; empty for a run without one."""
    name = options.get("runtime")
    return {} if name is None else {"runtime": chosen_runtime(name, options.get("device", "cpu"))}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return False
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else True


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _commit() -> str | None:
    """Return the commit of the checkout that the package runs from, with -dirty for changes; None if installed."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # git is not installed
        return None
