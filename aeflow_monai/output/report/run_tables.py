"""What the files of a run say, as the report shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from aeflow_monai.files import read_json, read_rows

__all__ = ["read_run"]

_NUMBERS = ("anomaly_score", "threshold", "p_value", "ease", "position_mm")
_COUNTS = ("label", "prediction", "slice_from_0", "n_held_out")


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read the tables and reports of an inference or evaluation.

    Args:
        folder: of the results.

    Returns:
        What JSON can hold: "kind", "evaluation" or "inference"; "cases", a dictionary each, with the columns of
        scores.csv that are known; "lesions", those of lesions.csv; "failures"; "metrics" and "localisation", empty
        without; "run": time, versions, the beginning of the model's hash, and what of the data was not used.

    Raises:
        FileNotFoundError: there is no scores.csv.
    """
    folder = Path(folder)
    path = folder / "scores.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no scores.csv in {folder}. Give the folder of a finished inference or evaluation."
        )
    rows = read_rows(path)
    # at the end of a run their table has no name yet
    failures = _rows_if_any(folder / "failures.unfinished.csv") or _rows_if_any(folder / "failures.csv")
    record = read_json(folder / "run.json")
    return {
        "kind": "evaluation" if any("label" in row for row in rows) else "inference",
        "cases": [_case(row) for row in rows],
        "lesions": [_lesion(row) for row in _rows_if_any(folder / "lesions.csv")],
        "failures": [
            {"case": row["case"], "file": _name(row["file"]), "stage": row["stage"], "message": row["message"]}
            for row in failures
        ],
        "metrics": read_json(folder / "metrics.json"),
        "localisation": read_json(folder / "localisation.json"),
        "run": {
            "started": record.get("started", ""),
            "versions": record.get("versions", {}),
            # how many of each kind; their paths are in run.json
            "unused": {kind: n for kind, n in record.get("unused", {}).items() if isinstance(n, int)},
            "model": str((record.get("model") or {}).get("sha256", ""))[:12],
        },
    }


def _case(row: Mapping[str, str]) -> dict[str, Any]:
    case: dict[str, Any] = {"case": row["case"], "file": _name(row.get("file", ""))}
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


def _rows_if_any(path: Path) -> list[dict[str, str]]:
    return read_rows(path) if path.is_file() else []


def _name(file: str) -> str:
    """A file without its folders, which may tell more than a page that is handed on should."""
    return ", ".join(PurePath(part).name for part in file.split(", "))
