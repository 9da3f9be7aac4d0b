import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aeflow_monai.network.weights_file import read_weights

STATE = {"weight": torch.arange(6000.0), "bias": torch.ones(3)}


class Command:
    """What runs a command of the system when a pickle with it is loaded without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth", "weights.safetensors"])
def test_tensors_come_back(tmp_path: Path, name: str) -> None:
    if name.endswith(".safetensors"):
        save_file(STATE, tmp_path / name)
    else:
        torch.save({"state_dict": STATE}, tmp_path / name, _use_new_zipfile_serialization=name == "weights.pth")
    found = read_weights(tmp_path / name)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_is_not_run_and_no_way_to_run_it_is_told(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    content = {"weight": torch.ones(2), "other": Command(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"weights\.pth .*can be code\. Nothing of it was run") as raised:
        read_weights(path)
    assert not mark.exists()
    assert raised.value.__suppress_context__
    assert "weights_only" not in str(raised.value) + "".join(capfd.readouterr())


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # torch itself reads another number
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.pth is damaged: weights/data/0 is not as torch writes it"):
        read_weights(path)


def test_an_archive_that_grows_when_it_is_unpacked_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", bytes(10**6))
    with pytest.raises(ValueError, match=r"weights\.pth is damaged: weights/data\.pkl"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_cut_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a state dict"):
        read_weights(path)


def test_nan_is_said_of_the_file(tmp_path: Path) -> None:
    torch.save({**STATE, "bias": torch.tensor([1.0, torch.nan])}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth holds NaN or infinite values in 'bias'"):
        read_weights(tmp_path / "weights.pth")
