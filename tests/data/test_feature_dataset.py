import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import ForkServer
from monai.data import DataLoader
from torch import nn
from torch.utils.data import Dataset

from aeflow_monai.data.feature_dataset import FeatureDataset, prepare_slice_batch
from aeflow_monai.data.labelled import LabelledSlices
from aeflow_monai.network.aeflow import AEFlow
from aeflow_monai.network.encoder import Encoder

Slices = list[dict[str, Any]]


def slices_of(case: str, n: int) -> Slices:
    generator = torch.Generator().manual_seed(ord(case))
    return [{"image": torch.rand(1, 64, 64, generator=generator), "case": case, "slice": i} for i in range(n)]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def slices() -> Slices:
    return slices_of("a", 3) + slices_of("b", 4)


class TestFeatureDataset:
    def test_memory_and_disk_hold_what_the_encoder_gives(
        self, slices: Slices, encoder: Encoder, tmp_path: Path
    ) -> None:
        memory = FeatureDataset(slices, encoder, batch_size=3)  # 7 slices: the last batch is short
        disk = FeatureDataset(slices, encoder, folder=tmp_path / "new" / "folder", batch_size=3)
        # without names, so that no other process changes them and none is left behind
        assert (disk.stages[0].__class__, list((tmp_path / "new" / "folder").iterdir())) == (np.memmap, [])
        assert len(memory) == len(disk) == 7
        for index in range(7):
            plain, kept, stored = slices[index], memory[index], disk[index]
            assert torch.equal(kept["image"], plain["image"])
            assert (kept["case"], kept["slice"]) == (plain["case"], plain["slice"])
            expected = [stage[0] for stage in encoder(plain["image"][None])]
            for one, two, three in zip(kept["features"], stored["features"], expected, strict=True):
                assert torch.equal(one, two)
                assert one.dtype == torch.float32
                torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-3)  # they are kept in half precision

    @pytest.mark.parametrize(
        ("first", "later", "kept", "kind"),
        [
            ([0.0, 1.0], 2.0, 2.0, np.float16),
            ([0.0, 1.0], 1e6, 65504.0, np.float16),  # the largest half, and a warning
            ([0.0, 1.0], float("inf"), float("inf"), np.float16),
            ([0.0, 1.0], float("-inf"), float("-inf"), np.float16),
            ([0.0, 1e3], 1e6, 1e6, np.float32),
            ([0.0, float("nan")], 1.0, 1.0, np.float32),
            ([500.0, 500.03], 1.0, 1.0, np.float32),  # of which half precision makes one number
            ([1e-8, 2e-8], 1.0, 1.0, np.float32),  # of which it makes 0
        ],
    )
    def test_features_are_kept_in_half_precision_only_where_that_keeps_what_they_say(
        self, first: list[float], later: float, kept: float, kind: type, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Plain(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_parameter("frozen", nn.Parameter(torch.zeros(1), requires_grad=False))

            def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
                return [image]

        items = [{"image": torch.tensor(first).view(1, 1, 2)}, {"image": torch.full((1, 1, 2), later)}]
        dataset = FeatureDataset(items, Plain().eval(), batch_size=1)
        assert dataset.stages[0].dtype == kind
        assert dataset[1]["features"][0].unique().tolist() == [kept]
        assert ("beyond 65504" in caplog.text) == (kept == 65504)

    def test_two_in_one_folder_keep_their_own(self, encoder: Encoder, tmp_path: Path) -> None:
        both = {case: FeatureDataset(slices_of(case, 2), encoder, tmp_path) for case in "ab"}
        for case, dataset in both.items():
            expected = FeatureDataset(slices_of(case, 2), encoder)
            assert torch.equal(dataset[1]["features"][0], expected[1]["features"][0])

    def test_a_full_disk_is_told_with_the_folder_and_the_room_that_it_takes(
        self, tmp_path: Path, fork_server: ForkServer
    ) -> None:
        code = f"""
import resource
import torch
from aeflow_monai.data.feature_dataset import FeatureDataset
from aeflow_monai.network.encoder import Encoder

resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
FeatureDataset([dict(image=torch.zeros(1, 64, 64))] * 90, Encoder(weights="random"), {str(tmp_path)!r})
"""
        done = fork_server.run(["-c", code], tmp_path, os.environ)
        assert done.returncode == 1  # no SIGBUS
        assert f"MB for features, see cache_dir: '{tmp_path}'" in done.stderr

    def test_changing_an_item_does_not_change_the_store(self, slices: Slices, encoder: Encoder, tmp_path: Path) -> None:
        for folder in (None, tmp_path):
            dataset = FeatureDataset(slices, encoder, folder)
            before = dataset[0]["features"][0].clone()
            dataset[0]["features"][0].zero_()
            assert torch.equal(dataset[0]["features"][0], before)

    @pytest.mark.parametrize("prepare", [nn.Module.train, nn.Module.eval])
    def test_encoder_that_is_not_frozen_is_refused(
        self, slices: Slices, prepare: Callable[[nn.Module], nn.Module]
    ) -> None:
        with pytest.raises(ValueError, match="only of a frozen encoder: set its option frozen to true"):
            FeatureDataset(slices, prepare(Encoder(weights="random", frozen=False)))


class TestPrepareSliceBatch:
    def test_with_and_without_features_the_network_says_the_same(self, slices: Slices, encoder: Encoder) -> None:
        model = AEFlow(encoder, n_steps=1).eval()
        outputs = []
        for dataset in (slices, FeatureDataset(slices, encoder, batch_size=7)):
            (batch,) = DataLoader(dataset, batch_size=7)
            image, target, args, kwargs = prepare_slice_batch(batch, device="cpu")
            assert image.shape == (7, 1, 64, 64)
            assert target is image
            assert args == ()
            assert set(kwargs) == ({"features"} if isinstance(dataset, FeatureDataset) else set())
            outputs.append(model(image, *args, **kwargs))
        computed, kept = outputs
        for one, two in zip(computed.log_likelihoods, kept.log_likelihoods, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(computed.reconstruction, kept.reconstruction, rtol=1e-3, atol=1e-3)

    def test_options_reach_image_and_features(self, slices: Slices, encoder: Encoder) -> None:
        (batch,) = DataLoader(FeatureDataset(slices, encoder), batch_size=7)
        image, _, _, kwargs = prepare_slice_batch(batch, "cpu", non_blocking=True, dtype=torch.float64)
        assert image.dtype == torch.float64
        assert [stage.dtype for stage in kwargs["features"]] == [torch.float64] * 2
        assert [tuple(stage.shape) for stage in kwargs["features"]] == [(7, 40, 8, 8), (7, 112, 4, 4)]


class _Broken(Dataset[dict[str, Any]]):
    """Slices of which one cannot be read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 20:
            raise OSError("slice 20 is damaged")
        return {"image": torch.rand(1, 64, 64)}


def test_an_error_of_the_slices_comes_through_and_no_thread_stays(encoder: Encoder) -> None:
    before = threading.active_count()
    with pytest.raises(OSError, match="slice 20 is damaged"):
        FeatureDataset(_Broken(), encoder)
    FeatureDataset(slices_of("a", 3), encoder)
    assert threading.active_count() == before


def test_labels_of_slices_go_into_the_target_with_kept_features(encoder: Encoder) -> None:
    normal, abnormal = slices_of("a", 2), slices_of("b", 1)
    kept = FeatureDataset(LabelledSlices(normal, abnormal, n_copies=1), encoder)
    (batch,) = DataLoader(kept, batch_size=3)
    image, (target, labels), _, options = prepare_slice_batch(batch, "cpu")
    assert torch.equal(image, target)
    assert labels.amax(dim=(1, 2, 3)).tolist() == [0, 0, 1]
    assert options["is_target"].tolist() == [True, False, False]
    for stage, expected in zip(options["features"], encoder(image), strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-3, atol=1e-3)
