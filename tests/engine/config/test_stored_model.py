import pickle
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outputs import model_state

from aeflow_monai.engine.config.stored_model import read_model, write_saved


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no trained model at .*absent\.pt\. Train one first"):
        read_model(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="There is no trained model at"):
        read_model(tmp_path)  # a folder is no model


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_model_that_is_cut_short_is_named(tmp_path: Path, trained: Path, share: float) -> None:
    whole = (trained / "models/model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: int(share * len(whole))])
    fault = "an empty file" if share == 0 else "a file that is cut short"
    with pytest.raises(ValueError, match=rf"Expected the model\.pt that .* in .*model\.pt; got {fault}"):
        read_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content",
    [{"model": torch.zeros(2)}, torch.zeros(3), torch.nn.Linear(2, 2)],
)
def test_what_another_program_saved_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"got a file of another version of aeflow_monai, or of another program\."):
        read_model(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"model": 3}, {"model": {"weight": "none"}}])
def test_another_content_is_no_model(tmp_path: Path, content: Any) -> None:
    write_saved(tmp_path / "model.pt", content)
    with pytest.raises(ValueError, match=r"model\.pt is no model: expected the model\.pt that a training ends with"):
        read_model(tmp_path / "model.pt")


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("weights, promised\n")
    with pytest.raises(ValueError, match=r"got something else, beginning with b'weights,'\. Is it the right file\?"):
        read_model(tmp_path / "model.pt")


class Harm:
    """What a pickle runs when it is opened."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "with a hash"])
def test_code_in_a_file_is_not_run_and_nobody_advises_to_run_it(tmp_path: Path, kind: str) -> None:
    path, proof = tmp_path / "model.pt", tmp_path / "harmed"
    harm = {"model": {}, "config": Harm(proof)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(harm))
    elif kind == "torch":
        torch.save(harm, path)
    else:
        write_saved(path, harm)
    with pytest.raises(ValueError, match=r"model\.pt; got a file (of|with other) ") as raised:
        read_model(path)
    told = "".join(traceback.format_exception(raised.value))
    assert "weights_only" not in told
    if kind != "torch":
        assert "code. Nothing of it was run." in told
    assert not proof.exists()


def test_any_changed_bit_is_noticed(tmp_path: Path, trained: Path) -> None:
    whole = (trained / "models/model.pt").read_bytes()
    rng = np.random.default_rng(0)
    for place in [0, len(whole) - 1, *rng.integers(len(whole), size=40)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.integers(8)
        (tmp_path / "model.pt").write_bytes(changed)
        with pytest.raises(ValueError, match=r"in .*model\.pt; got "):
            read_model(tmp_path / "model.pt")


def test_nan_is_said_of_the_model(tmp_path: Path, trained: Path) -> None:
    content = torch.load(trained / "models/model.pt", weights_only=True)
    content["model"]["score.map_threshold"].fill_(torch.nan)
    write_saved(tmp_path / "model.pt", content)
    with pytest.raises(ValueError, match=r"model\.pt holds NaN or infinite values in score\.map_threshold: no "):
        read_model(tmp_path / "model.pt")


def test_a_checkpoint_from_the_middle_of_a_training_is_named_as_that(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"is a checkpoint from the middle of a training.*Finish the .* --resume"):
        read_model(trained / "logs/checkpoints/checkpoint_epoch=3.pt")


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}', '{"config": 3, "card": {}}', None])
def test_a_model_that_does_not_know_its_training_is_named(tmp_path: Path, trained: Path, text: str | None) -> None:
    write_saved(tmp_path / "model.pt", {"model": model_state(trained), "config": text})
    with pytest.raises(ValueError, match=r"model\.pt is no model: what it says of its training"):
        read_model(tmp_path / "model.pt")


def test_a_mark_of_the_hash_that_stands_elsewhere_is_none(tmp_path: Path, trained: Path) -> None:
    whole = (trained / "models/model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04aeflow_monai sha256 " + whole[:-90])
    with pytest.raises(ValueError, match=r"model\.pt; got"):
        read_model(tmp_path / "model.pt")
