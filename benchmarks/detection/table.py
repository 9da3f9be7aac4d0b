"""From the scores of all methods and seeds to one table."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

N_BOOTSTRAP = 1000
# what the evaluation writes: column, file, key
VOLUME_ROWS = {
    "slice AUROC": "slice_auroc",
    "voxel AP": "voxel_average_precision",
    "voxel AUROC": "voxel_auroc",
    "AUPRO": "aupro",
}


class Result(NamedTuple):
    """One method with one seed: labels and scores by case, and the reports that were written."""

    method: str
    seed: int
    cases: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    fit: dict[str, Any]
    score: dict[str, Any]
    detection: dict[str, Any]
    localisation: dict[str, Any] | None

    @classmethod
    def read(cls, method: str, seed: int, folder: Path) -> Result:
        """Read what work.py has written."""

        def load(path: Path) -> Any:
            return json.loads(path.read_text(encoding="utf-8"))

        results = folder / "results"
        with (results / "scores.csv").open(newline="", encoding="utf-8") as stream:
            rows = sorted(csv.DictReader(stream), key=lambda row: row["file"])
        located = results / "localisation.json"
        return cls(
            method,
            seed,
            tuple(row["file"] for row in rows),
            np.array([int(row["label"]) for row in rows]),
            np.array([float(row["score"]) for row in rows]),
            load(folder / "fit.json"),
            load(folder / "score.json"),
            load(results / "metrics.json"),
            load(located) if located.exists() else None,
        )


def _resamples(labels: np.ndarray) -> list[np.ndarray]:
    """Indices of bootstrap resamples, normal and abnormal cases drawn separately."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(labels == label) for label in (0, 1)]
    return [np.concatenate([rng.choice(group, len(group)) for group in groups]) for _ in range(N_BOOTSTRAP)]


def _mean_auroc(runs: Sequence[Result], chosen: np.ndarray | slice = slice(None)) -> float:
    return float(np.mean([roc_auc_score(run.labels[chosen], run.scores[chosen]) for run in runs]))


def summarise(results: Sequence[Result], peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the table says of each method: means over seeds, and the difference from the best peer.

    The interval is that of the mean AUROC over seeds, cases resampled. `p_value` is two-sided, of a paired bootstrap:
    twice the share of resamples in which the sign of the difference from the best of `peers` is the other one.
    """
    methods: dict[str, list[Result]] = {}
    for result in results:
        methods.setdefault(result.method, []).append(result)
    if len({result.cases for result in results}) > 1:
        raise ValueError("The methods were scored on different cases; delete the results of the earlier ones.")
    resamples = _resamples(results[0].labels)
    drawn = {name: np.array([_mean_auroc(runs, chosen) for chosen in resamples]) for name, runs in methods.items()}
    best = max(peers, key=lambda name: _mean_auroc(methods[name]), default=None)
    summary = {}
    for name, runs in methods.items():
        values = [run.detection["auroc"] for run in runs]
        row: dict[str, Any] = {
            "auroc": float(np.mean(values)),
            "auroc_std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "auroc_ci95": np.percentile(drawn[name], [2.5, 97.5]).tolist(),
            "auroc_of_seeds": values,
            "best_peer": best,
            "p_value": None,
        }
        if best not in (None, name):
            behind = float(np.mean(drawn[name] <= drawn[best]))
            row["p_value"] = min(1.0, 2 * min(behind, 1 - behind) + 1 / N_BOOTSTRAP)
        for key in ("sensitivity", "specificity", "average_precision"):
            row[key] = float(np.mean([run.detection[key] for run in runs]))
        for key in ("seconds", "cpu_seconds", "trained_parameters", "stored_numbers"):
            row[key] = float(np.mean([run.fit[key] for run in runs]))
        for key, reports in (("fit", [run.fit for run in runs]), ("score", [run.score for run in runs])):
            row[f"{key}_peak_mib"] = float(np.max([report["peak_memory_mib"] for report in reports]))
        if all(run.localisation for run in runs):
            for label, key in VOLUME_ROWS.items():
                row[label] = float(np.mean([run.localisation[key] for run in runs if run.localisation]))
        summary[name] = row
    summary_baselines = results[0].detection.get("baselines", {})
    for name, auroc in summary_baselines.items():
        summary[name.replace("_", " ")] = {"auroc": auroc, "trivial": True}
    return dict(sorted(summary.items(), key=lambda item: -item[1]["auroc"]))


def markdown(summary: dict[str, Any]) -> str:
    """The table as text, best first."""
    methods, speed = summary["methods"], summary["ms_per_image"]
    fitted = [row for row in methods.values() if not row.get("trivial")]
    volumes = [label for label in VOLUME_ROWS if all(label in row for row in fitted)]
    best = next((row["best_peer"] for row in fitted), None)
    columns = ["AUROC, mean over seeds", "spread", "95 % interval", f"p against {best}" if best else "p"]
    columns += ["sensitivity", "specificity", *volumes, "training, CPU s", "ms per image", "trained parameters"]
    columns += ["stored numbers", "peak memory, MiB: fitting", "scoring"]
    normals = f"{summary['normals']} normals, " if summary["normals"] else ""
    lines = [
        f"{summary['set']}, {summary['split']} split, {normals}seeds {summary['seeds']}; torch {summary['torch']}; "
        f"{summary['machine']}; commit {summary['commit']}.",
        "",
        "| method | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in methods.items():
        if row.get("trivial"):
            cells = [f"{row['auroc']:.3f}", "", "", "better direction"] + [""] * (len(columns) - 4)
        else:
            low, high = row["auroc_ci95"]
            cells = [f"{row['auroc']:.3f}", "" if row["auroc_std"] is None else f"{row['auroc_std']:.3f}"]
            cells += [f"{low:.3f} to {high:.3f}", "" if row["p_value"] is None else f"{row['p_value']:.3f}"]
            cells += [f"{row['sensitivity']:.2f}", f"{row['specificity']:.2f}", *(f"{row[v]:.4f}" for v in volumes)]
            cells += [f"{row['cpu_seconds']:.0f}", f"{speed[name]:.1f}" if name in speed else ""]
            cells += [f"{row[key]:,.0f}" for key in ("trained_parameters", "stored_numbers")]
            cells += [f"{row[key]:.0f}" for key in ("fit_peak_mib", "score_peak_mib")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Spread: standard deviation over seeds. Interval: of the mean over seeds, cases resampled. p: two-sided paired "
        "bootstrap of the difference from the best other method. Sensitivity and specificity: at the threshold that "
        "lets 95 % of held-out training normals pass. Statistics of the intensity are given in their better direction.",
    ]
    return "\n".join(lines) + "\n"
