import csv
import errno
import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor, ThreadDataLoader
from monai.transforms import Compose, Lambdad
from torch import Tensor, nn

from aeflow_monai.data.guarded_dataset import GuardedDataset
from aeflow_monai.engine.evaluation.score_writer import ScoreWriter
from aeflow_monai.engine.runs.evaluator import GuardedEvaluator
from aeflow_monai.errors import CaseFailures, FailureLog, root_cause

DATA = [{"case": name, "image": f"{name}.nii.gz"} for name in "abcde"]


def loaded(path: str) -> MetaTensor:
    """Stands for a reader; b is broken, c goes through but d is too small for the network."""
    if path.startswith("b"):
        raise EOFError
    return MetaTensor(torch.full((1, 2 if path.startswith("d") else 4), 1.0), meta={"filename_or_obj": path})


def inferer(image: Tensor, network: nn.Module) -> dict[str, Tensor]:
    if image.shape[-1] < 4:
        raise ValueError(f"Expected 4 values; got {image.shape[-1]}.\nA second line.")
    return {"sum": image.sum(-1)}


def scored(data: Mapping[str, Any]) -> dict[str, Any]:
    if data["case"] == "c":
        raise KeyError("sum")
    verdict = {
        "anomaly_score": 4.0,
        "map_score": 4.0,
        "global_term": torch.nan,
        "case_threshold": 2.0,
        "prediction": 1,
        "p_value": 0.5,
        "n_held_out": 1,
    }
    return {**data, **verdict, "slice_scores": {"axial": torch.ones(2)}}


def evaluator(folder: Path, data: Any = DATA, loader: Any = DataLoader, **options: Any) -> GuardedEvaluator:
    dataset = GuardedDataset(data, Compose([Lambdad("image", loaded)]))
    settings = {
        "failures": FailureLog(folder / "failures.csv"),
        "device": torch.device("cpu"),
        "val_data_loader": loader(dataset, batch_size=1),
        "network": nn.Identity(),
        "inferer": inferer,
        "postprocessing": Compose([scored]),
        "val_handlers": [ScoreWriter(folder / "scores.csv")],
    }
    return GuardedEvaluator(**{**settings, **options})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("loader", [DataLoader, ThreadDataLoader, "workers"])
def test_cases_that_fail_are_left_out_and_listed(tmp_path: Path, loader: Any) -> None:
    if loader == "workers":

        def loader(dataset: Any, batch_size: int) -> DataLoader:
            return DataLoader(dataset, batch_size=batch_size, num_workers=2)

    engine = evaluator(tmp_path, loader=loader)
    assert engine.state.epoch_length == 5
    with pytest.raises(CaseFailures) as raised:
        engine.run()
    assert [row["case"] for row in rows(tmp_path / "scores.csv")] == ["a", "e"]
    assert [tuple(row.values()) for row in rows(tmp_path / "failures.csv")] == [
        ("b", "b.nii.gz", "read", "EOFError"),
        ("c", "c.nii.gz", "score", "KeyError: 'sum'"),
        ("d", "d.nii.gz", "score", "Expected 4 values; got 2. A second line."),
    ]
    assert str(raised.value).startswith("3 of 5 cases failed:\n- b (b.nii.gz, read): EOFError")
    assert "- d (d.nii.gz, score): Expected 4 values; got 2.\n" in str(raised.value)


def test_a_second_run_starts_afresh(tmp_path: Path) -> None:
    engine = evaluator(tmp_path)
    for _ in range(2):
        with pytest.raises(CaseFailures, match=r"^3 of 5 cases failed"):
            engine.run()
        assert len(rows(tmp_path / "failures.csv")) == 3
    evaluator(tmp_path, data=[DATA[0]]).run()
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


def test_handlers_are_done_before_the_error(tmp_path: Path) -> None:
    seen: list[int] = []

    class Last:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(len(engine.state.output)))
            engine.add_event_handler(Events.COMPLETED, lambda: seen.append(-1))

    with pytest.raises(CaseFailures):
        evaluator(tmp_path, val_handlers=[Last()]).run()
    assert seen == [1, 0, 0, 0, 1, -1]


def test_what_is_no_cases_fault_ends_the_run(tmp_path: Path) -> None:
    class Full:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine: Engine) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        evaluator(tmp_path, val_handlers=[Full()]).run()

    def full(data: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RuntimeError) as raised:
        evaluator(tmp_path, data=[DATA[0]], postprocessing=Compose([full])).run()
    assert "No space left" in str(root_cause(raised.value))


def test_a_case_is_gone_before_the_next_is_read(tmp_path: Path) -> None:
    kept: list[weakref.ref[Any]] = []

    class Holder:
        """In a circle of references, as figures and engines are."""

        def __init__(self, volume: Any) -> None:
            self.volume, self.itself = volume, self

    def hold(data: Mapping[str, Any]) -> dict[str, Any]:
        kept.append(weakref.ref(Holder(data["image"])))
        return scored(data)

    alive: list[int] = []

    class Reading(GuardedDataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            alive.append(sum(holder() is not None for holder in kept))
            return super().__getitem__(index)

    loader = DataLoader(Reading([DATA[0], DATA[4]] * 2, Compose([Lambdad("image", loaded)])), batch_size=1)
    gc.disable()  # what is found is not found by chance
    try:
        evaluator(tmp_path, val_data_loader=loader, postprocessing=Compose([hold])).run()
    finally:
        gc.enable()
    assert len(kept) == 4
    assert alive == [0] * 4
    assert gc.get_freeze_count() == 0


def test_a_larger_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch size of 1.*got 2\. Set its batch_size to 1"):
        evaluator(tmp_path, loader=lambda dataset, batch_size: DataLoader(dataset, batch_size=2))


def test_a_misspelt_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="postprocesing"):
        evaluator(tmp_path, postprocesing=None)
