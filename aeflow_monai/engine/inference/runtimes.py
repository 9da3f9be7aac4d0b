"""Runtimes for the network's part of the score: torch, ONNX Runtime and OpenVINO.

They compute only this one pass through the network. Maps, position normalisation, thresholds and scores are always
computed in torch by the score.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aeflow_monai.engine.inference.kept_forms import identity_of, kept_form
from aeflow_monai.engine.inference.onnx_form import onnx_of
from aeflow_monai.printable import first_line

__all__ = [
    "RUNTIMES",
    "Runtime",
    "chosen_runtime",
    "installed_runtimes",
    "make_runtime",
    "require_packages",
    "require_runtime",
]

_logger = logging.getLogger(__name__)

# Packages that each needs in addition to this package's own, the fastest first (benchmarks/runtime_speed.py).
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnx"), "torch": ()}
# Images per call of ONNX Runtime: a tenth faster than 16, whose activations exceed the cache.
_IN_CACHE = 4
RUNTIMES = ("auto", *_PACKAGES)


class Runtime(Protocol):
    """A callable that computes a pass, from images (N, C, H, W) to tensors (N, ...); thread-safe."""

    name: str

    def __call__(self, image: Tensor) -> Sequence[Tensor]:
        """Run the pass on images, all of the same size."""
        ...


def installed_runtimes() -> list[str]:
    """Return the runtimes whose packages are installed, the fastest first.

    Example:
        >>> installed_runtimes()[-1]
        'torch'
    """
    return [name for name in _PACKAGES if not _missing(name)]


def require_runtime(name: str) -> None:
    """Raise an error for an unknown runtime, or one whose packages are not installed.

    Args:
        name: one of `RUNTIMES`.

    Raises:
        ValueError: an unknown runtime.
        ModuleNotFoundError: names the missing packages, and how to install them.

    Example:
        >>> require_runtime("torch")
    """
    if name not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}; got {name!r}.")
    require_packages(f"The runtime {name}", _PACKAGES.get(name, ()))


def require_packages(what: str, packages: Sequence[str]) -> None:
    """Raise an error if packages are not installed.

    Args:
        what: what needs the packages, for the message.
        packages: their import names.

    Raises:
        ModuleNotFoundError: names the missing packages, and how to install them.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        extra = "openvino" if "openvino" in missing else "fast"
        raise ModuleNotFoundError(
            f"{what} needs what is not installed: {', '.join(missing)}. Install it with: pip install "
            f'"aeflow_monai[{extra}]"'
        )


def chosen_runtime(name: str, device: torch.device | str) -> str:
    """Return the runtime to use on a device.

    Args:
        name: one of `RUNTIMES`; "auto" is the fastest one installed.
        device: device of the detector.

    Returns:
        "torch", "onnxruntime" or "openvino"; for "auto" always torch on a device other than a CPU.

    Raises:
        ValueError: an unknown runtime, or one that does not support the device.
        ModuleNotFoundError: see `require_runtime`.
    """
    require_runtime(name)
    on_cpu = torch.device(device).type == "cpu"
    if name == "auto":
        return installed_runtimes()[0] if on_cpu else "torch"
    if name != "torch" and not on_cpu:
        raise ValueError(
            f"The runtime {name} computes on the CPU; the device is {device}. Set device to cpu, or the runtime to "
            "torch or auto."
        )
    return name


def make_runtime(
    name: str,
    make_module: Callable[[], nn.Module],
    outputs: Sequence[str],
    n_threads: int,
    falls_back: bool = False,
    made_of: object = None,
) -> Runtime:
    """Return a runtime for a module.

    Args:
        name: "torch", "onnxruntime" or "openvino".
        make_module: function that makes the module, called at once or when the first image comes. The module maps
            images (N, C, H, W) to a tuple of tensors (N, ...), and is owned by the runtime.
        outputs: names of these tensors.
        n_threads: number of CPU threads for all calls together.
        falls_back: use torch for a network that the runtime does not support; otherwise raise an error.
        made_of: everything that the module is made of, the key of the cache for later runs, see `identity_of`; nothing
            is cached if None.
    """
    if name == "torch":
        return _Torch(make_module())
    make: Callable[[bytes, int], Callable[[Tensor], Sequence[Tensor]]] = (
        _onnxruntime_session if name == "onnxruntime" else _OpenVino
    )
    return _OfSizes(name, make_module, outputs, lambda model: make(model, n_threads), falls_back, made_of)


class _Torch:
    """The module itself, in torch."""

    name = "torch"

    def __init__(self, module: nn.Module) -> None:
        self.device = next(module.buffers()).device
        # channels last takes two thirds of the encoder's time on a CPU (benchmarks/runtime_speed.py)
        on_cpu = self.device.type == "cpu"
        self.module = module.to(memory_format=torch.channels_last) if on_cpu else module

    def __call__(self, image: Tensor) -> Sequence[Tensor]:
        given: Sequence[Tensor] = self.module(image)
        return given


class _OfSizes:
    """A runtime that makes its model when the first image of a size comes."""

    def __init__(
        self,
        name: str,
        make_module: Callable[[], nn.Module],
        outputs: Sequence[str],
        make: Callable[[bytes], Callable[[Tensor], Sequence[Tensor]]],
        falls_back: bool,
        made_of: object,
    ) -> None:
        self.name = name
        self.falls_back = falls_back
        self.make_module = make_module
        self.made_of = made_of
        self.outputs = outputs
        self.make = make
        self.made: dict[tuple[int, ...], Callable[[Tensor], Sequence[Tensor]]] = {}
        self.lock = Lock()

    def __call__(self, image: Tensor) -> Sequence[Tensor]:
        size = tuple(image.shape[1:])
        with self.lock:
            if size not in self.made:
                self.made[size] = self._of_size(size)
        return self.made[size](image)

    def _of_size(self, size: tuple[int, ...]) -> Callable[[Tensor], Sequence[Tensor]]:
        identity = None if self.made_of is None else identity_of((self.made_of, self.outputs, size))
        try:
            return self.make(kept_form(identity, lambda: self._onnx_of_size(size)))
        except Exception as error:  # torch's exporter and the runtimes raise errors of many types
            cannot = f"{self.name} cannot take over this network: {first_line(str(error))}"
            if not self.falls_back:
                raise ValueError(f"{cannot}. Set the runtime to torch.") from error
            _logger.warning(f"{cannot}. Torch computes it.")
            self.name = "torch"
            return self.make_module()

    def _onnx_of_size(self, size: tuple[int, ...]) -> bytes:
        of_any_size = dict.fromkeys(("image", *self.outputs), "batch")
        return onnx_of(self.make_module(), {"image": torch.zeros(2, *size)}, self.outputs, of_any_size)


def _onnxruntime_session(model: bytes, n_threads: int) -> Callable[[Tensor], Sequence[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Sequence[Tensor]:
        parts = [session.run(None, {"image": part.contiguous().numpy()}) for part in torch.split(image, _IN_CACHE)]
        return [torch.cat([torch.from_numpy(part) for part in found]) for found in zip(*parts, strict=True)]

    return run


class _OpenVino:
    """OpenVINO models for batches of 1, 2, 4, ... images: a dynamic batch size is a third slower."""

    def __init__(self, model: bytes, n_threads: int) -> None:
        import openvino

        self.core = openvino.Core()
        self.model = self.core.read_model(model, b"")
        self.options = {
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": min(2, n_threads),  # as many as `side_by_side` uses
            "INFERENCE_PRECISION_HINT": "f32",  # the default is half precision if the processor supports it
        }
        self.compiled: dict[int, Any] = {}
        self.idle: dict[int, deque[Any]] = {}  # a request can compute only one batch at a time
        self.lock = Lock()

    def __call__(self, image: Tensor) -> Sequence[Tensor]:
        parts, first = [], 0
        while first < len(image):
            size = 1 << ((len(image) - first).bit_length() - 1)
            parts.append(self._run(image[first : first + size]))
            first += size
        return [torch.cat(found) if len(found) > 1 else found[0] for found in zip(*parts, strict=True)]

    def _run(self, image: Tensor) -> list[Tensor]:
        size = len(image)
        with self.lock:
            if size not in self.compiled:
                self.model.reshape({0: list(image.shape)})
                self.compiled[size] = self.core.compile_model(self.model, "CPU", self.options)
                self.idle[size] = deque()
            idle = self.idle[size]
            request = idle.pop() if idle else self.compiled[size].create_infer_request()
        found = request.infer({0: image.contiguous().numpy()}, share_inputs=True)
        given = [torch.from_numpy(found[output].copy()) for output in self.compiled[size].outputs]
        idle.append(request)
        return given


def _missing(name: str) -> list[str]:
    return [package for package in _PACKAGES.get(name, ()) if find_spec(package) is None]
