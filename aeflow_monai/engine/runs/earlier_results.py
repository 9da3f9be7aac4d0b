"""Detection of earlier results in an output folder, by content: the name of a file alone is not enough."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from aeflow_monai.files import read_json
from aeflow_monai.marks import has_mark
from aeflow_monai.output.maps import EXTENSIONS, OUTPUTS
from aeflow_monai.output.report.page import is_report
from aeflow_monai.result_files import (
    FAILURES,
    LESIONS,
    LOCALISATION,
    METRICS,
    PEAK_COLUMNS,
    PLACE_COLUMNS,
    REPORT,
    RUN_RECORD,
    SCORES,
    SLICE_SCORES,
)

__all__ = ["find_in_the_way", "find_results", "is_unfinished_table"]

_PLACE, _PEAK = ",".join(PLACE_COLUMNS), ",".join(PEAK_COLUMNS)
# First lines of the tables, and a key of each JSON file, that runs write.
_TABLES = re.compile(
    rf"case,file,(label,)?anomaly_score,threshold,prediction,p_value,n_held_out,{_PLACE},{_PEAK},ease,map_score,global_term(,results)?"
    rf"|case,file,stage,message|case,{_PLACE},kind,anomaly_score"
    rf"|{_PLACE},anomaly_score,prediction,skipped,global_term|case,lesion,n_voxels,diameter_mm,map_value,found"
)
_KEYS = {RUN_RECORD: "config_sha256", METRICS: "auroc", LOCALISATION: "n_abnormal_without_mask"}
_NAMES = (*_KEYS, SCORES, FAILURES, SLICE_SCORES, LESIONS, REPORT)
_UNFINISHED = ".unfinished.csv"
_ENDINGS = tuple(
    [f"_{name}{extension}" for name in (*OUTPUTS, "saliency") for extension in (*EXTENSIONS, ".raw", ".zraw", ".png")]
    + ["_slices.csv", "_slices.png"]
)


def find_results(folder: str | Path) -> list[Path]:
    """Find the files in a folder that earlier inferences and evaluations have written, by name and content.

    Args:
        folder: folder of results; subfolders are not searched.

    Returns:
        The paths, without run.json.
    """
    files = [path for path in sorted(Path(folder).iterdir()) if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.name != RUN_RECORD and _has_name(path) and _is_ours(path)]


def find_in_the_way(folder: str | Path, cases: Collection[str]) -> list[Path]:
    """Find files that a run would overwrite and that no run of this package has written.

    Args:
        folder: folder of the results.
        cases: names of the run's cases.
    """
    found = [path for path in sorted(Path(folder).iterdir()) if _has_name(path) and not _is_ours(path)]
    return [path for path in found if _usual(path.name) in _NAMES or _case_of(path) in cases]


def is_unfinished_table(path: Path) -> bool:
    """Return whether a table is one of an interrupted run."""
    return path.name.endswith(_UNFINISHED)


def _usual(name: str) -> str:
    return name.replace(_UNFINISHED, ".csv")


def _case_of(path: Path) -> str:
    name = _usual(path.name)
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), "")


def _has_name(path: Path) -> bool:
    return _usual(path.name) in _NAMES or bool(_case_of(path))


def _is_ours(path: Path) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    if path.suffix in (".raw", ".zraw"):  # voxels of the header beside them
        return has_mark(path.with_suffix(".mhd"))
    if path.suffix == ".csv":
        with path.open("rb") as file:
            return bool(_TABLES.fullmatch(file.readline(1000).decode("utf-8", "replace").rstrip("\r\n")))
    if path.name == REPORT:
        return is_report(path)
    if path.name in _KEYS:
        try:
            return _KEYS[path.name] in read_json(path)
        except ValueError:  # damaged, or of another program
            return False
    return has_mark(path)
