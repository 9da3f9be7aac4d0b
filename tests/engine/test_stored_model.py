from pathlib import Path
from typing import Any

import pytest
import torch
from outputs import model_state

from aeflow_monai.engine.stored_model import read_model


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no trained model at .*absent\.pt\. Train one first"):
        read_model(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="There is no trained model at"):
        read_model(tmp_path)  # a folder is no model


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_model_that_is_cut_short_is_named(tmp_path: Path, trained: Path, share: float) -> None:
    whole = (trained / "models/model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pt is no model, or not whole"):
        read_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), {"state_dict": {}}, {"model": 3}, {"model": {"weight": "none"}}, torch.nn.Linear(2, 2), "text"],
)
def test_a_foreign_file_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.pt"
    if content == "text":
        path.write_text("weights, promised\n")
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"model\.pt is no model.*: expected the model\.pt that a training ends with"):
        read_model(path)


def test_a_model_of_version_0_1_0_says_to_train_again(tmp_path: Path, trained: Path) -> None:
    torch.save({"model": model_state(trained)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is a model of version 0\.1\.0, which .*Train again with this version"):
        read_model(tmp_path / "model.pt")


def test_a_checkpoint_from_the_middle_of_a_training_is_named_as_that(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"is a checkpoint from the middle of a training.*Finish the .* --resume"):
        read_model(trained / "logs/checkpoints/checkpoint_epoch=3.pt")
