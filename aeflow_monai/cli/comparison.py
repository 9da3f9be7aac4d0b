"""`aeflow compare`: two models on the same labelled images."""

from __future__ import annotations

import argparse
from pathlib import Path

from aeflow_monai.cli.bundle_run import options_of
from aeflow_monai.cli.result_tables import rows_of
from aeflow_monai.cli.scoring import evaluate_folder
from aeflow_monai.cli.terminal import Terminal
from aeflow_monai.files import write_json

__all__ = ["compare"]


def compare(given: argparse.Namespace, terminal: Terminal) -> None:
    """Evaluate two models on the same images, and compare their scores case by case.

    Raises:
        ValueError: something that was given is wrong, or no case was scored by both.
        CaseFailures: some cases failed.
    """
    from aeflow_monai.engine.run_folders import run_folder
    from aeflow_monai.metrics import paired_report

    folder = Path(run_folder(given.output, "comparisons"))
    options = options_of(given, overwrite=True if given.overwrite else None)
    scored = []
    for number, model in enumerate(given.model, start=1):
        results = folder / f"{number}-{Path(model).absolute().name}"
        evaluate_folder(Path(model), given.data, results, options, terminal)
        scored.append({row["file"]: row for row in rows_of(results / "scores.csv")})
    first, second = scored
    both = [file for file in first if file in second]
    labels = [int(first[file]["label"]) for file in both]
    scores = [[float(of_model[file]["anomaly_score"]) for file in both] for of_model in scored]
    paired = paired_report(labels, scores[0], scores[1])
    report = {"models": [str(Path(model).absolute()) for model in given.model], **paired}
    write_json(folder / "comparison.json", report)
    terminal.line(report)
    low, high = report["difference_ci95"]
    terminal.table(
        ["model", "AUROC"],
        [[model, f"{auroc:.3f}"] for model, auroc in zip(given.model, report["auroc"], strict=True)],
    )
    terminal.result(
        f"difference {report['difference']:+.3f} ({low:+.3f} to {high:+.3f}), p = {report['p_value']:.2g}, on "
        f"{report['n']} cases that both scored"
    )
    terminal.result(f"results: {folder / 'comparison.json'}")
