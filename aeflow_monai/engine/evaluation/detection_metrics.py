"""Writer of metrics.json: how well case scores separate abnormal from normal cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine

from aeflow_monai.data.datalist.item import patient_of
from aeflow_monai.engine.evaluation.case_collector import CaseCollector
from aeflow_monai.files import write_json
from aeflow_monai.metrics import (
    detection_report,
    format_report,
    intensity_statistics,
)
from aeflow_monai.score.score import Score

__all__ = ["DetectionMetricsWriter"]


class DetectionMetricsWriter(CaseCollector):
    """Collect the scores of labelled cases, and trivial baselines from their images.

    It writes metrics.json at the end and prints the report.

    Without normal or without abnormal cases there is no report, but a warning.

    Args:
        path: path of metrics.json.
        score: score with the case threshold.
        n_bootstrap: number of bootstrap resamples for the intervals.
        seed: seed of the bootstrap, which the report contains.
    """

    def __init__(self, path: str | Path, score: Score, n_bootstrap: int = 1000, seed: int = 0) -> None:
        self.path = Path(path)
        self.score = score
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def start(self, engine: Engine) -> None:
        """Reset the collected cases."""
        self.labels: list[int] = []
        self.scores: list[float] = []
        self.patients: list[str] = []
        self.statistics: dict[str, list[float]] = {}

    def take(self, source: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
        """Collect the label and score of one case."""
        self.labels.append(int(source["label"]))
        self.scores.append(float(scored["anomaly_score"]))
        self.patients.append(patient_of(source))
        for name, value in intensity_statistics(torch.as_tensor(source["image"])).items():
            self.statistics.setdefault(name, []).append(value)

    def finish(self, engine: Engine) -> None:
        """Write and print the report, if there are normal and abnormal cases."""
        n_failed = len(getattr(engine, "failures", ()))  # of a GuardedEvaluator
        if len(set(self.labels)) < 2:
            kind = "abnormal" if any(self.labels) else "normal"
            found = f"all {len(self.labels)} that were read are {kind}" if self.labels else "none was read"
            engine.logger.warning(f"No metrics of cases: they need normal and abnormal cases, but {found}.")
            self.path.unlink(missing_ok=True)  # of an earlier run with other scores
            return
        rank, n = self.score.case_rank.tolist()
        held_out = self.score.held_out
        report = detection_report(
            self.labels,
            self.scores,
            float(self.score.case_threshold),
            calibrated_rank=(rank, n) if n else None,
            # only if each score is of another patient; otherwise the scores are not independent
            calibrated_scores=held_out.scores.tolist() if held_out.n == len(held_out.scores) else (),
            patients=self.patients,
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
            baselines=self.statistics,
        )
        report["n_failed"] = n_failed
        write_json(self.path, report)
        print(format_report(report))
        if n_failed:
            print(f"Not in these metrics: {n_failed} cases that failed.")
