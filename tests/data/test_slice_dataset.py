import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from PIL import Image
from torch import Tensor

from aeflow_monai import file_digests
from aeflow_monai.data.slice_dataset import SliceDataset, SomeCases
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.data.transforms import EnsureVolumed, ScaleForegroundd
from aeflow_monai.errors import CaseFailures

# SWIG's types say so once, when the first module of ITK is loaded; as an error it ends the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")


def volume_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 0.1 + 0.9 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def data_set(volumes: dict[str, Tensor], step: int = 1, **policy: Any) -> SliceDataset:
    """Slices of volumes as they are, unless the policy says otherwise."""
    data = [{"image": f"{case}.nii.gz", "case": case} for case in volumes]
    size = next(iter(volumes.values())).shape[1:3]
    slicer = Slicer(**{"image_size": size, **policy})
    return SliceDataset(data, lambda item: {"image": volumes[item["case"]]}, slicer, step)


def places(dataset: SliceDataset) -> list[tuple[str, str, int]]:
    return [(item["case"], item["axis"], item["slice"]) for item in map(dataset.__getitem__, range(len(dataset)))]


class TestSliceDataset:
    def test_every_slice_comes_with_its_case_and_position(self) -> None:
        volumes = {"a": volume_of((2, 16, 24, 3)), "b": volume_of((2, 16, 24, 1), seed=1)}
        found = [data_set(volumes)[i] for i in range(4)]
        assert [(item["case"], item["slice"]) for item in found] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
        for item in found:
            assert torch.equal(item["image"], volumes[item["case"]][..., item["slice"]])
            assert (item["file"], item["axis"]) == (f"{item['case']}.nii.gz", "axial")

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
        assert [item["slice"] for item in found.index] == kept
        for item in map(found.__getitem__, range(len(kept))):
            assert torch.equal(item["image"], volume[..., item["slice"]])

    @pytest.mark.parametrize(("step", "kept"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (4, [1, 5]), (9, [1])])
    def test_only_every_nth_of_the_slices_of_each_case(self, step: int, kept: list[int]) -> None:
        volume = volume_of((1, 8, 8, 8))
        volume[..., [0, 7]] = 0
        found = data_set({"a": volume, "b": volume}, step=step, min_foreground=0.1)
        assert places(found) == [(case, "axial", position) for case in "ab" for position in kept]
        with pytest.raises(ValueError, match=r"step has to be 1 or more; got 0"):
            data_set({"a": volume}, step=0)

    def test_several_planes_of_a_case(self) -> None:
        volume = volume_of((1, 8, 6, 4))
        slicer = Slicer(axes=["coronal", "axial", "sagittal"], image_size=[8, 8], fit="pad")
        found = data_set({"a": volume}, axes=["coronal", "axial", "sagittal"], image_size=[8, 8], fit="pad")
        expected = [("coronal", 8), ("axial", 4), ("sagittal", 6)]
        assert places(found) == [("a", plane, index) for plane, count in expected for index in range(count)]
        for item in map(found.__getitem__, range(18)):
            (image,) = slicer.slices(volume, item["axis"], torch.tensor([item["slice"]]))
            assert torch.equal(item["image"], image)
        flat = data_set({"a": volume, "flat": volume[..., :1]}, axes=["sagittal"], image_size=[8, 8])
        assert places(flat) == [("a", "sagittal", index) for index in range(6)] + [("flat", "axial", 0)]

    def test_no_slice_left_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"No slice is left of 2 cases: none .* has 50% .*Lower min_foreground"):
            data_set({"a": torch.zeros(1, 8, 8, 4), "b": torch.zeros(1, 8, 8, 4)}, min_foreground=0.5)

    @pytest.mark.parametrize(
        ("shape", "given"), [((1, 33, 8, 2), (1, 64, 32)), ((1, 8, 40, 2), (1, 32, 64)), ((3, 8, 8, 2), (3, 32, 32))]
    )
    def test_unequal_shapes_are_named(self, shape: tuple[int, ...], given: tuple[int, ...]) -> None:
        message = (
            rf"\(1, 32, 32\) so far, but b\.nii\.gz gives \({given[0]}, {given[1]}, {given[2]}\)\. Set slicer#fit to"
        )
        with pytest.raises(ValueError, match=message):
            data_set({"a": volume_of((1, 8, 8, 5)), "b": volume_of(shape)}, image_size=[32, 32], fit="pad")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_values_that_are_not_finite_are_named(self, value: float) -> None:
        volume = volume_of((1, 8, 8, 2))
        volume[0, 3, 3, 1] = value
        with pytest.raises(CaseFailures, match=r"b\.nii\.gz holds NaN or infinite values after the preprocessing"):
            data_set({"a": volume_of((1, 8, 8, 2)), "b": volume})

    def test_all_that_cannot_be_read_are_named_at_once(self, tmp_path: Path) -> None:
        image = nib.Nifti1Image(np.random.default_rng(0).random((8, 8, 2), np.float32), np.eye(4))
        nib.save(image, tmp_path / "good.nii.gz")
        (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:200])
        data = [{"image": str(tmp_path / f"{name}.nii.gz"), "case": name, "label": 0} for name in ("cut", "good", "no")]
        transform = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
        with pytest.raises(CaseFailures) as raised:
            SliceDataset(data[:2], transform, Slicer(image_size=(8, 8)), folder=tmp_path / "cache", others=data[2:])
        first, cut, gone, remedy = str(raised.value).splitlines()
        assert first == "2 of 3 cases failed:"
        assert cut.startswith("- cut (")
        assert "cut.nii.gz" in cut
        assert gone.startswith("- no (")
        assert "no.nii.gz" in gone
        assert "run prepare" in remedy
        assert not list((tmp_path / "cache").iterdir())

    def test_2d_image_asks_for_the_transform(self) -> None:
        with pytest.raises(ValueError, match=r"got \(1, 8, 8\) for a\.nii\.gz\. A 2D image needs .*EnsureVolumed"):
            data_set({"a": volume_of((1, 8, 8))})

    def test_keeps_nothing_but_its_slices(self) -> None:
        volume = volume_of((1, 8, 8, 100))
        volume[..., 10:] = 0
        found = data_set({"a": MetaTensor(volume.double())}, min_foreground=0.5)
        storages = {}
        for item in map(found.__getitem__, range(10)):
            assert type(item["image"]) is Tensor
            assert item["image"].dtype == torch.float32
            storage = item["image"].untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        assert sum(storages.values()) == 10 * 8 * 8 * 4

    def test_each_file_is_read_once(self) -> None:
        read: list[str] = []

        def transform(item: Any) -> dict[str, Tensor]:
            read.append(item["case"])
            return {"image": volume_of((1, 8, 8, 2))}

        found = SliceDataset([{"image": c, "case": c} for c in "ab"], transform, Slicer(image_size=[8, 8]))
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
            ]
        )
        names = ["picture.png", "flat.nii.gz", "volume.nii"]
        data = [{"image": tmp_path / name, "case": name} for name in names]
        found = SliceDataset(data, transform, Slicer(image_size=[16, 16]))
        (batch,) = DataLoader(found, batch_size=9)
        assert batch["image"].shape == (9, 1, 16, 16)
        assert batch["case"] == names[:2] + names[2:] * 7
        assert batch["slice"].tolist() == [0, 0, *range(7)]


def with_mask(spacing: tuple[float, ...] = (1, 1, 1), abnormal: bool = True, **policy: Any) -> SliceDataset:
    """Of a volume of ten slices, with a lesion of 4 pixels in slice 4 and of 1 pixel in slice 5, after a normal one."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    mask = torch.zeros(1, 8, 8, 10, dtype=torch.uint8)
    mask[:, 2:4, 2:4, 4] = 2
    mask[:, 3, 3, 5] = 1
    images = {"normal": volume_of((1, 8, 8, 10)), "sick": volume_of((1, 8, 8, 10), seed=1)}
    items = {case: {"image": MetaTensor(image, affine=affine)} for case, image in images.items()}
    items["sick"]["lesion"] = MetaTensor(mask, affine=affine)
    data = [{"image": f"{case}.nii", "case": case, "label": int(abnormal and case == "sick")} for case in items]
    return SliceDataset(data, lambda item: items[item["case"]], Slicer(**{"image_size": [8, 8], **policy}))


class TestAbnormal:
    @pytest.mark.parametrize(
        ("spacing", "margin", "left_out"),
        [
            ((1, 1, 1), 0.0, [4, 5]),
            ((1, 1, 1), 2.0, [3, 4, 5, 6]),
            ((1, 1, 1), 2.5, [2, 3, 4, 5, 6, 7]),
            ((0.1, 0.1, 3), 2.5, [4, 5]),  # the next slice is 3 mm away
            ((9, 9, 0.5), 1.1, [2, 3, 4, 5, 6, 7]),
        ],
    )
    def test_gives_its_slices_away_from_the_lesion(
        self, spacing: tuple[float, ...], margin: float, left_out: list[int]
    ) -> None:
        found = with_mask(spacing, normal_margin_mm=margin)
        kept = [position for position in range(10) if position not in left_out]
        assert places(found) == [
            *[("normal", "axial", position) for position in range(10)],
            *[("sick", "axial", position) for position in kept],
        ]

    def test_a_lesion_too_small_to_count_is_not_trained_on_either(self) -> None:
        assert places(with_mask(min_lesion_mm2=3.0)) == places(with_mask())

    def test_each_plane_leaves_out_its_own(self) -> None:
        found = with_mask(axes=["axial", "coronal", "sagittal"], image_size=[10, 10], fit="pad")
        kept = {
            plane: {i for case, p, i in places(found) if (case, p) == ("sick", plane)}
            for plane in ("axial", "coronal", "sagittal")
        }
        assert kept == {
            "axial": set(range(10)) - {4, 5},
            "coronal": set(range(8)) - {2, 3},
            "sagittal": set(range(8)) - {2, 3},
        }

    def test_a_lesion_in_the_mask_counts_whatever_the_label_says(self) -> None:
        assert places(with_mask(abnormal=False)) == places(with_mask())

    def test_is_refused_without_a_mask(self) -> None:
        data = [{"image": "sick.nii", "case": "sick", "label": 1}]
        with pytest.raises(ValueError, match=r"sick\.nii is abnormal and has no mask, .*Name a mask"):
            SliceDataset(data, lambda item: {"image": volume_of((1, 8, 8, 3))}, Slicer(image_size=[8, 8]))

    def test_is_refused_with_a_mask_on_another_grid(self) -> None:
        data = [{"image": "sick.nii", "case": "sick", "label": 1}]
        read = {"image": volume_of((1, 8, 8, 3)), "lesion": torch.zeros(1, 8, 8, 6)}
        with pytest.raises(ValueError, match=r"mask of sick\.nii has another size .*\(8, 8, 6\) and \(8, 8, 3\)"):
            SliceDataset(data, lambda item: read, Slicer(image_size=[8, 8]))

    def test_without_a_normal_slice_gives_none(self) -> None:
        data = [{"image": "sick.nii", "case": "sick", "label": 1}]
        read = {"image": volume_of((1, 8, 8, 3)), "lesion": torch.ones(1, 8, 8, 3)}
        with pytest.raises(ValueError, match=r"No slice is left of 1 cases: none is normal.*normal_margin_mm"):
            SliceDataset(data, lambda item: read, Slicer(image_size=[8, 8]))


class AsRead:
    """Gives the same for every item; has a name, so that slices can be kept in files."""

    def __init__(self, read: dict[str, Tensor]) -> None:
        self.read = read

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.read


class TestAbnormalSlices:
    def test_are_those_with_the_lesion(self) -> None:
        mask = torch.zeros(1, 8, 8, 10)
        mask[:, 2:4, 2:4, 4] = 1
        read = {"image": volume_of((1, 8, 8, 10))}
        masks = {"sick": mask, "well": 0 * mask}
        data = [{"image": "sick.nii", "case": "sick", "label": 1}, {"image": "well.nii", "case": "well", "label": 0}]
        found = SliceDataset(
            data, lambda item: {**read, "lesion": masks[item["case"]]}, Slicer(image_size=[8, 8]), kind="abnormal"
        )
        assert places(found) == [("sick", "axial", 4)]

    @pytest.mark.parametrize("channels", [1, 3])  # a mask may be a coloured picture
    @pytest.mark.parametrize("in_files", [False, True])
    def test_have_their_lesion_where_the_image_shows_it(self, tmp_path: Path, in_files: bool, channels: int) -> None:
        bright = torch.full((1, 12, 8, 4), 0.2)
        bright[:, 2:4, 5:7, 1:3] = 0.9
        (tmp_path / "sick.nii").touch()
        data = [{"image": str(tmp_path / "sick.nii"), "case": "sick", "label": 1}]
        read = AsRead({"image": bright, "lesion": 3.0 * (bright > 0.5).expand(channels, -1, -1, -1)})
        folder = tmp_path / "kept" if in_files else None
        for _ in range(2):  # the second time from the files
            slices = SliceDataset(data, read, Slicer(image_size=[24, 16]), kind="abnormal", folder=folder)
            assert slices.shape == (1, 24, 16)
            for item in slices:
                assert item["image"].shape == item["lesion"].shape == (1, 24, 16)
                assert (item["lesion"].min(), item["lesion"].max()) == (0, 1)
                torch.testing.assert_close(item["image"], 0.2 + 0.7 * item["lesion"])

    @pytest.mark.parametrize("mask", [None, torch.zeros(1, 8, 8, 1)])
    def test_without_a_lesion_in_the_mask_are_abnormal_all_over(self, mask: Tensor | None) -> None:
        data = [{"image": "sick.png", "case": "sick", "label": 1}]
        read = {"image": volume_of((1, 8, 8, 1))} | ({} if mask is None else {"lesion": mask})
        found = SliceDataset(data, lambda item: read, Slicer(image_size=[8, 8]), kind="abnormal")
        assert found[0]["lesion"].tolist() == [[[1.0] * 8] * 8]

    def test_of_a_2d_image_with_another_size_than_its_mask_are_refused(self) -> None:
        data = [{"image": "sick.png", "case": "sick", "label": 1}]
        read = {"image": volume_of((1, 8, 8, 1)), "lesion": torch.ones(1, 8, 9, 1)}
        with pytest.raises(ValueError, match=r"mask of sick\.png has another size than its image"):
            SliceDataset(data, lambda item: read, Slicer(image_size=[8, 8]), kind="abnormal")

    def test_of_a_2d_image_need_no_mask(self) -> None:
        data = [{"image": "sick.png", "case": "sick", "label": 1}]
        read = {"image": volume_of((1, 8, 8, 1))}
        assert len(SliceDataset(data, lambda item: read, Slicer(image_size=[8, 8]), kind="abnormal")) == 1

    def test_of_a_volume_need_a_mask(self) -> None:
        data = [{"image": "sick.nii", "case": "sick", "label": 1}]
        with pytest.raises(ValueError, match=r"sick\.nii is abnormal and has no mask, .*labelled_abnormal to 0"):
            SliceDataset(
                data, lambda item: {"image": volume_of((1, 8, 8, 3))}, Slicer(image_size=[8, 8]), kind="abnormal"
            )

    def test_are_kept_apart_from_normal_ones(self, tmp_path: Path) -> None:
        np.save(tmp_path / "sick.npy", volume_of((1, 8, 8, 1)).numpy())
        data = [{"image": str(tmp_path / "sick.npy"), "case": "sick"}]
        read = Reads(tmp_path / "log")
        SliceDataset(data, read, Slicer(image_size=[8, 8]), folder=tmp_path / "kept")
        with pytest.raises(ValueError, match=r"No slice is left of 1 cases: none is abnormal"):
            SliceDataset(data, read, Slicer(image_size=[8, 8]), folder=tmp_path / "kept", kind="abnormal")

    def test_other_kinds_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"kind has to be normal or abnormal; got 'unclear'"):
            SliceDataset([], lambda item: item, Slicer(image_size=[8, 8]), kind="unclear")


class Reads:
    """A transform that notes what it reads: in a file, so that it stays the same object to a pickle."""

    def __init__(self, log: Path, bright: float = 1.0) -> None:
        self.log = log
        self.bright = bright
        log.touch()

    def __call__(self, item: Any) -> dict[str, Tensor]:
        with self.log.open("a") as file:
            file.write(f"{item['case']} ")
        volume = torch.as_tensor(np.load(item["image"])) * self.bright
        if item.get("label") != 1:
            return {"image": volume}
        return {"image": volume, "lesion": (volume == volume.max()).float()}

    def count(self) -> int:
        return len(self.log.read_text().split())


class Interrupted(Reads):
    def __call__(self, item: Any) -> dict[str, Tensor]:
        if item["case"] == "c":
            raise KeyboardInterrupt
        return super().__call__(item)


@pytest.fixture
def data(tmp_path: Path) -> list[dict[str, Any]]:
    for seed, case in enumerate("abc"):
        np.save(tmp_path / f"{case}.npy", volume_of((1, 8, 8, 4), seed).numpy())
    return [{"image": tmp_path / f"{case}.npy", "case": case, "label": 0} for case in "abc"]


class TestDisk:
    def test_gives_what_memory_gives(self, data: list[dict[str, Any]], tmp_path: Path) -> None:
        policy = Slicer(axes=["axial", "sagittal"], image_size=[16, 24])
        memory = SliceDataset(data, Reads(tmp_path / "log"), policy)
        folder = tmp_path / "deep" / "folder"
        for _ in range(2):  # written, and found
            disk = SliceDataset(data, Reads(tmp_path / "log"), policy, folder=folder)
            assert places(disk) == places(memory)
            assert len(disk) == len(memory) == 3 * 12
            for one, other in zip(map(disk.__getitem__, range(36)), map(memory.__getitem__, range(36)), strict=True):
                assert torch.equal(one["image"], other["image"])
                assert one.keys() == other.keys()
                assert all(one[key] == other[key] for key in ("case", "file", "axis", "slice"))
        assert Reads(tmp_path / "log").count() == 3 + 3
        assert sorted(file.name for file in folder.iterdir()) == ["slices.float32", "slices.json"]
        assert (folder / "slices.float32").stat().st_size == 36 * 16 * 24 * 4

    def test_changing_an_item_does_not_change_the_store(self, data: list[dict[str, Any]], tmp_path: Path) -> None:
        found = SliceDataset(data, Reads(tmp_path / "log"), Slicer(image_size=[8, 8]), folder=tmp_path / "kept")
        before = found[3]["image"].clone()
        found[3]["image"].zero_()
        assert torch.equal(found[3]["image"], before)

    @pytest.mark.parametrize(
        "change", ["nothing", "file", "bytes", "policy", "step", "transform", "case", "label", "fewer"]
    )
    def test_is_read_again_only_if_something_changed(
        self, data: list[dict[str, Any]], tmp_path: Path, change: str
    ) -> None:
        folder, step, policy, reads = tmp_path / "kept", 1, {"image_size": [8, 8]}, Reads(tmp_path / "log")
        SliceDataset(data, reads, Slicer(**policy), step, folder)
        assert reads.count() == 3
        if change == "file":
            np.save(data[1]["image"], volume_of((1, 8, 8, 4), seed=9).numpy())
        elif change == "bytes":  # of the same number, at the same time
            found = data[1]["image"].stat()
            np.save(data[1]["image"], volume_of((1, 8, 8, 4), seed=9).numpy())
            os.utime(data[1]["image"], ns=(found.st_atime_ns, found.st_mtime_ns))
            file_digests._digest.cache_clear()  # as in another process
        elif change == "policy":
            policy["min_foreground"] = 0.2
        elif change == "step":
            step = 3
        elif change == "transform":
            reads.bright = 2.0
        elif change == "case":
            data[2]["case"] = "d"
        elif change == "label":
            data[0]["label"] = 1
        elif change == "fewer":
            data = data[:2]
        again = SliceDataset(data, reads, Slicer(**policy), step, folder)
        assert reads.count() == 3 + (0 if change == "nothing" else len(data))
        fresh = SliceDataset(data, reads, Slicer(**policy), step)
        assert places(again) == places(fresh)
        for index in range(len(fresh)):
            assert torch.equal(again[index]["image"], fresh[index]["image"])

    @pytest.mark.parametrize("earlier", [False, True])
    def test_an_interrupted_write_is_not_taken_for_whole(
        self, data: list[dict[str, Any]], tmp_path: Path, earlier: bool
    ) -> None:
        folder, slicer, reads = tmp_path / "kept", Slicer(image_size=[8, 8]), Reads(tmp_path / "log")
        if earlier:
            SliceDataset(data, reads, slicer, folder=folder)
        with pytest.raises(KeyboardInterrupt):
            SliceDataset(data, Interrupted(tmp_path / "log", 0.5), slicer, folder=folder)
        # what an earlier run kept is still whole; nothing is left of the interrupted one
        assert sorted(file.name for file in folder.iterdir()) == ["slices.float32", "slices.json"] * earlier
        before = reads.count()
        found = SliceDataset(data, reads, slicer, folder=folder)
        assert reads.count() - before == (0 if earlier else 3)
        assert torch.equal(found[11]["image"], SliceDataset(data, reads, slicer)[11]["image"])

    @pytest.mark.parametrize("damage", ["cut", "no file", "no record", "a bit", "half a record", "no list", "a digit"])
    def test_what_is_not_whole_is_read_again(self, data: list[dict[str, Any]], tmp_path: Path, damage: str) -> None:
        folder, slicer, reads = tmp_path / "kept", Slicer(image_size=[8, 8]), Reads(tmp_path / "log")
        SliceDataset(data, reads, slicer, folder=folder)
        if damage == "cut":
            with (folder / "slices.float32").open("rb+") as file:
                file.truncate(1000)
        elif damage == "a bit":
            content = bytearray((folder / "slices.float32").read_bytes())
            content[500] ^= 1
            (folder / "slices.float32").write_bytes(content)
        elif damage in ("half a record", "no list", "a digit"):
            text = (folder / "slices.json").read_text()
            texts = {
                "half a record": text[:300],
                "no list": "[]",
                "a digit": text.replace('"slice": 1', '"slice": 2', 1),
            }
            assert texts[damage] != text
            (folder / "slices.json").write_text(texts[damage])
        else:
            (folder / {"no file": "slices.float32", "no record": "slices.json"}[damage]).unlink()
        found = SliceDataset(data, reads, slicer, folder=folder)
        assert reads.count() == 6
        assert torch.equal(found[11]["image"], SliceDataset(data, reads, slicer)[11]["image"])

    def test_the_same_preprocessing_of_another_run_and_seed_finds_it(self, tmp_path: Path) -> None:
        nib.save(nib.Nifti1Image(volume_of((9, 8, 7)).numpy(), np.eye(4)), tmp_path / "volume.nii")

        def preprocessing(upper: float = 99.5) -> Compose:
            keys = ["image", "lesion"]
            return Compose(
                [
                    LoadImaged(keys, reader=["ITKReader", "NibabelReader"], allow_missing_keys=True),
                    EnsureChannelFirstd(keys, allow_missing_keys=True),
                    EnsureVolumed(keys, allow_missing_keys=True),
                    Orientationd(keys, axcodes="PLS", labels=None, allow_missing_keys=True),
                    ScaleForegroundd("image", upper=upper),
                ]
            )

        made: list[str] = []
        used = preprocessing()
        used({"image": tmp_path / "volume.nii"})  # the reader holds the name of the file now
        for compose in (preprocessing(), preprocessing().set_random_state(seed=3), used, preprocessing(upper=98)):
            SliceDataset(
                [{"image": tmp_path / "volume.nii", "case": "a"}],
                compose,
                Slicer(image_size=[16, 16]),
                folder=tmp_path / "kept",
            )
            made.append(json.loads((tmp_path / "kept" / "slices.json").read_text())["made_of"])
        assert made[0] == made[1] == made[2] != made[3]

    def test_a_function_without_a_name_cannot_be_kept(self, data: list[dict[str, Any]], tmp_path: Path) -> None:
        def nameless(item: Any) -> dict[str, Tensor]:
            return {"image": volume_of((1, 8, 8, 4))}

        with pytest.raises(ValueError, match=r"cannot be identified.*nameless.*cache_dir to null"):
            SliceDataset(data, nameless, Slicer(image_size=[8, 8]), folder=tmp_path / "kept")
        assert not (tmp_path / "kept").exists()

    def test_no_slice_left_is_an_error_and_leaves_no_file(self, data: list[dict[str, Any]], tmp_path: Path) -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="No slice is left of 3 cases"):
                SliceDataset(
                    data,
                    Reads(tmp_path / "log", bright=0.0),
                    Slicer(image_size=[8, 8], min_foreground=0.5),
                    folder=tmp_path / "kept",
                )
            assert list((tmp_path / "kept").iterdir()) == []

    # a loader that forks in a process with threads, as PyTorch's does
    @pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning")
    @pytest.mark.parametrize("kept", [True, False])
    def test_workers_give_the_same(self, data: list[dict[str, Any]], tmp_path: Path, kept: bool) -> None:
        found = SliceDataset(
            data, Reads(tmp_path / "log"), Slicer(image_size=[8, 8]), folder=tmp_path / "kept" if kept else None
        )
        alone, shared = (list(DataLoader(found, batch_size=5, num_workers=n)) for n in (0, 2))
        assert [len(batch["image"]) for batch in alone] == [5, 5, 2]
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert one["case"] == other["case"]
            assert torch.equal(one["slice"], other["slice"])


class TestSomeCases:
    @pytest.mark.parametrize(
        ("n_cases", "chosen"), [(0, ""), (1, "a"), (2, "ae"), (3, "ace"), (5, "abcde"), (9, "abcde")]
    )
    def test_whole_cases_spread_evenly_are_taken(self, n_cases: int, chosen: str) -> None:
        slices = data_set({case: volume_of((1, 8, 8, 2), seed) for seed, case in enumerate("abcde")})
        some = SomeCases(slices, slices, n_cases)
        assert [(item["case"], item["slice"]) for item in some] == [(case, i) for case in chosen for i in (0, 1)]

    def test_other_items_at_the_same_places_are_taken(self) -> None:
        slices = data_set({case: volume_of((1, 8, 8, 2)) for case in "abc"})
        some = SomeCases([*range(6), "planted"], slices, 2)  # and nothing of what lies behind them
        assert list(some) == [0, 1, 4, 5]

    def test_slices_with_gaps_between_them_are_not_taken(self) -> None:
        slices = data_set({"a": volume_of((1, 8, 8, 4))}, step=2)
        assert len(slices) == 2
        assert len(SomeCases(slices, slices, 5)) == 0
