"""Inference of a detector by a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from aeflow_monai.engine.inference.detector import Detector
from aeflow_monai.engine.inference.runtimes import Runtime, chosen_runtime, make_runtime, require_runtime
from aeflow_monai.engine.inference.scoring_pass import MAPS_OF_PASS, ScoringPass, maps_of_pass
from aeflow_monai.geometry import Places
from aeflow_monai.score.stack import SliceStack, foreground_of

__all__ = ["FastInference", "Runtimes"]

_SUMS = ("weighted_sum", "dissimilarity", "pooled")


class FastInference:
    """Run `Detector.infer` by a runtime, with the detector's weights at the time of the first call.

    Args:
        detector: a trained detector in evaluation mode.
        runtime: one of `aeflow_monai.engine.inference.runtimes.RUNTIMES`.
        maps: which of `MAPS_OF_PASS` to compute.
        image_size: see `ScoringPass`.

    Raises:
        ValueError: see `chosen_runtime`, or an unknown map.
        ModuleNotFoundError: see `chosen_runtime`.

    Example:
        >>> from aeflow_monai.network import AEFlow, Encoder
        >>> from aeflow_monai.score import Score
        >>> detector = Detector(AEFlow(Encoder(), n_steps=2), Score(n_terms=3)).eval()
        >>> image = torch.rand(2, 1, 64, 64)
        >>> stack, maps = FastInference(detector, "torch", maps=["residual"]).infer(image)
        >>> torch.allclose(stack.weighted_sum, detector.infer(image)[0].weighted_sum, atol=1e-4), [*maps]
        (True, ['residual'])
    """

    def __init__(
        self,
        detector: Detector,
        runtime: str = "auto",
        maps: Sequence[str] = MAPS_OF_PASS,
        image_size: Sequence[int] | None = None,
    ) -> None:
        self.names = maps_of_pass(maps)
        self.runtime: Runtime = make_runtime(
            chosen_runtime(runtime, detector.device),
            partial(ScoringPass, detector, maps, image_size),
            [*_SUMS, *self.names],
            torch.get_num_threads(),
            falls_back=runtime == "auto",
            made_of=(detector, image_size),
        )

    def infer(self, image: Tensor, places: Places | None = None) -> tuple[SliceStack, dict[str, Tensor]]:
        """See `Detector.infer`; only the chosen maps are returned."""
        weighted_sum, dissimilarity, pooled, *maps = self.runtime(image)
        stack = SliceStack(weighted_sum, dissimilarity, foreground_of(image), places, pooled)
        return stack, dict(zip(self.names, maps, strict=True))


class Runtimes:
    """Inference of a detector by a runtime, created on first use and again after a change of the detector.

    Only that of the last detector is kept, since it holds a reference to the detector.

    Args:
        runtime: one of `aeflow_monai.engine.inference.runtimes.RUNTIMES`.
        maps: which of `MAPS_OF_PASS` to compute.
        image_size: see `ScoringPass`.

    Raises:
        ValueError: an unknown runtime.
        ModuleNotFoundError: the runtime is not installed.
    """

    def __init__(self, runtime: str, maps: Sequence[str], image_size: Sequence[int] | None = None) -> None:
        require_runtime(runtime)
        self.image_size = image_size
        self.runtime = runtime
        self.maps = maps
        self.made: tuple[Detector, object, FastInference] | None = None
        self.lock = Lock()

    @property
    def used(self) -> str | None:
        """Return the runtime in use, which differs from the requested one after a fallback; None before first use."""
        return None if self.made is None else self.made[2].runtime.name

    def of(self, detector: Detector) -> FastInference:
        """Return the inference of a detector with its current weights."""
        tensors = [*detector.parameters(), *detector.buffers()]
        # torch increments a tensor's version whenever it is written to
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        with self.lock:
            if self.made is None or self.made[0] is not detector or self.made[1] != state:
                self.made = detector, state, FastInference(detector, self.runtime, self.maps, self.image_size)
            return self.made[2]
