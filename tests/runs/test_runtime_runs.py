"""Evaluations by each runtime: same scores and thresholds, and the record and the model card say which it was."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from monai.utils import optional_import

from conftest import RunWorkflow

FAST = [name for name in ("onnxruntime", "openvino") if optional_import(name)[1] and optional_import("onnx")[1]]


@pytest.mark.skipif(not FAST, reason="needs the extra fast")
def test_evaluations_by_each_runtime_say_the_same(
    trained: Path, volumes: Path, run_workflow: RunWorkflow, tmp_path: Path
) -> None:
    bundle = tmp_path / "RUN"
    shutil.copytree(trained, bundle)
    rows = {}
    for runtime in ("torch", FAST[0]):
        results = tmp_path / runtime
        options = {"dataset_dir": str(volumes), "output_dir": str(results), "runtime": runtime, "n_bootstrap": 10}
        run_workflow(bundle / "configs/evaluate.yaml", **options)
        with (results / "scores.csv").open(encoding="utf-8") as stream:
            rows[runtime] = list(csv.DictReader(stream))
        assert json.loads((results / "run.json").read_text(encoding="utf-8"))["machine"]["runtime"] == runtime
    for one, other in zip(*rows.values(), strict=True):
        assert float(one["anomaly_score"]) == pytest.approx(float(other["anomaly_score"]), abs=1e-3)
        assert (one["case"], one["threshold"], one["prediction"]) == (
            other["case"],
            other["threshold"],
            other["prediction"],
        )
    card = (bundle / "docs/README.md").read_text(encoding="utf-8")
    assert f"| runtime | {FAST[0]} |" in card
