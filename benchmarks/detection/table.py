"""From the scores of all methods and seeds to one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import read_rows
from sklearn.metrics import roc_auc_score

from aeflow_monai.files import read_json

N_BOOTSTRAP = 1000
# what the evaluation writes: column, file, key
VOLUME_ROWS = {
    "slice AUROC": "slice_auroc",
    "voxel AP": "voxel_average_precision",
    "voxel AUROC": "voxel_auroc",
    "AUPRO": "aupro",
}


class Scores(NamedTuple):
    """Labels and scores of cases, or of slices, and whose they are."""

    cases: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[str, int, str]]) -> Scores:
        """Of rows of case, label and score, by the name of the case."""
        cases, labels, scores = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
        return cls(cases, np.array(labels), np.array(scores, dtype=float))

    @classmethod
    def of_cases(cls, results: Path) -> Scores:
        """Of the cases of an evaluation."""
        rows = read_rows(results / "scores.csv")
        return cls.of([(row["file"], int(row["label"]), row["anomaly_score"]) for row in rows])

    def auroc(self, chosen: np.ndarray | slice = slice(None)) -> float:
        """Of some of them."""
        return float(roc_auc_score(self.labels[chosen], self.scores[chosen]))


class Result(NamedTuple):
    """One method with one seed: labels and scores, and the reports that were written."""

    method: str
    seed: int
    cases: Scores
    slices: Scores | None
    fit: dict[str, Any]
    score: dict[str, Any]
    detection: dict[str, Any]
    localisation: dict[str, Any] | None

    @classmethod
    def read(cls, method: str, seed: int, folder: Path) -> Result:
        """Read what work.py has written."""
        results = folder / "results"
        of_slices = results / "slice_scores.csv"
        cases = Scores.of_cases(results)
        slices = None
        if of_slices.exists():
            kinds = {"normal": 0, "abnormal": 1}
            known = [row for row in read_rows(of_slices) if row["kind"] in kinds]
            slices = Scores.of([(row["case"], kinds[row["kind"]], row["anomaly_score"]) for row in known])
        return cls(
            method,
            seed,
            cases,
            slices,
            read_json(folder / "fit.json"),
            read_json(folder / "score.json"),
            read_json(results / "metrics.json"),
            read_json(results / "localisation.json") or None,
        )


def _resamples(scores: Scores) -> list[np.ndarray]:
    """Indices of bootstrap resamples: cases are drawn, with all their slices, normal and abnormal ones separately."""
    rng = np.random.default_rng(0)
    names = np.array(scores.cases)
    items = {name: np.flatnonzero(names == name) for name in dict.fromkeys(scores.cases)}
    is_abnormal = {name: bool(scores.labels[found].any()) for name, found in items.items()}
    groups = [[name for name in items if is_abnormal[name] == kind] for kind in (False, True)]
    return [
        np.concatenate([items[group[i]] for group in groups for i in rng.choice(len(group), len(group))])
        for _ in range(N_BOOTSTRAP)
    ]


class Compared(NamedTuple):
    """AUROC of methods, means over seeds, and of each its difference from the best of the other methods."""

    auroc: dict[str, float]
    interval: dict[str, list[float]]
    best_peer: str | None
    p_value: dict[str, float | None]


def _compare(methods: dict[str, list[Scores]], peers: Sequence[str]) -> Compared:
    def mean(name: str, chosen: np.ndarray | slice = slice(None)) -> float:
        return float(np.mean([scores.auroc(chosen) for scores in methods[name]]))

    everything = [scores for runs in methods.values() for scores in runs]
    if len({scores.cases for scores in everything}) > 1:
        raise ValueError("The methods were scored on different cases; delete the results of the earlier ones.")
    resamples = _resamples(everything[0])
    drawn = {name: np.array([mean(name, chosen) for chosen in resamples]) for name in methods}
    auroc = {name: mean(name) for name in methods}
    best = max((name for name in peers if name in methods), key=auroc.__getitem__, default=None)
    p_value: dict[str, float | None] = dict.fromkeys(methods)
    for name in methods:
        if best not in (None, name):
            behind = float(np.mean(drawn[name] <= drawn[best]))
            p_value[name] = min(1.0, 2 * min(behind, 1 - behind) + 1 / N_BOOTSTRAP)
    interval = {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in drawn.items()}
    return Compared(auroc, interval, best, p_value)


def summarise(results: Sequence[Result], peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the table says of each method: means over seeds, and the difference from the best peer.

    Intervals are those of the mean AUROC over seeds, cases resampled (with all their slices). `p_value` is two-sided,
    of a paired bootstrap: twice the share of resamples in which the sign of the difference from the best of `peers` is
    the other one.
    """
    methods: dict[str, list[Result]] = {}
    for result in results:
        methods.setdefault(result.method, []).append(result)
    of_cases = _compare({name: [run.cases for run in runs] for name, runs in methods.items()}, peers)
    of_slices = None
    if all(run.slices for run in results):
        of_slices = _compare(
            {name: [run.slices for run in runs if run.slices] for name, runs in methods.items()}, peers
        )
    summary = {}
    for name, runs in methods.items():
        values = [run.detection["auroc"] for run in runs]
        row: dict[str, Any] = {
            "auroc": float(np.mean(values)),
            "auroc_std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "auroc_ci95": of_cases.interval[name],
            "auroc_of_seeds": values,
            "best_peer": of_cases.best_peer,
            "p_value": of_cases.p_value[name],
            "fitted_at": sorted({run.fit["commit"] for run in runs}),
        }
        if of_slices:
            row["slice_auroc_ci95"] = of_slices.interval[name]
            row["best_peer_in_slices"] = of_slices.best_peer
            row["slice_p_value"] = of_slices.p_value[name]
        for key in ("sensitivity", "specificity"):
            row[f"{key}_of_seeds"] = [run.detection[key] for run in runs]
        # not known of a model without the number of held-out patients
        expected = {run.detection.get("expected_specificity") for run in runs}
        row["expected_specificity"] = sorted(expected - {None})
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
    for name, auroc in results[0].detection.get("baselines", {}).items():
        summary[name.replace("_", " ")] = {"auroc": auroc, "trivial": True}
    return dict(sorted(summary.items(), key=lambda item: -item[1]["auroc"]))


def markdown(summary: dict[str, Any]) -> str:
    """The table as text, best first."""
    methods, speed = summary["methods"], summary["ms_per_image"]
    fitted = {name: row for name, row in methods.items() if not row.get("trivial")}
    volumes = [label for label in VOLUME_ROWS if all(label in row for row in fitted.values())]
    has_slices = all("slice_auroc_ci95" in row for row in fitted.values())
    first = next(iter(fitted.values()))
    columns = ["AUROC, mean over seeds", "spread", "95 % interval", _p_of(first["best_peer"])]
    columns += ["sensitivity", "specificity", *volumes]
    columns += ["95 % interval of slice AUROC", _p_of(first["best_peer_in_slices"])] if has_slices else []
    columns += ["training, CPU s", "ms per image", "trained parameters", "stored numbers"]
    columns += ["peak memory, MiB: fitting", "scoring"]
    normals = f"{summary['normals']} normals, " if summary["normals"] else ""
    commits = "; ".join(f"{name} {', '.join(row['fitted_at'])}" for name, row in fitted.items())
    lines = [
        f"{summary['set']}, {summary['split']} split, {normals}seeds {summary['seeds']}; torch {summary['torch']}; "
        f"{summary['machine']}; commit {summary['commit']}, fitted at: {commits}.",
        "",
        "| method | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in methods.items():
        if row.get("trivial"):
            cells = [f"{row['auroc']:.3f}", "", "", "better direction"] + [""] * (len(columns) - 4)
        else:
            cells = [f"{row['auroc']:.3f}", "" if row["auroc_std"] is None else f"{row['auroc_std']:.3f}"]
            cells += [_interval(row["auroc_ci95"]), _p_value(row["p_value"])]
            cells += [_range(row["sensitivity_of_seeds"]), _range(row["specificity_of_seeds"])]
            cells += [f"{row[label]:.4f}" for label in volumes]
            cells += [_interval(row["slice_auroc_ci95"]), _p_value(row["slice_p_value"])] if has_slices else []
            cells += [f"{row['cpu_seconds']:.0f}", f"{speed[name]:.1f}" if name in speed else ""]
            cells += [f"{row[key]:,.0f}" for key in ("trained_parameters", "stored_numbers")]
            cells += [f"{row[key]:.0f}" for key in ("fit_peak_mib", "score_peak_mib")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    expected = {f"{value:.3f}" for row in fitted.values() for value in row["expected_specificity"]}
    lines += [
        "",
        "Spread: standard deviation over seeds. Interval: of the mean over seeds, cases resampled (with all their "
        "slices). p: two-sided paired bootstrap of the difference from the best other method. Sensitivity and "
        "specificity: mean over seeds, and the smallest and largest; at the threshold from held-out training normals, "
        f"whose expected specificity is {' or '.join(sorted(expected)) or 'unknown'}. Intensity statistics "
        "are given in their better direction.",
    ]
    return "\n".join(lines) + "\n"


def _p_of(best_peer: str | None) -> str:
    return f"p against {best_peer}" if best_peer else "p"


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _range(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"
