"""The folders that a run writes to: their names, locks against other runs, and leftovers of earlier runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from aeflow_monai.data.datalist.unused import Datalist
from aeflow_monai.engine.config.stored_model import model_path
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.runs.earlier_results import find_in_the_way, find_results, is_unfinished_table
from aeflow_monai.engine.runs.run_record import RunRecord, describe_run
from aeflow_monai.file_digests import digest_of
from aeflow_monai.files import home, read_json, sweep, user_path
from aeflow_monai.launch import n_launched
from aeflow_monai.locks import claim_folder, release_folder
from aeflow_monai.printable import some
from aeflow_monai.result_files import RUN_RECORD

__all__ = [
    "begin_bundle",
    "begin_cache",
    "begin_results",
    "is_unfinished",
    "model_folder",
    "require_free",
    "require_new",
    "run_folder",
]

# Files that a training writes besides its models and logs.
_OF_A_BUNDLE = ("LICENSE", "docs/README.md", "configs/train.yaml", "configs/inference.yaml", "configs/metadata.json")


def run_folder(output_dir: str | None, kind: str = "runs") -> str:
    """Return the folder of a run's outputs: as given, or a new one below the home folder, by time and process.

    Args:
        output_dir: the given folder, or None.
        kind: folder below the home folder.

    Raises:
        ValueError: no folder was given to a run of several processes, which could not agree on a name.
    """
    if output_dir is not None:
        return str(user_path(output_dir).absolute())
    if n_launched() > 1:
        raise ValueError("A training in several processes needs a folder that all of them know: give --output_dir.")
    return home(kind, f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}")


def model_folder(output_dir: str | None) -> str:
    """Return the folder of a new model, see `run_folder`.

    Raises:
        ValueError: it already holds a model.
    """
    folder = run_folder(output_dir)
    if model_path(folder).is_file():
        raise ValueError(
            f"{folder} holds a trained model, which would be lost: give another folder with --output_dir, or delete "
            "this one."
        )
    return folder


def begin_bundle(folder: str | Path, resume: str | Path | None = None) -> None:
    """Claim the folder of a new bundle.

    Args:
        folder: folder of the bundle.
        resume: checkpoint that a training is resumed from, if any.

    Raises:
        FolderInUse: another run writes there.
        ValueError: it holds a model, an interrupted training that is not resumed, or files that no training wrote.
    """
    folder = Path(model_folder(str(folder)))
    claim_folder(folder, "output_dir")
    for part in (".", "configs", "models", "docs", "logs", "logs/checkpoints"):
        sweep(folder / part)
    if resume is not None and Path(resume).resolve().parent == (folder / "logs/checkpoints").resolve():
        return
    try:
        require_new(folder)
    except ValueError:
        release_folder(folder)
        raise


def require_new(folder: str | Path) -> None:
    """Raise an error if the folder of a new bundle holds an interrupted training, or files of others.

    Args:
        folder: folder of the bundle, which need not exist.

    Raises:
        ValueError: names what is in the way.
    """
    folder = Path(folder)
    record = _read(folder / "logs" / RUN_RECORD)
    checkpoints = sorted((folder / "logs/checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        started = ", ".join(command["started"] for command in record.get("commands", [])[:1]) or "an unknown time"
        raise ValueError(
            f"{folder} holds an interrupted training that began at {started}. Go on with it with --resume "
            f"{checkpoints[-1]}, give another folder with --output_dir, or delete this one."
        )
    if not record and (foreign := [name for name in _OF_A_BUNDLE if (folder / name).exists()]):
        raise ValueError(
            f"{folder} holds {', '.join(foreign)}, which no training wrote, and which this one would replace. Give "
            "another folder with --output_dir."
        )


def begin_cache(folder: str | Path) -> None:
    """Claim the folder of the file cache for slices and features.

    Args:
        folder: folder of the cache.

    Raises:
        FolderInUse: another run writes there.
    """
    folder = user_path(folder)
    claim_folder(folder, "cache_dir")
    for part in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        sweep(part)


def begin_results(record: RunRecord, given: GivenConfig, bundle: str | Path, overwrite: bool = False) -> None:
    """Claim the folder of an inference or evaluation, and begin its run.json.

    Results of a finished run are replaced only on request. Those of an interrupted run are replaced if this is the same
    run again. In both cases they are kept until the first case of this run has been scored, and files that no run of
    this package has written are always kept.

    Args:
        record: record of the run, with the folder of the results.
        given: config of the run.
        bundle: folder of the model.
        overwrite: remove the results of an earlier run.

    Raises:
        FolderInUse: another run writes there.
        ValueError: there are results of another run that are not to be replaced, or files of others that this run would
            overwrite.
    """
    folder, model = record.folder, model_path(bundle)
    claim_folder(folder, "output_dir")
    sweep(folder)
    of_model = {"file": str(model), "sha256": digest_of(model)}
    begun = {**describe_run(given), "model": of_model, "n_cases": len(record.datalist), "notes": []}
    if isinstance(record.datalist, Datalist):
        begun["unused"] = record.datalist.unused.counts() | {"paths": record.datalist.unused.named()}
    earlier = _read(folder / RUN_RECORD)
    results = find_results(folder)
    try:
        require_free(folder, record.datalist, overwrite or _is_same_again(earlier, begun))
    except ValueError:
        release_folder(folder)
        raise
    for path in filter(is_unfinished_table, results):
        path.unlink()
    record.begin(begun, [path for path in results if not is_unfinished_table(path)])


def require_free(folder: str | Path, datalist: Sequence[Mapping[str, Any]], overwrite: bool = False) -> None:
    """Raise an error if a folder holds results, or files of others that a run would overwrite.

    Args:
        folder: folder of the results, which need not exist.
        datalist: datalist of the run.
        overwrite: whether results of an earlier run may be removed.

    Raises:
        ValueError: names what is in the way.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    if foreign := find_in_the_way(folder, {str(item["case"]) for item in datalist}):
        raise ValueError(
            f"{folder} holds {some([path.name for path in foreign])}, which no run of this package wrote, and which "
            "this one would replace. Give another folder with --output_dir, or move what is yours."
        )
    if not overwrite and find_results(folder):
        raise ValueError(
            f"{folder} holds the results of {_described(_read(folder / RUN_RECORD))}. Give another folder with "
            "--output_dir, or replace them with --overwrite True."
        )


def is_unfinished(folder: str | Path) -> bool:
    """Return whether a folder holds the results of an interrupted run."""
    return _read(Path(folder, RUN_RECORD)).get("state") == "unfinished"


def _read(record: Path) -> dict[str, Any]:
    try:
        return read_json(record)
    except ValueError:  # treated like a missing one
        return {}


def _is_same_again(earlier: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Return whether an interrupted run had the same config and data as this one."""
    same = all(earlier.get(key) == record[key] for key in ("config_sha256", "versions"))
    model = earlier.get("model") or {}
    return same and earlier.get("state") == "unfinished" and model.get("sha256") == record["model"]["sha256"]


def _described(record: Mapping[str, Any]) -> str:
    if not record:
        return "a run that has left no run.json"
    data = record.get("options", {}).get("dataset_dir")
    return f"a run on {data} that began at {record.get('started')} and is {record.get('state')}"
