"""What a run found, in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import read_json
from aeflow_monai.printable import counted, some
from aeflow_monai.result_files import FAILURES, METRICS, REPORT, RUN_RECORD, SCORES
from aeflow_monai.result_tables import rows_of

__all__ = ["say_metrics", "say_scores", "sum_up"]

_SHOWN = 3  # most anomalous cases of a summary
_MANY, _NEARLY_ALL = 10, 0.8  # images, and the share above the threshold that is more than disease


def sum_up(folder: Path, terminal: Terminal) -> None:
    """Show what matters of the tables of a run."""
    scores, failures = rows_of(folder / SCORES), rows_of(folder / FAILURES)
    metrics = read_json(folder / METRICS)
    say_scores(scores, len(failures), terminal, is_labelled=bool(metrics))
    _say_highest(sorted(scores, key=lambda row: -float(row["anomaly_score"]))[:_SHOWN], terminal)
    for row in failures[:_SHOWN]:
        terminal.result(f"failed: {row['case']}: {row['message']}")
    for kind, paths in read_json(folder / RUN_RECORD).get("unused", {}).get("paths", {}).items():
        terminal.result(f"not used: {kind}: {some(paths, _SHOWN)}")
    if metrics:
        say_metrics(metrics, terminal)
    terminal.result(f"results: {folder}")
    if (page := folder / REPORT).is_file():
        terminal.result(f"report: {page}")


def say_scores(rows: Iterable[Mapping[str, str]], n_failed: int, terminal: Terminal, is_labelled: bool = False) -> None:
    """Show how many cases are above the threshold.

    Args:
        rows: of a table of scores, as many as there are.
        n_failed: cases that failed.
        terminal: to show it in.
        is_labelled: an evaluation says more on the threshold.
    """
    n_cases = n_abnormal = 0
    threshold = ""
    for row in rows:
        n_cases += 1
        n_abnormal += row["prediction"] == "1"
        threshold = threshold or f" of {float(row['threshold']):.2f}"  # one model scored all of them
    terminal.result(f"{counted(n_cases, 'case')}, {n_abnormal} above the threshold{threshold}, {n_failed} failed")
    if not is_labelled and n_cases >= _MANY and n_abnormal > _NEARLY_ALL * n_cases:
        terminal.result(
            "Nearly all are above it. Images of another modality, scanner or preparation are, ill or not: calibrate "
            "the model on normal ones of the same kind (aeflow calibrate), or train on them."
        )


def _say_highest(rows: Sequence[Mapping[str, str]], terminal: Terminal) -> None:
    """Show the most anomalous cases, and where to look."""
    if not rows:
        return
    from aeflow_monai.output.case_score import is_diffuse

    of_volumes = any(row["plane"] for row in rows)
    columns = ["most anomalous", "score", "prediction", f"p (n = {rows[0]['n_held_out']})"]
    columns += ["slice, from 0", "peak voxel in it"] if of_volumes else ["peak pixel"]
    cells = []
    for row in rows:
        prediction = "abnormal" if row["prediction"] == "1" else "normal"
        p_value = f"{float(row['p_value']):.2g}" if row["p_value"] else ""
        peak = " ".join(row[f"peak_{axis}"] for axis in "ijk").strip()
        place = [_place_of(row)] if of_volumes else []
        cells.append([row["case"], f"{float(row['anomaly_score']):.2f}", prediction, p_value, *place, peak])
    terminal.table(columns, cells)
    parts = ("anomaly_score", "map_score", "threshold")
    diffuse = [row["case"] for row in rows if is_diffuse(*(float(row[name]) for name in parts))]
    if diffuse:
        terminal.result(f"abnormal as a whole, by the global term; maps may show nothing: {some(diffuse, _SHOWN)}")


def say_metrics(metrics: Mapping[str, Any], terminal: Terminal) -> None:
    """Show how well cases were told apart, and whether the threshold can be trusted here."""
    low, high = metrics["auroc_ci95"]
    terminal.result(
        f"AUROC {metrics['auroc']:.3f} ({low:.3f} to {high:.3f}), sensitivity {metrics['sensitivity']:.3f}, "
        f"specificity {metrics['specificity']:.3f}"
    )
    name, baseline = max(metrics.get("baselines", {}).items(), key=lambda found: found[1], default=("", 0.0))
    if baseline >= metrics["auroc"]:
        simple = f"{name.replace('_', ' ')} alone has an AUROC of {baseline:.3f}"
        terminal.result(f"{simple}: the model tells these images apart no better than that")
    for note in filter(None, map(metrics.get, ("auroc_note", "specificity_note"))):
        terminal.result(note)


def _place_of(row: Mapping[str, str]) -> str:
    """Where the most anomalous slice lies in the file, in words."""
    from aeflow_monai.geometry import PLANES, format_position

    if not row["plane"]:
        return ""
    number = f"{row['plane']}, {row['axis']} = {row['slice_from_0']}"
    position = row["position_mm"]
    return f"{number}, {format_position(PLANES[row['plane']].letter, float(position))}" if position else number
