import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from outputs import BUNDLE, files_below, unequal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeflow_monai import AEFlow, Detector, Encoder, Model, Score, Workflow, config_files
from aeflow_monai.data import prepare_slice_batch
from aeflow_monai.engine.config.workflow import GivenConfig
from aeflow_monai.engine.training.bundle_writer import BundleWriter
from aeflow_monai.engine.training.checkpoints import Checkpoints
from aeflow_monai.engine.training.divergence_guard import DivergenceGuard
from aeflow_monai.engine.training.picture_logger import PictureLogger

STATISTICS = ("term_mean", "term_std", "map_std", "fraction_mean", "fraction_std")
BUFFERS = (*STATISTICS, "map_threshold", "slice_threshold", "case_threshold")
SPLIT = (
    [{"case": name, "label": 0, "image": f"{name}.nii.gz"} for name in ("t0", "t1")],
    [{"case": f"{i}", "label": 0, "image": f"{i}.nii.gz"} for i in range(4)],
)


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    network = AEFlow(Encoder(weights="random"), n_steps=1, hidden_channels=4, feature_norm="image")
    return Detector(network, Score(n_terms=3))


@pytest.fixture
def given() -> GivenConfig:
    """The config of a training of such a detector."""
    options = {"encoder_weights": "random", "network_def#network#n_steps": 1, "network_def#network#hidden_channels": 4}
    given: GivenConfig = Workflow(config_files("train"), logging_file=False, **options).parser["given"]
    return given


def normals(n_cases: int = 4) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.rand(2, 1, 32, 32, generator=generator), "case": [f"{i}"] * 2} for i in range(n_cases)]


def trainer_of(losses: list[float]) -> Engine:
    """A trainer which gives these losses, one per iteration."""
    return Engine(lambda engine, loss: {"loss": torch.tensor(loss, requires_grad=True)})


# --- the bundle -------------------------------------------------------------------------------------------------------


def test_the_bundle_is_begun_with_the_training_and_written_when_it_is_completed(
    tmp_path: Path, detector: Detector, given: GivenConfig
) -> None:
    run = tmp_path / "deep/RUN"
    engine = trainer_of([1.0])
    BundleWriter(run, detector, normals(), [], SPLIT, given, seed=5, specificity=0.5).attach(engine)
    written: list[set[str]] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: written.append(files_below(run)))
    engine.run([1.0], max_epochs=3)
    begun = {"configs/train.yaml", "configs/logging.conf", "LICENSE", "logs/run.json"}
    assert written == [begun] * 3
    assert files_below(run) == BUNDLE | begun

    record = json.loads((run / "logs/run.json").read_text())
    assert (record["seed"], record["specificity"], [each["command"] for each in record["commands"]]) == (5, 0.5, [""])
    assert (record["data"]["trained on: cases"], record["data"]["held out: patients"]) == (2, 4)
    assert "Requested specificity: 50%. The case threshold is set on 4" in (run / "docs/README.md").read_text()

    state = torch.load(run / "models/model.pt", weights_only=True)["model"]
    assert all(math.isfinite(float(state[f"score.{name}"].sum())) for name in BUFFERS)
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(Model(run).detector(image), detector.eval()(image))


def test_a_wrong_specificity_is_told_before_the_training(
    tmp_path: Path, detector: Detector, given: GivenConfig
) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\), as 0\.95; got 95"):
        BundleWriter(tmp_path, detector, normals(), [], SPLIT, given, specificity=95)


@pytest.mark.parametrize("reason", ["diverged", "not finite"])
def test_a_training_that_fails_leaves_the_earlier_bundle(
    tmp_path: Path, trained: Path, detector: Detector, given: GivenConfig, reason: str
) -> None:
    kept = BUNDLE - {"configs/train.yaml", "configs/logging.conf", "LICENSE"}
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    engine = trainer_of([1.0])
    DivergenceGuard().attach(engine)
    BundleWriter(tmp_path, detector, normals(), [], SPLIT, given).attach(engine)
    if reason == "not finite":  # the training ends well, and the network cannot be calibrated
        with torch.no_grad():
            next(detector.network.decoder.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match=reason):
        engine.run([1.0, math.nan] if reason == "diverged" else [1.0], max_epochs=1)
    assert files_below(tmp_path) == kept | {"configs/train.yaml", "configs/logging.conf", "LICENSE", "logs/run.json"}
    assert unequal(tmp_path, trained, kept) == []


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept_and_gone_on_from(tmp_path: Path, given: GivenConfig) -> None:
    def run(resume: Path | None, epochs: int) -> tuple[list[int], torch.nn.Linear]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(1, 1)
        seen: list[int] = []

        def step(engine: Engine, batch: float) -> None:
            seen.append(engine.state.epoch)
            with torch.no_grad():
                layer.weight += batch

        engine = Engine(step)
        Checkpoints(tmp_path, {"model": layer}, given, SPLIT, resume).attach(engine)
        engine.run([1.0, 2.0], max_epochs=epochs)
        return seen, layer

    _, layer = run(None, 3)
    assert files_below(tmp_path) == {"checkpoint_epoch=2.pt", "checkpoint_epoch=3.pt"}
    seen, resumed = run(tmp_path / "checkpoint_epoch=2.pt", 3)
    assert seen == [3, 3]
    assert torch.equal(resumed.weight, layer.weight)
    with pytest.raises(ValueError, match=r"is of a training of 3 epochs, where this version of aeflow_monai counts 2"):
        run(tmp_path / "checkpoint_epoch=2.pt", 2)


def test_a_missing_checkpoint_is_told_before_the_training(tmp_path: Path, given: GivenConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pt\. Give one of an interrupted training"):
        Checkpoints(tmp_path, {}, given, SPLIT, tmp_path / "absent.pt")


def test_a_training_goes_on_with_its_own_options_and_images_only(tmp_path: Path, given: GivenConfig) -> None:
    engine = trainer_of([1.0])
    Checkpoints(tmp_path, {"model": torch.nn.Linear(1, 1)}, given, SPLIT).attach(engine)
    engine.run([1.0], max_epochs=1)
    checkpoint = tmp_path / "checkpoint_epoch=1.pt"
    Checkpoints(tmp_path, {}, given, SPLIT, checkpoint)
    seed = given.content["seed"]
    other = given._replace(content={**given.content, "seed": seed + 1})
    with pytest.raises(ValueError, match=rf"these differ: seed \(trained with {seed}, given {seed + 1}\)\."):
        Checkpoints(tmp_path, {}, other, SPLIT, checkpoint)
    with pytest.raises(ValueError, match="goes on with the images that it began with"):
        Checkpoints(tmp_path, {}, given, SPLIT[::-1], checkpoint)
    checkpoint.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"Expected a checkpoint of an interrupted training in .* got something else"):
        Checkpoints(tmp_path, {}, given, SPLIT, checkpoint)


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path, given: GivenConfig) -> None:
    engine = trainer_of([1.0])
    Checkpoints(tmp_path, {"model": torch.nn.Linear(1, 1)}, given, SPLIT).attach(engine)
    engine.run([1.0], max_epochs=2)
    checkpoint = tmp_path / "checkpoint_epoch=1.pt"
    for state in ({"model": torch.nn.Linear(2, 1)}, {"model": torch.nn.Linear(1, 1), "more": torch.nn.Linear(1, 1)}):
        engine = trainer_of([1.0])
        Checkpoints(tmp_path, state, given, SPLIT, checkpoint).attach(engine)
        with pytest.raises(ValueError, match=r"checkpoint_epoch=1\.pt does not fit this training"):
            engine.run([1.0], max_epochs=2)


def test_a_training_goes_on_with_the_same_bytes_only(tmp_path: Path, given: GivenConfig) -> None:
    image = tmp_path / "scan.nii"
    image.write_bytes(b"one")
    split: Any = ([{"case": "scan", "label": 0, "image": str(image)}], [])
    engine = trainer_of([1.0])
    Checkpoints(tmp_path, {"model": torch.nn.Linear(1, 1)}, given, split).attach(engine)
    engine.run([1.0], max_epochs=1)
    checkpoint = tmp_path / "checkpoint_epoch=1.pt"
    Checkpoints(tmp_path, {}, given, split, checkpoint)
    image.write_bytes(b"two")
    with pytest.raises(ValueError, match="or the images themselves in --dataset_dir are others"):
        Checkpoints(tmp_path, {}, given, split, checkpoint)


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


def guarded_training(
    network: torch.nn.Module, image: torch.Tensor, held_out: torch.Tensor, learning_rate: float
) -> tuple[SupervisedTrainer, DivergenceGuard]:
    """A training that learns to give its image, of one number, back, and what guards it."""
    loss = torch.nn.MSELoss()
    validator = SupervisedEvaluator(
        device="cpu",
        prepare_batch=prepare_slice_batch,
        val_data_loader=[{"image": held_out}],
        network=network,
        key_val_metric={"val_loss": Average(lambda output: loss(output["pred"], output["image"]))},
        decollate=False,
    )
    guard = DivergenceGuard(validator)
    trainer = SupervisedTrainer(
        device="cpu",
        prepare_batch=prepare_slice_batch,
        max_epochs=3,
        train_data_loader=[{"image": image}],
        network=network,
        loss_function=loss,
        optimizer=torch.optim.SGD(network.parameters(), lr=abs(learning_rate), maximize=learning_rate < 0),
        train_handlers=[ValidationHandler(1, validator), guard],
        decollate=False,
    )
    return trainer, guard


@pytest.mark.parametrize("learning_rate", [0.1, -0.1, math.inf])
def test_a_training_that_ends_worse_than_it_began_has_diverged(learning_rate: float) -> None:
    torch.manual_seed(0)
    network, ones = torch.nn.Linear(1, 1), torch.ones(2, 1)
    trainer, guard = guarded_training(network, ones, ones, learning_rate)
    before = float((network(ones) - ones).square().mean().detach())
    if learning_rate == 0.1:
        trainer.run()
    else:
        with pytest.raises(ValueError, match=r"diverged"):
            trainer.run()
    assert guard.before == pytest.approx(before)
    kept = DivergenceGuard()
    kept.load_state_dict(guard.state_dict())
    assert kept.before == guard.before


def test_a_training_that_fits_its_own_images_alone_needs_more_of_them() -> None:
    network = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.constant_(network.bias, -0.5)
    trainer, _ = guarded_training(network, torch.ones(2, 1), torch.full((2, 1), -10.0), 0.1)
    with pytest.raises(
        ValueError, match=r"rose from 0\.25, .* while that of the training fell to 0\.\d+\. Give more normal"
    ):
        trainer.run()


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(folder: Path) -> dict[str, list[Any]]:
    accumulator = EventAccumulator(str(folder), {"images": 0})
    accumulator.Reload()
    return {tag: accumulator.Images(tag) for tag in accumulator.Tags()["images"]}


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_pictures_of_every_nth_epoch_and_of_the_last(
    tmp_path: Path, detector: Detector, every: int, steps: list[int]
) -> None:
    slices = [{"image": torch.rand(1, 32, 48)} for _ in range(5)]
    engine = trainer_of([1.0])
    PictureLogger(detector, slices, tmp_path, n_rows=3, every=every).attach(engine)
    engine.run([1.0], max_epochs=5)
    (written,) = pictures(tmp_path).values()
    assert [picture.step for picture in written] == steps
    assert {(picture.height, picture.width) for picture in written} == {(3 * 32, 3 * 48)}


def test_fewer_slices_than_rows_are_shown_once(tmp_path: Path, detector: Detector) -> None:
    engine = trainer_of([1.0])
    PictureLogger(detector, [{"image": torch.rand(1, 32, 32)}], tmp_path, n_rows=4).attach(engine)
    engine.run([1.0], max_epochs=1)
    (written,) = pictures(tmp_path).values()
    assert (written[0].height, written[0].width) == (32, 96)


@pytest.mark.parametrize("training", [True, False])
def test_pictures_change_nothing_of_the_network(tmp_path: Path, detector: Detector, training: bool) -> None:
    detector.train(training)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    modes = [module.training for module in detector.modules()]
    random = torch.get_rng_state()
    engine = trainer_of([1.0])
    PictureLogger(detector, [{"image": torch.zeros(1, 32, 32)}], tmp_path).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.set_rng_state(random))
    engine.run([1.0], max_epochs=1)
    assert [module.training for module in detector.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
