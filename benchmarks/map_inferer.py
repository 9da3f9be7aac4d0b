"""Use other methods, which return maps and scores of slices, in place of the bundle's detector."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from aeflow_monai import Score, Slicer
from aeflow_monai.engine import GuardedEvaluator
from aeflow_monai.score.thresholds import set_thresholds

_OF_THE_DETECTOR = ("CheckpointLoader", "CardWriter", "@report", "@record")


class Answer(NamedTuple):
    """Scores (n,) and anomaly maps (n, 1, H, W) of slices; larger is more anomalous, in the method's own unit."""

    scores: Tensor
    maps: Tensor


class MapMethod(nn.Module, ABC):
    """A method that returns maps and scores of slices.

    Args:
        score: combines the scores of slices to that of a case, and holds the thresholds.
    """

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    @abstractmethod
    def infer(self, stack: Tensor, chosen: Tensor) -> Answer:
        """Score the chosen slices (n,) of a volume's axial slices (Z, C, H, W)."""

    def fit_thresholds(self, normals: Iterable[tuple[str, Answer]], specificity: float) -> None:
        """Fit the thresholds as a calibration does.

        Args:
            normals: patient and answer of each held-out volume or image.
            specificity: target of the thresholds.
        """
        patients: list[str] = []
        cases: list[float] = []
        slices: list[float] = []
        peaks: list[float] = []
        for patient, (scores, maps) in normals:
            patients.append(patient)
            cases.append(float(self.score.case_score({"axial": scores})))
            slices += scores.tolist()
            peaks += maps.flatten(1).amax(dim=1).tolist()
        set_thresholds(self.score, cases, slices, peaks, patients, specificity)


def axial_stack(slicer: Slicer, volume: Tensor) -> tuple[Tensor, Tensor]:
    """Return all axial slices of a volume (C, X, Y, Z) for a network, (Z, C, H, W), and the indices to process."""
    if "axial" not in slicer.axes_of(volume):
        raise ValueError(f"Other methods are compared on axial slices; got axes {slicer.axes_of(volume)}.")
    volume = volume.as_subclass(Tensor)
    return slicer.slices(volume, "axial", torch.arange(volume.shape[-1])).contiguous(), slicer.chosen(volume, "axial")


class MapInferer(Inferer):
    """Replacement for the bundle's `SlicedInferer`, with the same outputs for a `MapMethod`.

    Args:
        slicer: the slicing policy, along axial slices.
    """

    def __init__(self, slicer: Slicer) -> None:
        super().__init__()
        self.slicer = slicer

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: MapMethod, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the map of one volume (1, C, X, Y, Z), 0 in skipped slices, its scores and the thresholds."""
        found = self.stacks(inputs, network)
        maps, chosen = found.pop("stacks")["anomaly_map"]["axial"][0], found.pop("indices")["axial"][0]
        anomaly_map = torch.zeros(1, *inputs.shape[2:])
        self.slicer.paste(maps, anomaly_map, "axial", chosen)
        return {"anomaly_map": convert_to_dst_type(anomaly_map[None], inputs)[0], **found}

    @torch.no_grad()
    def stacks(self, inputs: Tensor, network: MapMethod, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the same with the map as slices, see `SlicedInferer.stacks`."""
        volume = inputs[0]
        stack, chosen = axial_stack(self.slicer, volume)
        scores, maps = network.infer(stack, chosen)
        of_slices = torch.full((1, volume.shape[-1]), math.nan)
        of_slices[0, chosen] = scores
        return {
            "stacks": {"anomaly_map": {"axial": maps[None]}},
            "indices": {"axial": chosen[None]},
            "slice_scores_axial": of_slices,
            **{name: torch.tensor([value]) for name, value in network.score.verdict({"axial": scores}).items()},
        }


def _name(part: Any) -> str:
    """Return the class of a component, or a reference."""
    return part if isinstance(part, str) else part["_target_"].rpartition(".")[2]


def evaluator_of(config: ConfigParser, method: MapMethod) -> GuardedEvaluator:
    """Return the evaluator of a bundle's config, with a method in place of its detector."""
    # drop handlers that load the detector, complete its card, and report and record its run
    config["handlers"] = [part for part in config["handlers"] if _name(part) not in _OF_THE_DETECTOR]
    steps = config["postprocessing#transforms"]
    config["postprocessing#transforms"] = [part for part in steps if _name(part) != "ReportPicturesd"]
    inferer = MapInferer(config.get_parsed_content("slicer"))
    config.update({"network": method.eval(), "inferer": inferer})
    evaluator: GuardedEvaluator = config.get_parsed_content("evaluator")
    return evaluator
