from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Resized
from PIL import Image
from torch import Tensor, nn

from aeflow_monai import AEFlow, Encoder, EnsureVolumed, FeatureDataset, SliceDataset, prepare_slice_batch

# SWIG's types say so once, when the first module of ITK is loaded; as an error it ends the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")


def volume_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 0.1 + 0.9 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def data_set(volumes: dict[str, Tensor], **options: Any) -> SliceDataset:
    data = [{"image": f"{case}.nii.gz", "case": case} for case in volumes]
    return SliceDataset(data, lambda item: {"image": volumes[item["case"]]}, **options)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def slices() -> SliceDataset:
    return data_set({"a": volume_of((1, 64, 64, 3)), "b": volume_of((1, 64, 64, 4), seed=1)})


class TestSliceDataset:
    def test_every_slice_comes_with_its_case_and_position(self) -> None:
        volumes = {"a": volume_of((2, 16, 24, 3)), "b": volume_of((2, 16, 24, 1), seed=1)}
        found = [data_set(volumes)[i] for i in range(4)]
        assert [(item["case"], item["slice"]) for item in found] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
        for item in found:
            assert torch.equal(item["image"], volumes[item["case"]][..., item["slice"]])

    @pytest.mark.parametrize(
        ("min_foreground", "kept"),
        [(0.0, [0, 1, 2, 3]), (0.01, [1, 2, 3]), (0.25, [1, 2, 3]), (0.3, [2, 3]), (1.0, [3])],
    )
    def test_slices_without_enough_foreground_are_left_out(self, min_foreground: float, kept: list[int]) -> None:
        volume = torch.zeros(1, 8, 8, 4)
        volume[:, :4, :4, 1] = 0.5  # a quarter
        volume[:, :4, :, 2] = 0.5
        volume[..., 3] = 1e-6
        found = data_set({"a": volume}, min_foreground=min_foreground)
        assert found.positions == kept

    def test_no_slice_left_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"No slice is left of 2 cases: none has 50% .*Lower min_foreground"):
            data_set({"a": torch.zeros(1, 8, 8, 4), "b": torch.zeros(1, 8, 8, 4)}, min_foreground=0.5)

    @pytest.mark.parametrize("shape", [(1, 16, 16, 2), (1, 8, 16, 2), (3, 8, 8, 2)])
    def test_unequal_shapes_are_named(self, shape: tuple[int, ...]) -> None:
        message = rf"\(1, 8, 8\) so far, but b\.nii\.gz gives \({shape[0]}, {shape[1]}, {shape[2]}\)\. Set image_size"
        with pytest.raises(ValueError, match=message):
            data_set({"a": volume_of((1, 8, 8, 5)), "b": volume_of(shape)})

    def test_2d_image_asks_for_the_transform(self) -> None:
        with pytest.raises(ValueError, match=r"got \(1, 8, 8\) for a\.nii\.gz\. A 2D image needs .*EnsureVolumed"):
            data_set({"a": volume_of((1, 8, 8))})

    def test_keeps_nothing_but_its_slices(self) -> None:
        found = data_set({"a": MetaTensor(volume_of((1, 8, 8, 100)).double())}, min_foreground=0.5)
        for image in found.images:
            assert type(image) is Tensor
            assert image.dtype == torch.float32
            assert image.untyped_storage().nbytes() == 8 * 8 * 4

    def test_each_file_is_read_once(self) -> None:
        read: list[str] = []

        def transform(item: Any) -> dict[str, Tensor]:
            read.append(item["case"])
            return {"image": volume_of((1, 8, 8, 2))}

        found = SliceDataset([{"image": c, "case": c} for c in "ab"], transform)
        for _ in range(2):
            assert [item["case"] for item in map(found.__getitem__, range(4))] == ["a", "a", "b", "b"]
        assert read == ["a", "b"]

    def test_files_of_several_formats_share_a_batch(self, tmp_path: Path) -> None:
        pixels = np.tile(np.arange(40, dtype=np.uint8), (30, 1)) + 1
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        nib.save(nib.Nifti1Image(pixels.astype(np.float32), np.diag([2, 2, 1, 1])), tmp_path / "flat.nii.gz")
        nib.save(nib.Nifti1Image(np.ones((9, 8, 7), np.float32), np.diag([-1, 2, 3, 1])), tmp_path / "volume.nii")
        transform = Compose(
            [
                LoadImaged("image", reader=["ITKReader", "NibabelReader"]),
                EnsureChannelFirstd("image"),
                EnsureVolumed("image"),
                Orientationd("image", axcodes="PLS", labels=None),
                Resized("image", (16, 16, -1), mode="trilinear"),
            ]
        )
        names = ["picture.png", "flat.nii.gz", "volume.nii"]
        found = SliceDataset([{"image": tmp_path / name, "case": name} for name in names], transform)
        (batch,) = DataLoader(found, batch_size=9)
        assert batch["image"].shape == (9, 1, 16, 16)
        assert batch["case"] == names[:2] + names[2:] * 7
        assert batch["slice"].tolist() == [0, 0, *range(7)]


class TestFeatureDataset:
    def test_memory_and_disk_hold_what_the_encoder_gives(
        self, slices: SliceDataset, encoder: Encoder, tmp_path: Path
    ) -> None:
        memory = FeatureDataset(slices, encoder, batch_size=3)  # 7 slices: the last batch is short
        disk = FeatureDataset(slices, encoder, folder=tmp_path / "new" / "folder", batch_size=3)
        assert sorted(p.name for p in tmp_path.rglob("*.npy")) == ["features_0.npy", "features_1.npy"]
        assert len(memory) == len(disk) == 7
        for index in range(7):
            plain, kept, stored = slices[index], memory[index], disk[index]
            assert torch.equal(kept["image"], plain["image"])
            assert (kept["case"], kept["slice"]) == (plain["case"], plain["slice"])
            expected = [stage[0] for stage in encoder(plain["image"][None])]
            for one, two, three in zip(kept["features"], stored["features"], expected, strict=True):
                assert torch.equal(one, two)
                torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-4)

    def test_files_of_an_earlier_run_are_replaced(self, encoder: Encoder, tmp_path: Path) -> None:
        FeatureDataset(data_set({"a": volume_of((1, 64, 64, 3))}), encoder, tmp_path)
        slices = data_set({"b": volume_of((1, 64, 64, 2), seed=1)})
        again = FeatureDataset(slices, encoder, tmp_path)
        expected = FeatureDataset(slices, encoder)
        assert len(again) == 2
        assert torch.equal(again[1]["features"][0], expected[1]["features"][0])

    def test_changing_an_item_does_not_change_the_store(
        self, slices: SliceDataset, encoder: Encoder, tmp_path: Path
    ) -> None:
        for folder in (None, tmp_path):
            dataset = FeatureDataset(slices, encoder, folder)
            before = dataset[0]["features"][0].clone()
            dataset[0]["features"][0].zero_()
            assert torch.equal(dataset[0]["features"][0], before)

    @pytest.mark.parametrize("prepare", [nn.Module.train, nn.Module.eval])
    def test_encoder_that_is_not_frozen_is_refused(
        self, slices: SliceDataset, prepare: Callable[[nn.Module], nn.Module]
    ) -> None:
        with pytest.raises(ValueError, match="only of a frozen encoder: set frozen, or keep_features to false"):
            FeatureDataset(slices, prepare(Encoder(weights="random", frozen=False)))


class TestPrepareSliceBatch:
    def test_with_and_without_features_the_network_says_the_same(self, slices: SliceDataset, encoder: Encoder) -> None:
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
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(computed.reconstruction, kept.reconstruction)

    def test_options_reach_image_and_features(self, slices: SliceDataset, encoder: Encoder) -> None:
        (batch,) = DataLoader(FeatureDataset(slices, encoder), batch_size=7)
        image, _, _, kwargs = prepare_slice_batch(batch, "cpu", non_blocking=True, dtype=torch.float64)
        assert image.dtype == torch.float64
        assert [stage.dtype for stage in kwargs["features"]] == [torch.float64] * 2
        assert [tuple(stage.shape) for stage in kwargs["features"]] == [(7, 40, 8, 8), (7, 112, 4, 4)]
