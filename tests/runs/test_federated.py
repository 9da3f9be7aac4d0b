"""The example of a federated training, docs/examples/federated: what travels, and a job in NVFlare's simulator."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outputs import BUNDLE, files_below, model_state

from aeflow_monai import Workflow, config_files
from aeflow_monai.data.phantom_files import write_phantom_slices

EXAMPLE = Path(__file__).parent.parent.parent / "docs/examples/federated"


@pytest.fixture(scope="module")
def client() -> Any:
    """The script of a site, as a module."""
    spec = importlib.util.spec_from_file_location("federated_client", EXAMPLE / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def detector(**options: Any) -> Any:
    """The network of a site and its score, as they are before the training."""
    parser = Workflow(config_files("train"), workflow_type="train", logging_file=False, device="cpu", **options).parser
    return parser.get_parsed_content("network")


def test_flows_and_decoder_travel_and_nothing_else(client: Any) -> None:
    site = detector()
    state = client.travelling_state(site.network)
    trained = [name for name, value in site.network.named_parameters() if value.requires_grad]
    norms = [f"flows.{stage}.norm.{kind}" for stage in (0, 1) for kind in ("mean", "std")]
    assert sorted(state) == sorted([*trained, *norms])  # no encoder, no calibration, no score
    assert sum(value.size for value in state.values()) == 521_585


def test_a_state_that_was_sent_is_taken_and_one_of_another_network_is_refused(
    client: Any, tiny_training: dict[str, Any]
) -> None:
    options = {name: value for name, value in tiny_training.items() if name.startswith("network_def")}
    torch.manual_seed(0)
    first, second = (detector(**options).network for _ in range(2))
    state = client.travelling_state(first)
    assert any(not np.array_equal(value, state[name]) for name, value in client.travelling_state(second).items())
    encoder = {name: value.clone() for name, value in second.encoder.state_dict().items()}
    client.load_travelling_state(second, state)
    assert all(np.array_equal(value, state[name]) for name, value in client.travelling_state(second).items())
    assert all(torch.equal(value, encoder[name]) for name, value in second.encoder.state_dict().items())
    with pytest.raises(ValueError, match=r"differ, as .* Give all sites the same options"):
        client.load_travelling_state(second, client.travelling_state(detector().network))


def test_the_server_takes_the_mean_weighed_by_slices(client: Any, tiny_training: dict[str, Any]) -> None:
    aggregation = pytest.importorskip(
        "nvflare.app_common.aggregators.weighted_aggregation_helper", reason="NVFlare is not installed"
    )
    options = {name: value for name, value in tiny_training.items() if name.startswith("network_def")}
    states = [client.travelling_state(detector(**options).network) for _ in range(2)]
    helper = aggregation.WeightedAggregationHelper()
    for name, state, n_slices in zip(("north", "south"), states, (30, 10), strict=True):
        helper.add(data=state, weight=n_slices, contributor_name=name, contribution_round=0)
    for name, mean in helper.get_result().items():
        np.testing.assert_allclose(mean, 0.75 * states[0][name] + 0.25 * states[1][name], rtol=1e-5, atol=1e-7)


def test_two_sites_train_one_flow_and_calibrate_it_for_themselves(
    tmp_path: Path, client: Any, tiny_training: dict[str, Any]
) -> None:
    pytest.importorskip("nvflare.app_common.workflows.fedavg", reason="NVFlare is not installed")
    names = ("north", "south")
    for seed, (name, n_train) in enumerate(zip(names, (16, 8), strict=True)):
        write_phantom_slices(tmp_path / "sites" / name, n_train=n_train, n_test_normal=0, n_test_abnormal=0, seed=seed)
    options = {name: value for name, value in tiny_training.items() if name != "epochs"}
    command = [sys.executable, str(EXAMPLE / "job.py"), "--data", str(tmp_path / "sites")]
    command += ["--output", str(tmp_path / "out"), "--rounds", "2"]
    command += [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    sites = [tmp_path / "out" / name for name in names]
    states = [model_state(site) for site in sites]
    for site in sites:
        assert files_below(site) > BUNDLE
    differ = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert differ
    assert all(name.startswith("score.") for name in differ)  # one network, two calibrations
    start = client.travelling_state(detector(**options).network)
    assert any(not np.array_equal(states[0][f"network.{name}"], value) for name, value in start.items())


def test_a_job_for_real_sites_is_written(tmp_path: Path) -> None:
    pytest.importorskip("nvflare.app_common.workflows.fedavg", reason="NVFlare is not installed")
    given = ["--data", "/data", "--output", "/out", "--export", str(tmp_path), "--sites", "north", "south"]
    command = [sys.executable, str(EXAMPLE / "job.py"), *given, "--set", "image_size=[64, 64]"]
    subprocess.run(command, check=True, timeout=240)
    for name in ("north", "south"):
        site = tmp_path / "aeflow" / f"app_{name}"
        assert (site / "custom/client.py").read_text() == (EXAMPLE / "client.py").read_text()
        (executor,) = json.loads((site / "config/config_fed_client.json").read_text())["executors"]
        assert executor["executor"]["args"]["command"][-2:] == ["--set", "image_size=[64, 64]"]
