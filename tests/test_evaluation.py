import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from aeflow_monai import (
    AEFlow,
    AnomalyScorer,
    DetectionReport,
    Encoder,
    ScoreWriter,
)


@pytest.fixture
def scorer() -> AnomalyScorer:
    torch.manual_seed(0)
    return AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1, hidden_channels=4))


# --- scores -----------------------------------------------------------------------------------------------------------


def case(name: str, label: int, score: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes into an evaluator for a case, and what comes out of it."""
    image = MetaTensor(torch.zeros(1, 4, 4, 3), meta={"filename_or_obj": f"images/{name}.nii.gz"})
    source = {"case": name, "image": image, "label": label}
    statistics = {"intensity_mean": 1.0 + label, "intensity_std": 2.0, "intensity_p95": 3.0 - label}
    # the first slice was skipped, and the second plane does not count
    slice_scores = {"axial": torch.tensor([torch.nan, 0.0, score, -1.0]), "coronal": torch.tensor([9.0, 0.0])}
    scores = {"anomaly_score": score, "prediction": int(score > 1), "slice_scores": slice_scores}
    return source, {**source, **scores, **statistics}


CASES = [case("a", 0, 0.1 + 0.2), case("b", 1, 2.5), case("c", 0, -0.5), case("d", 1, 1.5)]


def evaluate(*handlers: Any, batch_size: int = 1) -> None:
    """An evaluator that gives the cases, decollated as MONAI's does."""

    def step(engine: Engine, batch: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
        engine.state.batch = [source for source, _ in batch]
        return [scored for _, scored in batch]

    engine = Engine(step)
    for handler in handlers:
        handler.attach(engine)
    engine.run([CASES[i : i + batch_size] for i in range(0, len(CASES), batch_size)], max_epochs=1)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_line_for_each_case(tmp_path: Path, batch_size: int) -> None:
    evaluate(ScoreWriter(tmp_path / "scores.csv", labelled=True), batch_size=batch_size)
    written = rows(tmp_path / "scores.csv")
    assert list(written[0]) == ["case", "file", "label", "score", "prediction", "most_anomalous_slice"]
    assert [(row["case"], row["label"], row["prediction"]) for row in written] == [
        ("a", "0", "0"),
        ("b", "1", "1"),
        ("c", "0", "0"),
        ("d", "1", "1"),
    ]
    assert [float(row["score"]) for row in written] == [0.1 + 0.2, 2.5, -0.5, 1.5]
    assert [row["most_anomalous_slice"] for row in written] == ["3", "3", "2", "3"]
    assert written[0]["file"] == "images/a.nii.gz"


def test_no_label_is_written_where_none_is_known(tmp_path: Path) -> None:
    evaluate(ScoreWriter(tmp_path / "scores.csv"))
    assert "label" not in rows(tmp_path / "scores.csv")[0]


def test_a_second_run_replaces_the_table(tmp_path: Path) -> None:
    for _ in range(2):
        evaluate(ScoreWriter(tmp_path / "scores.csv"))
    assert len(rows(tmp_path / "scores.csv")) == len(CASES)


def test_cases_before_a_failure_are_in_the_table(tmp_path: Path) -> None:
    class Failing:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=3), self)

        def __call__(self, engine: Engine) -> None:
            raise OSError("the third file is broken")

    with pytest.raises(OSError, match="third"):
        evaluate(ScoreWriter(tmp_path / "scores.csv"), Failing())
    assert [row["case"] for row in rows(tmp_path / "scores.csv")] == ["a", "b"]


def test_the_report_is_written_and_printed(
    tmp_path: Path, scorer: AnomalyScorer, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer.case_threshold.fill_(2.0)
    report = DetectionReport(tmp_path / "out/metrics.json", scorer, n_bootstrap=20, seed=3)
    evaluate(report, batch_size=2)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["n_normal"], metrics["n_abnormal"], metrics["bootstrap_seed"], metrics["n_bootstrap"]) == (
        2,
        2,
        3,
        20,
    )
    assert (metrics["auroc"], metrics["threshold"]) == (1.0, 2.0)
    assert (metrics["sensitivity"], metrics["specificity"], metrics["oracle_best_f1"]) == (0.5, 1.0, 1.0)
    assert metrics["baselines"] == {"intensity_mean": 1.0, "intensity_std": 0.5, "intensity_p95": 1.0}
    printed = capsys.readouterr().out
    assert "4 (2 normal, 2 abnormal)" in printed
    assert "oracle" in printed


def test_a_second_run_reports_its_own_cases_only(tmp_path: Path, scorer: AnomalyScorer) -> None:
    scorer.case_threshold.fill_(2.0)
    report = DetectionReport(tmp_path / "metrics.json", scorer, n_bootstrap=20)
    for _ in range(2):
        evaluate(report)
        assert json.loads((tmp_path / "metrics.json").read_text())["n"] == len(CASES)
