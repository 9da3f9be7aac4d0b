"""The data of a run's files for the report."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from aeflow_monai.files import read_json
from aeflow_monai.printable import shown
from aeflow_monai.result_files import FAILURES, LESIONS, LOCALISATION, METRICS, RUN_RECORD, SCORES, unfinished_name
from aeflow_monai.result_tables import DamagedTable, iter_rows, rows_of

__all__ = ["read_run", "require_whole"]

_MOST = 10_000  # cases on a page, which a browser can still sort
_NUMBERS = (
    *("anomaly_score", "threshold", "p_value", "ease", "map_score", "global_term"),
    *("position_mm", "peak_r_mm", "peak_a_mm", "peak_s_mm"),
)
# Separator of the files of one case: names may contain commas, but each path has a recognisable start.
_NEXT_PATH = re.compile(r", (?=/|\\\\|[A-Za-z]:[\\/])")
# Keys of metrics.json that the page requires.
_METRICS = tuple(
    f"{name}{ending}"
    for name in ("auroc", "sensitivity", "specificity", "average_precision", "f1", "accuracy")
    for ending in ("", "_ci95")
)
_COUNTS = ("label", "prediction", "slice_from_0", "peak_i", "peak_j", "peak_k", "n_held_out")


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read the tables and reports of an inference or evaluation.

    Args:
        folder: folder of the results.

    Returns:
        A JSON-serialisable dictionary: "kind", "evaluation" or "inference"; "cases", a dictionary each, with the known
        columns of scores.csv, for an archive the most anomalous 10 000; "lesions", those of lesions.csv; "failures";
        "metrics" and "localisation", empty if missing; "run": time, versions, "notes" on images unlike those of the
        training, the beginning of the model's hash, unused data, and for an archive "n_scored" and "n_above", of all
        its cases.

    Raises:
        FileNotFoundError: there is no scores.csv.
        ValueError: a table or report is damaged; names the file.
    """
    folder = Path(folder)
    path = folder / SCORES
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no scores.csv in {folder}. Give the folder of a finished inference or evaluation."
        )
    with _naming(path):
        rows, counts = _rows_of_page(path)
        cases = [_case(row) for row in rows]
    # at the end of a run their table is not renamed yet
    failed = _read_table(folder / unfinished_name(FAILURES), _failure)
    failed = failed or _read_table(folder / FAILURES, _failure)
    record = read_json(folder / RUN_RECORD)
    return {
        "kind": "evaluation" if any("label" in row for row in rows) else "inference",
        "cases": cases,
        "lesions": _read_table(folder / LESIONS, _lesion),
        "failures": failed,
        "metrics": _metrics(folder / METRICS),
        "localisation": read_json(folder / LOCALISATION),
        "run": {
            "started": record.get("started", ""),
            "versions": record.get("versions", {}),
            "notes": record.get("notes", []),
            # number of each kind; their paths are in run.json
            "unused": {kind: n for kind, n in record.get("unused", {}).items() if isinstance(n, int)},
            "n_shards": record.get("n_shards", 0),
            "model": str((record.get("model") or {}).get("sha256", ""))[:12],
            **counts,
        },
    }


def require_whole(folder: str | Path, run: Mapping[str, Any]) -> None:
    """Raise an error if tables lack cases or lesions of their run, or are of another run.

    Args:
        folder: folder of the results.
        run: the output of `read_run`.

    Raises:
        ValueError: there are fewer or more than in the run, or the threshold is not that of the metrics.
    """
    n_cases = run["run"].get("n_scored", len(run["cases"])) + len(run["failures"])
    expected = read_json(Path(folder, RUN_RECORD)).get("n_cases", n_cases)
    if n_cases != expected:
        raise ValueError(
            f"scores.csv and failures.csv in {folder} have {n_cases} cases; the run had {expected}. Restore them, or "
            "run again."
        )
    limit = run["metrics"].get("threshold")
    if limit is not None and not all(
        math.isclose(case.get("threshold", limit), limit, rel_tol=1e-6) for case in run["cases"]
    ):
        raise ValueError(
            f"scores.csv in {folder} has another threshold than its metrics.json, {limit:.6g}: it is of another model. "
            "Restore it, or run again."
        )
    localisation = run["localisation"]
    n_lesions = localisation.get("n_lesions", len(run["lesions"]))
    is_listed = "found_by" in localisation or Path(folder, LESIONS).exists()  # earlier versions wrote no list
    if is_listed and len(run["lesions"]) != n_lesions:
        raise ValueError(
            f"lesions.csv in {folder} has {len(run['lesions'])} lesions; the run had {n_lesions}. Restore it, or run "
            "again."
        )


def _rows_of_page(path: Path) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Return all rows of a table, or the most anomalous with the counts of all and of those above the threshold."""
    counts = {"n_scored": 0, "n_above": 0}

    def counted() -> Iterator[dict[str, str]]:
        for row in iter_rows(path):
            counts["n_scored"] += 1
            counts["n_above"] += row.get("prediction") == "1"
            yield row

    rows = list(itertools.islice(counted(), _MOST + 1))
    if len(rows) <= _MOST:
        return rows, {}
    counts = {"n_scored": 0, "n_above": 0}
    return heapq.nlargest(_MOST, counted(), key=lambda row: float(row["anomaly_score"])), counts


def _name(file: str) -> str:
    """Return a file name without folders, which may reveal more than a shared page should."""
    return ", ".join(PurePath(part).name for part in _NEXT_PATH.split(file))


def _case(row: Mapping[str, str]) -> dict[str, Any]:
    case: dict[str, Any] = {"case": row["case"], "file": _name(row.get("file", ""))}
    if not math.isfinite(float(row["anomaly_score"])):
        raise ValueError(f"the score of {row['case']} is {row['anomaly_score']}")
    case |= {name: row.get(name, "") for name in ("plane", "axis")}
    for name in (*_NUMBERS, *_COUNTS):
        if row.get(name):
            number = float(row[name])
            if math.isfinite(number):
                case[name] = int(number) if name in _COUNTS else number
    return case


def _lesion(row: Mapping[str, str]) -> dict[str, Any]:
    numbers = {name: float(row[name]) for name in ("diameter_mm", "map_value") if row.get(name)}
    counts = {name: int(row[name]) for name in ("lesion", "n_voxels", "found")}
    return {"case": row["case"], **counts, **numbers}


def _failure(row: Mapping[str, str]) -> dict[str, Any]:
    message, file = row["message"], row["file"]
    for path in _NEXT_PATH.split(file):
        for said in (path, shown(path)):
            message = message.replace(said, PurePath(path).name)
    return {"case": row["case"], "file": _name(file), "stage": row["stage"], "message": message}


def _read_table(path: Path, read: Callable[[Mapping[str, str]], dict[str, Any]]) -> list[dict[str, Any]]:
    with _naming(path):
        return [read(row) for row in rows_of(path)]


def _metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json, for which the page assumes that either all keys are there or none."""
    metrics = read_json(path)
    lacking = [name for name in _METRICS if metrics and name not in metrics]
    with _naming(path):
        json.dumps(metrics, allow_nan=False)
        if lacking:
            raise ValueError(f"{', '.join(lacking)} is missing")
    return metrics


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the damaged table in an error."""
    try:
        yield
    except DamagedTable:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"the column {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged: {what}. Restore it, or run again.") from error
