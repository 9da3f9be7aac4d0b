"""Cases as an evaluator gives them to its handlers: what went in, and what came out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import MetaTensor

# the file runs downwards in steps of 5 mm, to the left and to the back; the network's volume to the back, left and up
FILE_AFFINE = torch.tensor([[0.0, -1, 0, 9], [0, 0, -1, 8], [-5, 0, 0, 20], [0, 0, 0, 1]])
AFFINE = torch.tensor([[0.0, -1, 0, 9], [-1, 0, 0, 8], [0, 0, 5, 5], [0, 0, 0, 1]])


def case(name: str, label: int, score: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes into an evaluator for a case, and what comes out of it."""
    # abnormal images are brighter, and no more varied
    stored = {"filename_or_obj": f"images/{name}.nii.gz", "original_affine": FILE_AFFINE, "spatial_shape": (4, 4, 2)}
    image = MetaTensor(torch.full((1, 2, 4, 4), 0.5 + label), affine=AFFINE, meta=stored)
    source = {"case": name, "image": image, "label": label}
    # the first slice was skipped, and the second plane does not count
    slice_scores = {"axial": torch.tensor([torch.nan, 0.0, score, -1.0]), "coronal": torch.tensor([9.0, 0.0])}
    scores = {
        "anomaly_score": score,
        "map_score": score - 1,
        "global_term": 0.5 if name == "a" else torch.nan,
        "case_threshold": 1.0,
        "prediction": int(score > 1),
        "p_value": torch.nan if name == "c" else 0.25,
        "n_held_out": 3,
        "slice_scores": slice_scores,
    }
    if name == "a":
        scores["ease"] = {"axial": torch.tensor([torch.nan, 1.0, 2.5, 3.0])}
    return source, {**source, **scores}


CASES = [case("a", 0, 0.1 + 0.2), case("b", 1, 2.5), case("c", 0, -0.5), case("d", 1, 1.5)]


def evaluate(*handlers: Any, cases: Sequence[tuple[Any, Any]] = CASES, batch_size: int = 1) -> None:
    """An evaluator that gives the cases, decollated as MONAI's does."""

    def step(engine: Engine, batch: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
        engine.state.batch = [source for source, _ in batch]
        return [scored for _, scored in batch]

    engine = Engine(step)
    for handler in handlers:
        handler.attach(engine)
    engine.run([cases[i : i + batch_size] for i in range(0, len(cases), batch_size)], max_epochs=1)
