import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImaged

from aeflow_monai.data.datalist import find_images, load_datalist, split_normals

LOAD = LoadImaged("image", reader=["ITKReader", "NibabelReader"], image_only=True)
COUNTS = {"train": 12, "val": 3, "test": 6}


def write_npz(path: Path, shape: tuple[int, ...] = (28, 28), labels: int = 1, **arrays: Any) -> Path:
    """A file as MedMNIST's, where labels alternate and each image holds random values."""
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        arrays.setdefault(f"{split}_images", random.integers(0, 256, (count, *shape), np.uint8))
        arrays.setdefault(f"{split}_labels", np.arange(count * labels, dtype=np.uint8).reshape(count, labels) % 2)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (28, 28, 28)], ids=str)
def test_images_and_labels_of_all_splits(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = write_npz(tmp_path / "somemnist.npz", shape)
    with np.load(file) as arrays:
        for section, split in (("train", "train"), ("test", "test")):
            items = load_datalist(file, section, normal_classes=[0])
            assert len(items) == COUNTS[split]
            for item in items:
                i = int(item["case"].removeprefix(f"{split}_"))
                assert item["label"] == arrays[f"{split}_labels"][i, 0]
                # readers put columns first; volumes keep their axes
                expected = arrays[f"{split}_images"][i]
                expected = expected if shape == (28, 28, 28) else expected.swapaxes(0, 1)
                assert np.array_equal(LOAD(item)["image"].numpy(), expected)
    assert len(load_datalist(file, "all", normal_classes=["0"])) == 21
    assert load_datalist(tmp_path, "all", layout="medmnist", normal_classes="0")
    fit, calibration = split_normals(load_datalist(file, "train", normal_classes=0), 0.2)
    assert (len(fit), len(calibration)) == (5, 1)


def test_files_are_unpacked_once(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "somemnist.npz")
    first = load_datalist(file, "all", normal_classes=["0"])
    times = {item["image"]: Path(item["image"]).stat().st_mtime_ns for item in first}
    assert load_datalist(file, "all", normal_classes=["1"]) != first
    assert {path: Path(path).stat().st_mtime_ns for path in times} == times
    write_npz(file, train_labels=np.zeros((12, 1), np.uint8))
    changed = load_datalist(file, "train", normal_classes=["0"])
    assert {item["label"] for item in changed} == {0}
    assert len(list(tmp_path.iterdir())) == 3  # the file and the images of both


def test_inference_takes_the_test_images(tmp_path: Path) -> None:
    items = find_images(write_npz(tmp_path / "somemnist.npz"))
    assert [item["case"] for item in items] == [f"test_{i:06d}" for i in (0, 2, 4, 1, 3, 5)]
    assert set(items[0]) == {"image", "case", "patient"}


def test_normal_labels_have_to_be_named(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "somemnist.npz")
    with pytest.raises(ValueError, match=r"labels of .*somemnist\.npz is NORMAL; found: 0 \(11 images\), 1 \(10 imag"):
        load_datalist(file, "train")


def test_several_labels_of_an_image(tmp_path: Path) -> None:
    labels = np.zeros((12, 3), np.uint8)
    labels[0, [0, 2]] = 1
    file = write_npz(tmp_path / "chest.npz", labels=3, train_labels=labels)
    items = load_datalist(file, "train", normal_classes="none")
    assert [item["label"] for item in sorted(items, key=lambda item: item["case"])] == [1, *[0] * 11]
    assert Path(items[0]["image"]).parent.name == "0+2"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"train_images": np.zeros((12, 28, 28))},
            r"train_images has to be uint8 .*; got float64 \(12, 28, 28\) and 12",
        ),
        ({"train_labels": np.zeros((3, 1))}, r"with N labels; got uint8 \(12, 28, 28\) and 3 labels"),
        ({"train_images": np.zeros(12, np.uint8)}, r"got uint8 \(12,\)"),
        ({"train_images": np.zeros((12, 0, 28), np.uint8)}, r"got uint8 \(12, 0, 28\) and 12 labels"),
        ({"train_labels": np.array(3)}, r"and 0 labels"),
        ({"train_labels": np.zeros((12, 1))}, r"some\.npz: train_labels has to be whole numbers; got float64"),
        ({"train_labels": np.array(["../../../outside"] * 12)}, r"train_labels has to be whole numbers; got <U16"),
        ({"train_labels": np.array([None] * 12)}, r"some\.npz is damaged, or no \.npz file of numbers: Object arrays"),
    ],
)
def test_arrays_of_another_form(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    file = write_npz(tmp_path / "some.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_datalist(file, "train", normal_classes="0")
    assert list(tmp_path.iterdir()) == [file]  # nothing half done stays


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "some.npz")
    data = bytearray(file.read_bytes())
    data[2000] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"some\.npz is damaged, or no \.npz file of numbers"):
        load_datalist(file, "train", normal_classes="0")
    assert list(tmp_path.iterdir()) == [file]


def test_other_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", features=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz is no MedMNIST file; its arrays are features\. .*train_images"):
        load_datalist(tmp_path / "other.npz", "train")
    (tmp_path / "broken.npz").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"broken\.npz is no \.npz file: .*Delete it and get it again"):
        find_images(tmp_path / "broken.npz")


# The package that fetches


@pytest.fixture
def medmnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stands in for the package of this name, whose downloads need the network."""

    def fetch(split: str, download: bool, root: str, size: int | None) -> None:
        if size == 128 or not download:
            raise RuntimeError("no network")
        write_npz(Path(root, f"somemnist{f'_{size}' if size else ''}.npz"))

    root = tmp_path / "fetched"
    root.mkdir()
    info = {"somemnist": {"python_class": "SomeMNIST"}}
    monkeypatch.setitem(sys.modules, "medmnist", SimpleNamespace(INFO=info, SomeMNIST=fetch))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "medmnist.dataset", SimpleNamespace(DEFAULT_ROOT=str(root)))  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize("name", ["somemnist", "somemnist_64"])
def test_fetched_data_set(medmnist: Path, name: str) -> None:
    items = load_datalist(f"medmnist:{name}", "test", normal_classes="0")
    assert len(items) == 6
    assert Path(items[0]["image"]).is_relative_to(medmnist)
    file = medmnist / f"{name}.npz"
    before = file.stat().st_mtime_ns
    assert len(find_images(f"medmnist:{name}")) == 6
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["medmnist:other", "medmnist:somemnist_big"])
def test_unknown_data_set(medmnist: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"with a flag of somemnist; got '{name}'"):
        load_datalist(name, "train")


def test_without_network(medmnist: Path) -> None:
    message = r"'medmnist:somemnist_128' could not be fetched: no network\. Get somemnist_128\.npz .* put it into"
    with pytest.raises(ConnectionError, match=message):
        find_images("medmnist:somemnist_128")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(ImportError, match=r"'medmnist:bloodmnist' needs .*pip install medmnist\. Or get bloodm"):
        load_datalist("medmnist:bloodmnist", "train")
