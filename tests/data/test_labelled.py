from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from aeflow_monai.data.labelled import LabelledSampler, LabelledSlices


def slices(n_normal: int = 24, n_abnormal: int = 3) -> LabelledSlices:
    image = torch.zeros(2, 4, 6)
    normal, abnormal = (
        [{"number": first + i, "image": image} for i in range(count)]
        for first, count in ((0, n_normal), (100, n_abnormal))
    )
    return LabelledSlices(normal, abnormal or None)


def order(sampler: LabelledSampler, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return indices


def test_items_say_what_of_them_is_abnormal() -> None:
    dataset = slices(2, 1)
    items = [dataset[index] for index in range(3)]
    assert [item["number"] for item in items] == [0, 1, 100]
    assert [tuple(item["abnormal"].shape) for item in items] == [(1, 4, 6)] * 3
    assert [item["abnormal"].unique().tolist() for item in items] == [[0.0], [0.0], [1.0]]
    with pytest.raises(IndexError, match=r"Index 3 of 3 slices"):
        dataset[3]


def test_a_mask_of_lesions_tells_what_is_abnormal() -> None:
    image, mask = torch.zeros(1, 4, 6), torch.rand(1, 4, 6)
    item = LabelledSlices([{"image": image}], [{"image": image, "lesion": mask}])[1]
    assert torch.equal(item["abnormal"], mask)
    assert "lesion" not in item  # normal slices have none, and items of a batch have to be alike


def test_every_batch_has_its_share_and_every_normal_comes_once() -> None:
    dataset = slices(24, 3)
    sampler = LabelledSampler(dataset, normals_per_abnormal=3)
    batches = list(DataLoader(dataset, batch_size=8, sampler=sampler))  # type: ignore[arg-type]
    assert [int(batch["abnormal"].amax(dim=(1, 2, 3)).sum()) for batch in batches] == [2, 2, 2, 2]
    counts = Counter(order(sampler))
    assert [counts[i] for i in range(24)] == [1] * 24
    assert sum(counts[i] for i in (24, 25, 26)) == 8
    assert all(counts[i] in (2, 3) for i in (24, 25, 26))  # rounds, not draws


def test_without_abnormal_slices_the_order_is_that_of_torch() -> None:
    dataset = slices(23, 0)
    for rank in (0, 1):
        options: dict[str, Any] = {"num_replicas": 2, "rank": rank, "seed": 5}
        plain = DistributedSampler(dataset.normal, shuffle=True, **options)  # type: ignore[arg-type, var-annotated]
        for epoch in (0, 3):
            plain.set_epoch(epoch)
            assert order(LabelledSampler(dataset, **options), epoch) == list(plain)


def test_order_depends_on_seed_and_epoch_only() -> None:
    dataset = slices()
    first = order(LabelledSampler(dataset, seed=1), 2)
    assert order(LabelledSampler(dataset, seed=1), 2) == first
    assert order(LabelledSampler(dataset, seed=1), 3) != first
    assert order(LabelledSampler(dataset, seed=2), 2) != first


def test_processes_share_the_normals_and_the_abnormals() -> None:
    dataset = slices(24, 8)
    shares = [order(LabelledSampler(dataset, 3, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 12 + 4
    assert sorted(shares[0] + shares[1]) == list(range(32))


@pytest.mark.parametrize("n_processes", [2, 3, 5])
def test_the_batches_of_processes_together_are_those_of_one(n_processes: int) -> None:
    dataset = slices(23, 4)  # and 11 drawn abnormal ones
    whole = order(LabelledSampler(dataset, 2), 1)
    for drop_last in (False, True):
        shares = [
            order(LabelledSampler(dataset, 2, n_processes, rank, drop_last=drop_last), 1) for rank in range(n_processes)
        ]
        taken = [index for places in zip(*shares, strict=True) for index in places]
        assert len(taken) == len(whole) // n_processes * n_processes if drop_last else len(taken) >= len(whole)
        assert taken == (whole + whole)[: len(taken)]


def test_a_share_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normals_per_abnormal has to be 1 or more; got 0"):
        LabelledSampler(slices(), normals_per_abnormal=0)


@pytest.mark.parametrize("n_normal", [6, 7, 8, 9])
@pytest.mark.parametrize("every", [1, 2, 3, 20])
def test_an_epoch_never_ends_with_an_abnormal_slice(n_normal: int, every: int) -> None:
    indices = order(LabelledSampler(slices(n_normal, 2), normals_per_abnormal=every))
    assert indices[-1] < n_normal
    assert sum(index >= n_normal for index in indices) == n_normal // every


def test_the_decoder_learns_from_normal_slices_that_are_no_copies() -> None:
    image = {"image": torch.zeros(1, 4, 4)}
    items = LabelledSlices([image] * 3, [image], n_copies=1)
    assert [item["is_target"] for item in items] == [True, True, False, False]
    with pytest.raises(ValueError, match="Of 3 normal slices 3 cannot be copies"):
        LabelledSlices([image] * 3, None, n_copies=3)
