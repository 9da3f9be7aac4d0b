import hashlib
import json
import subprocess
from pathlib import Path

import numpy
import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from outputs import given_of

from aeflow_monai import AEFlow, Detector, Encoder
from aeflow_monai.about import __version__, versions
from aeflow_monai.data import Slicer
from aeflow_monai.engine import SlicedInferer
from aeflow_monai.engine.inference.runtimes import installed_runtimes
from aeflow_monai.engine.runs.run_record import RunRecord, describe_run, hashes_of
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import write_json
from aeflow_monai.result_files import RUN_RECORD
from aeflow_monai.score import Score


def test_versions_are_those_of_the_packages(tmp_path: Path) -> None:
    found = versions()
    assert (found["aeflow_monai"], found["numpy"]) == (__version__, numpy.__version__)
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"monai", "timm", "nibabel", "itk", "scikit-learn", "python"} <= found.keys()


def test_a_run_is_described_by_its_options_and_a_hash_of_all_of_its_config(trained: Path) -> None:
    config = trained / "configs/inference.yaml"
    first, same, other = (describe_run(given_of(config, **{"inferer#batch_size": n})) for n in (4, 4, 5))
    assert first["config_sha256"] == same["config_sha256"] != other["config_sha256"]
    assert first["options"]["image_size"] == [64, 64]
    assert "network_def" not in first["options"]
    assert (first["options"]["inferer#batch_size"], other["options"]["inferer#batch_size"]) == (4, 5)
    assert first["options"]["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert (first["config_files"], first["working_folder"]) == ([str(config)], str(Path.cwd()))
    assert json.loads(json.dumps(first)) == first


def test_a_checkout_has_its_commit(trained: Path) -> None:
    root = Path(__file__).parents[3]
    commit = describe_run(given_of(trained / "configs/inference.yaml"))["commit"]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert commit.removesuffix("-dirty") == head.stdout.strip()
    else:
        assert commit is None


def test_hashes_are_of_the_bytes_of_image_and_mask(tmp_path: Path) -> None:
    for name in ("t1", "t2", "mask"):
        (tmp_path / name).write_text(name)
    one, two, mask = (sha256_of(tmp_path / name) for name in ("t1", "t2", "mask"))
    image = str(tmp_path / "t1")
    assert hashes_of({"case": "a", "image": image, "lesion": str(tmp_path / "mask")}) == {
        "case": "a",
        "image_sha256": one,
        "lesion_sha256": mask,
    }
    both = hashlib.sha256((one + two).encode()).hexdigest()
    assert hashes_of({"case": "a", "image": [image, str(tmp_path / "t2")]}) == {"case": "a", "image_sha256": both}


def test_the_record_is_completed_when_all_cases_are_seen(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    data = [{"case": name, "image": str(tmp_path / name)} for name in "ab"]
    engine = Engine(lambda engine, batch: None)
    engine.register_events(*IterationEvents)
    RunRecord(tmp_path, data).attach(engine)
    engine.run(data)
    record = json.loads((tmp_path / RUN_RECORD).read_text())
    assert (record["state"], record["n_cases"], record["n_failed"]) == ("finished", 2, 0)
    assert record["inputs"] == [hashes_of(item) for item in data]


@pytest.mark.skipif("onnxruntime" not in installed_runtimes(), reason="needs the extra fast")
def test_the_record_names_the_runtime_that_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise RuntimeError("no such operation")

    monkeypatch.setattr("aeflow_monai.engine.inference.runtimes.kept_form", refuse)
    (tmp_path / "a").write_text("a")
    write_json(tmp_path / RUN_RECORD, {"state": "unfinished", "machine": {"cores": 2, "runtime": "onnxruntime"}})
    detector = Detector(AEFlow(Encoder(weights="random"), n_steps=1), Score(n_terms=3)).eval()
    detector.score.case_threshold.fill_(1.0)
    inferer = SlicedInferer(Slicer(["axial"], image_size=[64, 64]), runtime="auto")

    def look(engine: Engine, batch: object) -> None:
        inferer(torch.rand(1, 1, 64, 64, 1), detector)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

    engine = Engine(look)
    engine.register_events(*IterationEvents)
    RunRecord(tmp_path, [{"case": "a", "image": str(tmp_path / "a")}], inferer).attach(engine)
    engine.run([0])
    record = json.loads((tmp_path / RUN_RECORD).read_text(encoding="utf-8"))
    assert record["machine"] == {"cores": 2, "runtime": "torch"}
