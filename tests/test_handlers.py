import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeflow_monai.engine.training import CalibratedModelSaver, DivergenceGuard, PictureLogger, RequireCalibration
from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.score.scoring import AnomalyScorer

STATISTICS = ("term_mean", "term_std", "map_std", "share_mean", "share_std")
BUFFERS = (*STATISTICS, "map_threshold", "slice_threshold", "case_threshold")


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


def test_a_wrong_specificity_is_told_before_the_training(tmp_path: Path, scorer: AnomalyScorer) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\), as 0\.95; got 95"):
        CalibratedModelSaver(scorer, normals(), tmp_path / "model.pt", specificity=95)


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


# --- a model that was not calibrated ----------------------------------------------------------------------------------


def test_a_network_that_is_not_calibrated_is_refused(scorer: AnomalyScorer) -> None:
    engine = Engine(lambda engine, batch: None)
    uncalibrated = AnomalyScorer(scorer.aeflow)
    RequireCalibration(uncalibrated).attach(engine)
    with pytest.raises(ValueError, match=r"not calibrated.*--resume"):
        engine.run([0])
    uncalibrated.case_threshold.fill_(1.0)
    engine.run([0])
