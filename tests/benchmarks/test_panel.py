"""The panel's table, its development halves and the kNN beside the other methods."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aeflow_monai import Encoder


@pytest.fixture
def modules(imported: Callable[[str], ModuleType]) -> dict[str, ModuleType]:
    return {name: imported(name) for name in ("panel", "protocols", "peers", "shared")}


def test_table_has_means_ranks_and_worst_gaps(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    written = {
        "head_ct": {"a": {"auroc": 0.9}, "b": {"auroc": 0.8}, "intensity": {"auroc": 0.99, "trivial": True}},
        "phantom": {"a": {"auroc": 0.5, "slice AUROC": 0.6}, "b": {"auroc": 0.7, "slice AUROC": 0.6}},
    }
    found: dict[str, dict[str, float]] = {}
    for name, methods in written.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"methods": methods}), encoding="utf-8")
        found |= modules["panel"].columns(name, tmp_path)
    assert modules["panel"].columns("fundus", tmp_path) == {}
    assert modules["shared"].table_of_sets(found).splitlines() == [
        "| method | head_ct | phantom, cases | phantom, slices | mean | mean rank | worst gap |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| b | 0.800 | 0.700 | 0.600 | 0.700 | 1.3 | -0.100 |",
        "| a | 0.900 | 0.500 | 0.600 | 0.667 | 1.3 | -0.200 |",
    ]


def test_development_half_has_half_of_the_patients_with_all_of_their_images(modules: dict[str, ModuleType]) -> None:
    row = modules["protocols"].Row
    rows = [row(Path(f"{i}.png"), i % 3 == 0, None, str(i), str(i // 2)) for i in range(40)]
    half = modules["protocols"].development_half(rows)
    assert len(half) == 20
    assert len({one.patient for one in half}) == 10
    assert half == modules["protocols"].development_half(rows[::-1])[::-1]


def test_nearest_normals_are_far_from_what_none_of_them_is_like(modules: dict[str, ModuleType]) -> None:
    generator = torch.Generator().manual_seed(0)
    normals = 0.2 * torch.rand(12, 1, 64, 64, generator=generator)
    encoder = Encoder(stages=(2, 3), weights="random")
    dataset = [{"image": image, "features": [f[0] for f in encoder(image[None])]} for image in normals]
    peer = modules["peers"].PooledNeighbours(encoder, (64, 64), 1)
    peer.fit(dataset)
    scores, maps = peer.eval()(torch.cat([normals[:4], torch.rand(4, 1, 64, 64, generator=generator)]))
    assert scores[:4].max() < scores[4:].min()
    assert torch.equal(maps[:, 0, 0, 0], scores)
