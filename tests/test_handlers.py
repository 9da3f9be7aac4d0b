import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeflow_monai import (
    AEFlow,
    AnomalyScorer,
    CalibratedModelSaver,
    DetectionReport,
    DivergenceGuard,
    Encoder,
    PictureLogger,
    RequireCalibration,
    ScoreWriter,
)

BUFFERS = ("term_mean", "term_std", "map_std", "map_threshold", "slice_threshold", "case_threshold")


@pytest.fixture
def scorer() -> AnomalyScorer:
    torch.manual_seed(0)
    return AnomalyScorer(AEFlow(Encoder(weights="random"), n_steps=1, hidden_channels=4))


def normals(n_cases: int = 4) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.rand(2, 1, 32, 32, generator=generator), "case": [f"{i}"] * 2} for i in range(n_cases)]


def trainer_of(losses: list[float]) -> Engine:
    """A trainer which gives these losses, one per iteration."""
    return Engine(lambda engine, loss: {"loss": torch.tensor(loss, requires_grad=True)})


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_model_is_calibrated_and_saved_when_training_is_completed(tmp_path: Path, scorer: AnomalyScorer) -> None:
    engine = trainer_of([1.0])
    CalibratedModelSaver(scorer, normals(), tmp_path / "deep/model.pt", specificity=0.5).attach(engine)
    saved_in: list[bool] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: saved_in.append((tmp_path / "deep").exists()))
    engine.run([1.0], max_epochs=3)
    assert saved_in == [False, False, False]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["model.pt"]

    state = torch.load(tmp_path / "deep/model.pt", weights_only=True)["model"]
    torch.manual_seed(1)
    other = AnomalyScorer(AEFlow(Encoder(weights="checkpoint"), n_steps=1, hidden_channels=4))
    other.load_state_dict(state)
    assert all(math.isfinite(float(state[name].sum())) for name in BUFFERS)
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(other.eval()(image), scorer.eval()(image))


def test_a_training_that_fails_leaves_the_earlier_model(tmp_path: Path, scorer: AnomalyScorer) -> None:
    (tmp_path / "model.pt").write_bytes(b"earlier")
    engine = trainer_of([1.0])
    DivergenceGuard().attach(engine)
    CalibratedModelSaver(scorer, normals(), tmp_path / "model.pt").attach(engine)
    with pytest.raises(ValueError, match="diverged"):
        engine.run([1.0, math.nan], max_epochs=1)
    assert (tmp_path / "model.pt").read_bytes() == b"earlier"


def test_a_network_that_cannot_be_calibrated_leaves_the_earlier_model(tmp_path: Path, scorer: AnomalyScorer) -> None:
    (tmp_path / "model.pt").write_bytes(b"earlier")
    with torch.no_grad():
        next(scorer.aeflow.decoder.parameters()).fill_(math.nan)
    engine = trainer_of([1.0])
    CalibratedModelSaver(scorer, normals(), tmp_path / "model.pt").attach(engine)
    with pytest.raises(ValueError, match="not finite"):
        engine.run([1.0], max_epochs=1)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.pt", b"earlier")]


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_training_ends_at_the_first_loss_that_is_not_finite(wrong: float) -> None:
    losses = [1.0, -2.0, wrong, 1.0]
    engine = trainer_of(losses)
    DivergenceGuard().attach(engine)
    with pytest.raises(ValueError, match=r"in epoch 1, iteration 3: the training diverged\. Lower learning_rate"):
        engine.run(losses, max_epochs=2)
    assert engine.state.iteration == 3


def test_finite_losses_pass_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    engine = trainer_of([1.0])
    DivergenceGuard().attach(engine)
    engine.run([1.0, -1e30, 0.0], max_epochs=1)
    assert not recwarn.list


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(folder: Path) -> dict[str, list[Any]]:
    accumulator = EventAccumulator(str(folder), {"images": 0})
    accumulator.Reload()
    return {tag: accumulator.Images(tag) for tag in accumulator.Tags()["images"]}


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_pictures_of_every_nth_epoch_and_of_the_last(
    tmp_path: Path, scorer: AnomalyScorer, every: int, steps: list[int]
) -> None:
    slices = [{"image": torch.rand(1, 32, 48)} for _ in range(5)]
    engine = trainer_of([1.0])
    PictureLogger(scorer, slices, tmp_path, n_rows=3, every=every).attach(engine)
    engine.run([1.0], max_epochs=5)
    (written,) = pictures(tmp_path).values()
    assert [picture.step for picture in written] == steps
    assert {(picture.height, picture.width) for picture in written} == {(3 * 32, 3 * 48)}


def test_fewer_slices_than_rows_are_shown_once(tmp_path: Path, scorer: AnomalyScorer) -> None:
    engine = trainer_of([1.0])
    PictureLogger(scorer, [{"image": torch.rand(1, 32, 32)}], tmp_path, n_rows=4).attach(engine)
    engine.run([1.0], max_epochs=1)
    (written,) = pictures(tmp_path).values()
    assert (written[0].height, written[0].width) == (32, 96)


@pytest.mark.parametrize("training", [True, False])
def test_pictures_change_nothing_of_the_network(tmp_path: Path, scorer: AnomalyScorer, training: bool) -> None:
    scorer.train(training)
    before = {key: value.clone() for key, value in scorer.state_dict().items()}
    modes = [module.training for module in scorer.modules()]
    random = torch.get_rng_state()
    engine = trainer_of([1.0])
    PictureLogger(scorer, [{"image": torch.zeros(1, 32, 32)}], tmp_path).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.set_rng_state(random))
    engine.run([1.0], max_epochs=1)
    assert [module.training for module in scorer.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in scorer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


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


def test_a_network_that_is_not_calibrated_is_refused(scorer: AnomalyScorer) -> None:
    engine = Engine(lambda engine, batch: None)
    uncalibrated = AnomalyScorer(scorer.aeflow)
    RequireCalibration(uncalibrated).attach(engine)
    with pytest.raises(ValueError, match=r"not calibrated.*--resume"):
        engine.run([0])
    uncalibrated.case_threshold.fill_(1.0)
    engine.run([0])
