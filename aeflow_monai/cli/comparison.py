"""`aeflow compare`: compare two models on the same labelled images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aeflow_monai.cli.bundle_run import options_of
from aeflow_monai.cli.dry_run import require_usable, say_test, test_images
from aeflow_monai.cli.given_paths import require_data, require_model
from aeflow_monai.cli.scoring import evaluate_folder
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.data.datalist.item import first_path
from aeflow_monai.files import read_json, write_json
from aeflow_monai.printable import counted, some
from aeflow_monai.result_files import COMPARED_CASES, COMPARISON, RUN_RECORD, SCORES
from aeflow_monai.result_tables import rows_of, write_table

__all__ = ["compare"]


def compare(given: argparse.Namespace, terminal: Terminal) -> None:
    """Evaluate two models on the same images, and compare their scores case by case.

    Raises:
        ValueError: an argument or option is invalid, or no case was scored by both models.
        CaseFailures: some cases failed.
    """
    for model in given.model:
        require_model(model, "evaluate")
    require_data([given.data])
    terminal.say(f"Comparing {given.model[0]} and {given.model[1]} on {given.data}.")
    overwrite = "" if given.overwrite else " --overwrite"
    terminal.when_stopped = lambda: f"Begin again with:\n  {terminal.command}{overwrite}"
    from aeflow_monai.engine.config.fixed_options import require_own_config
    from aeflow_monai.engine.runs.run_folders import run_folder
    from aeflow_monai.errors import CaseFailures, root_cause
    from aeflow_monai.metrics import paired_report

    options = options_of(given, overwrite=True if given.overwrite else None)
    for model in given.model:
        require_own_config(model, None)
    folder = Path(run_folder(given.output, "comparisons"))
    places = [folder / f"{number}-{Path(model).absolute().name}" for number, model in enumerate(given.model, start=1)]
    if (folder / COMPARISON).exists() and not given.overwrite:
        raise ValueError(f"{folder} holds a comparison. Give another folder with -o, or replace it with --overwrite.")
    of_models = [
        argparse.Namespace(**{**vars(given), "model": model, "output": str(results)})
        for model, results in zip(given.model, places, strict=True)
    ]
    lists = [test_images(each) for each in of_models]
    column = _matched_by(given.model, lists)
    _require_same_labels(lists, column)
    if column == "case":
        terminal.say("Cases match by their names: the models take no file in common.")
    if given.dry_run:
        for each, items in zip(of_models, lists, strict=True):
            say_test(each, items, terminal)
        for items in lists:
            require_usable(items)
        return
    scored, failed = [], None
    for model, results in zip(given.model, places, strict=True):
        terminal.say(f"Evaluating {model} on {given.data}.")
        terminal.line({"state": "evaluating", "model": str(Path(model).absolute()), "results": str(results)})
        try:
            evaluate_folder(Path(model), given.data, results, options, terminal)
        except Exception as error:  # unwrap MONAI's error
            failed = error
            if not isinstance(root_cause(error), CaseFailures):
                raise
        scored.append({row[column]: row for row in rows_of(results / SCORES)})
    first, second = scored
    both = [each for each in first if each in second]
    if not both and failed is not None:
        raise failed
    labels = [int(first[each]["label"]) for each in both]
    scores = [[float(of_model[each]["anomaly_score"]) for each in both] for of_model in scored]
    paired = paired_report(labels, scores[0], scores[1])
    notes = [read_json(results / RUN_RECORD).get("notes", []) for results in places]
    report = {
        "models": [str(Path(model).absolute()) for model in given.model],
        "matched_by": column,
        "notes": notes,
        **paired,
    }
    write_json(folder / COMPARISON, report)
    _write_cases(folder / COMPARED_CASES, [[of_model[each] for each in both] for of_model in scored])
    terminal.line(report)
    low, high = report["difference_ci95"]
    terminal.table(
        ["model", "AUROC", "sensitivity", "specificity"],
        [
            [model, f"{auroc:.3f}", *_rates([of_model[each] for each in both])]
            for model, auroc, of_model in zip(given.model, report["auroc"], scored, strict=True)
        ],
    )
    for model, of_model in zip(given.model, notes, strict=True):
        for note in of_model:
            terminal.result(f"{model}: {note}")
    terminal.result(
        f"second minus first {report['difference']:+.3f} ({low:+.3f} to {high:+.3f}), p = {report['p_value']:.2g}, on "
        f"{report['n']} cases that both scored"
    )
    terminal.result(f"results: {folder / COMPARISON}, and case by case {folder / COMPARED_CASES}")
    if failed is not None:
        raise failed


def _write_cases(path: Path, scored: Sequence[Sequence[Mapping[str, str]]]) -> None:
    """Write a table of the cases that both models scored, those first whose ranks differ most."""
    from scipy.stats import rankdata

    names = ("anomaly_score", "threshold", "prediction", "p_value")
    ranks = [rankdata([float(row["anomaly_score"]) for row in rows]) for rows in scored]
    rows = []
    for first, second, change in zip(*scored, ranks[1] - ranks[0], strict=True):
        row = {"case": first["case"], "label": first["label"], "rank_change": change}
        rows.append(
            row | {f"{name}_{number}": own[name] for number, own in ((1, first), (2, second)) for name in names}
        )
    columns = ["case", "label", *(f"{name}_{number}" for number in (1, 2) for name in names), "rank_change"]
    write_table(path, columns, sorted(rows, key=lambda row: -abs(row["rank_change"])))


def _matched_by(models: Sequence[str], lists: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Return the column of scores.csv by which the images of two models are matched.

    Returns:
        "file"; or "case" for models without common files, for example of different modalities.

    Raises:
        ValueError: there is no common case either.
    """
    for column in ("file", "case"):
        first, second = (_by(column, items) for items in lists)
        if any(each in second for each in first):
            return column
    raise ValueError(
        f"The models have no case in common: {models[0]} takes {first_path(lists[0][0])}, {models[1]} takes "
        f"{first_path(lists[1][0])}. Give data that both can read."
    )


def _require_same_labels(lists: Sequence[Sequence[Mapping[str, Any]]], column: str) -> None:
    """Refuse models that differ in which images of the data are normal.

    Raises:
        ValueError: the labels differ.
    """
    first, second = (_by(column, items) for items in lists)
    both = [each for each in first if each in second]
    if other := [first[each]["case"] for each in both if first[each].get("label") != second[each].get("label")]:
        raise ValueError(
            f"{counted(len(other), 'case')} of {len(both)} are normal for one model and abnormal for the other: "
            f"{some(other)}. Each takes what is normal from its training: give --set normal_classes=... to both."
        )


def _by(column: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {first_path(item) if column == "file" else item["case"]: item for item in items}


def _rates(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Format sensitivity and specificity of predictions."""
    abnormal, normal = ([row["prediction"] for row in rows if row["label"] == label] for label in "10")
    return [f"{abnormal.count('1') / len(abnormal):.3f}", f"{normal.count('0') / len(normal):.3f}"]
