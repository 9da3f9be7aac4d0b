import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import ForkServer
from outputs import (
    BUNDLE,
    LOSSES,
    contents,
    differing,
    epochs_in_log,
    events,
    files_below,
    loss_curve,
    model_state,
    said,
    table,
    unequal,
)
from PIL import Image

from aeflow_monai import calibrate, config_files

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("aeflow_monai", "bundle", "configs")

Run = Callable[..., Any]
Options = dict[str, Any]

pytestmark = pytest.mark.end_to_end


def source_files() -> set[str]:
    found = {f"{name}/{file}" for name in SOURCES for file in files_below(ROOT / name)}
    return {file for file in found if "__pycache__" not in file}


# --- what a training leaves -------------------------------------------------------------------------------------------


def test_a_training_without_a_folder_writes_a_bundle_below_the_home_folder_and_nothing_else(
    tmp_path: Path, volumes: Path, trained: Path, run_command: Run, tiny_training: Options
) -> None:
    cwd, home = tmp_path / "elsewhere", tmp_path / "home"
    cwd.mkdir()
    before = source_files()
    train = ROOT / "bundle/configs/train.yaml"
    options = {"dataset_dir": volumes, **tiny_training}
    done = run_command("monai.bundle run train", train, cwd=cwd, home=home, fresh=True, **options)
    assert done.returncode == 0, done.stderr
    assert epochs_in_log(done.stdout) == [1, 2, 3]
    assert source_files() == before
    assert not files_below(cwd)
    (folder,) = (home / "runs").iterdir()
    assert {name.split("/")[0] for name in files_below(home)} == {"runs"}
    assert f"output folder: {folder}\n" in done.stdout
    assert f"bundle: {folder}\nmodel card: {folder / 'docs/README.md'}\n" in done.stdout
    # as the same training that is started from Python
    assert differing(model_state(folder), model_state(trained)) == []
    assert loss_curve(folder, "train_loss") == loss_curve(trained, "train_loss")
    assert files_below(folder) > BUNDLE
    assert unequal(folder, trained, BUNDLE - {"models/model.pt", "configs/metadata.json"}) == []
    (command,) = (each["command"] for each in json.loads((folder / "logs/run.json").read_text())["commands"])
    words = shlex.split(command)
    assert words[:6] == ["python", "-m", "monai.bundle", "run", "train", f"--config_file={[str(train)]}"]
    assert "--epochs=3" in words


def test_killed_and_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path,
    volumes: Path,
    trained: Path,
    run_workflow: Run,
    fork_server: ForkServer,
    tiny_training: Options,
) -> None:
    folder = tmp_path / "run"
    options = {**tiny_training, "dataset_dir": str(volumes), "output_dir": str(folder)}
    script = f"""
import os
from ignite.engine import Events
from aeflow_monai import Workflow, config_files
workflow = Workflow(config_files("train"), workflow_type="train", logging_file=False, **{options!r})
workflow.initialize()
trainer = workflow.parser.get_parsed_content("train#trainer")
trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: trainer.state.epoch < 3 or os.kill(os.getpid(), 9))
workflow.run()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = fork_server.run(["-c", script], tmp_path, environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "models").exists()

    checkpoint = folder / "logs/checkpoints/checkpoint_epoch=2.pt"
    run_workflow(folder / "configs/train.yaml", resume=str(checkpoint), dataset_dir=str(volumes))
    for tag in LOSSES:
        assert loss_curve(folder, tag) == loss_curve(trained, tag)
    assert differing(model_state(folder), model_state(trained)) == []
    assert unequal(folder, trained, BUNDLE - {"models/model.pt", "configs/metadata.json"}) == []


def test_another_seed_gives_another_model(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_training: Options
) -> None:
    # that the same seed gives the same one is seen above
    run_workflow("train.yaml", **{**tiny_training, "seed": 1}, dataset_dir=str(volumes), output_dir=str(tmp_path))
    assert differing(model_state(tmp_path), model_state(trained))


def test_slices_kept_in_files_and_loaded_by_workers_train_the_same_model(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, start_workflow: Run, tiny_training: Options
) -> None:
    kept, run = tmp_path / "cache", tmp_path / "run"
    slices = {f"{name}/slices.{suffix}" for name in ("train", "calibration") for suffix in ("float32", "json")}
    options = {**tiny_training, "dataset_dir": str(volumes), "cache_dir": str(kept)}
    run_workflow("train.yaml", **options, output_dir=str(run), **{"train#dataloader#num_workers": 2})
    assert differing(model_state(run), model_state(trained)) == []
    assert files_below(kept) == slices
    assert files_below(run) > BUNDLE
    assert str(kept) not in (run / "configs/train.yaml").read_text()
    # a second run takes the slices that the first one made
    written = {file: (kept / file).stat().st_mtime_ns for file in slices}
    parser = start_workflow("train.yaml", **options, output_dir=str(tmp_path / "again")).parser
    for section in ("train", "validate"):
        assert len(parser.get_parsed_content(f"{section}#dataset")) in (100, 20)
    assert {file: (kept / file).stat().st_mtime_ns for file in slices} == written


def test_two_processes_train_the_model_of_one_also_if_resumed(
    tmp_path: Path,
    volumes: Path,
    run_command: Run,
    run_workflow: Run,
    fork_server: ForkServer,
    tiny_training: Options,
) -> None:
    # with lesions, of which the processes have different numbers
    options = {**tiny_training, "epochs": 2, "lesion_copies": 1, "acquisition_copies": 1}
    watch, run = tmp_path / "watch.yaml", tmp_path / "run"
    batch = "engine.state.batch"
    abnormal = f"({batch}['abnormal'].amax(dim=(1, 2, 3)) > 0).tolist()"
    taken = f"list(zip({batch}['case'], {batch}['slice'].tolist(), {abnormal}))"
    note, event = "$@train#trainer.add_event_handler(", "ignite.engine.Events.ITERATION_COMPLETED"
    # in its folded form, which a probe goes through alone
    is_encoder = "type(module).__name__ == '_Scaled' and len(given[0]) > 1"
    taken_by_encoder = (
        f"lambda module, given: @encoded.extend(given[0].sum(dim=(1, 2, 3)).tolist() if {is_encoder} else [])"
    )
    noted = "{'weights': @network.state_dict(), 'seen': @seen, 'encoded': @encoded}"
    notes = {
        "seen": "$[]",
        "encoded": "$[]",
        "+initialize": [
            f"$torch.nn.modules.module.register_module_forward_pre_hook({taken_by_encoder})",
            f"{note}ignite.engine.Events.STARTED, lambda engine: @encoded.append(None))",  # pictures are encoded anew
            f"{note}{event}, lambda engine: @seen.append((engine.state.epoch, {taken})))",
        ],
        "+run": [f"$torch.save({noted}, '{tmp_path}/rank%d.pt' % @rank)"],
    }
    watch.write_text(yaml.safe_dump(notes))

    options_of_two = {**options, "batch_size": 4}

    def told(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
        assert done.returncode == 0, done.stderr
        return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]

    done = run_command(
        "torch.distributed.run --standalone --nproc_per_node=2 -m monai.bundle run",
        ["train.yaml", "multi_gpu_train.yaml", watch],
        threads=1,  # each, of two cores
        fresh=True,
        dataset_dir=volumes,
        output_dir=run,
        cache_dir=tmp_path / "cache",
        **options_of_two,
    )
    first, second = told(done)
    weights = [key for key in first["weights"] if key.startswith("network.")]
    assert [key for key in weights if not torch.equal(first["weights"][key], second["weights"][key])] == []

    orders = []
    for epoch in (1, 2):
        shares = [[item for at, items in rank["seen"] if at == epoch for item in items] for rank in (first, second)]
        assert len(shares[0]) == len(shares[1]) == 150  # of 100 slices and copies, and half as many with lesions
        assert sum(not abnormal for share in shares for *_, abnormal in share) >= 200
        orders.append(shares)
    assert orders[0] != orders[1]

    # one writer: a bundle, checkpoints and event files of rank 0 only, with the calibration that rank 1 has not
    assert differing(model_state(run), first["weights"]) == []
    assert torch.isinf(second["weights"]["score.case_threshold"])
    assert epochs_in_log(done.stdout) == [1, 2]
    assert [step for step, _ in loss_curve(run, "train_loss")] == [1, 2]
    assert files_below(run) > BUNDLE

    # one process with the same global batches, which sums in another order
    alone = tmp_path / "alone"
    one = run_workflow("train.yaml", **options, dataset_dir=str(volumes), output_dir=str(alone)).parser
    expected = model_state(alone)
    for key in weights:
        torch.testing.assert_close(first["weights"][key], expected[key], rtol=1e-4, atol=1e-5, msg=key)
    for tag in LOSSES:
        assert dict(loss_curve(run, tag)) == pytest.approx(dict(loss_curve(alone, tag)), rel=1e-4)
    # each slice went through the encoder of one of them, once
    slices = [one.get_parsed_content(f"{section}#dataset").slices for section in ("train", "validate")]
    sums = [float(item["image"].sum()) for part in slices for item in part]
    encoded = [rank["encoded"][: rank["encoded"].index(None)] for rank in (first, second)]
    assert min(map(len, encoded)) > 0.4 * len(sums)  # in batches of 8
    assert sorted(encoded[0] + encoded[1]) == pytest.approx(sorted(sums), rel=1e-5)
    assert not list((tmp_path / "cache").rglob("features*"))

    # a resumed training goes on in both processes, and ends with the same model
    given = {
        "config_file": config_files("train", "multi_gpu_train", str(watch)),
        "dataset_dir": volumes,
        "output_dir": tmp_path / "resumed",
        "resume": run / "logs/checkpoints/checkpoint_epoch=1.pt",
        **options_of_two,
    }
    words = ["-m", "monai.bundle", "run", *(f"--{name}={value}" for name, value in given.items())]
    done = fork_server.run(words, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"}, ranks=2)
    resumed_ranks = told(done)
    assert epochs_in_log(done.stdout) == [2]
    for rank, resumed in zip((first, second), resumed_ranks, strict=True):
        assert resumed["seen"] == [(epoch, items) for epoch, items in rank["seen"] if epoch == 2]
        assert differing(resumed["weights"], rank["weights"]) == []
    assert differing(model_state(tmp_path / "resumed"), model_state(run)) == []


def test_tensorboard_holds_the_losses_in_their_parts_and_a_picture(trained: Path) -> None:
    tags = events(trained).Tags()
    parts = {f"{kind}_{part}" for kind in ("train", "val") for part in ("loss", "flow_loss", "reconstruction_loss")}
    assert parts <= set(tags["scalars"])
    assert tags["images"] == ["image | reconstruction | anomaly map"]
    curves = {tag: dict(loss_curve(trained, tag)) for tag in parts}
    for kind in ("train", "val"):
        assert list(curves[f"{kind}_loss"]) == [1, 2, 3]
        for epoch, loss in curves[f"{kind}_loss"].items():
            flow, reconstruction = (curves[f"{kind}_{part}"][epoch] for part in ("flow_loss", "reconstruction_loss"))
            assert loss == pytest.approx(0.5 * flow + 0.5 * reconstruction, rel=1e-5)


def test_a_training_that_diverges_leaves_no_model(
    tmp_path: Path, volumes: Path, run_workflow: Run, tiny_training: Options
) -> None:
    options = {**tiny_training, "learning_rate": 1000, "dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        run_workflow("train.yaml", **options)
    assert "the training diverged. Lower learning_rate" in said(raised)
    assert not {name for name in files_below(tmp_path) if name.startswith(("models", "docs", "."))}


def test_a_trained_model_is_not_written_over(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, tiny_training: Options
) -> None:
    run = shutil.copytree(trained, tmp_path / "RUN")
    resume = {"resume": str(run / "logs/checkpoints/checkpoint_epoch=2.pt")}
    (tmp_path / "second.yaml").write_text("initialize: []\n")  # and without its checks
    for config, options in (
        ("train.yaml", tiny_training),
        (run / "configs/train.yaml", resume),
        (["train.yaml", tmp_path / "second.yaml"], tiny_training),
        (run / "configs/calibrate.yaml", {}),
    ):
        with pytest.raises(RuntimeError) as raised:
            start_workflow(config, dataset_dir=str(volumes), output_dir=str(run), **options).run()
        lost, among = (
            f"{run} holds a trained model, which would be lost",
            f"output_dir is the folder of the model, {run}",
        )
        assert (among if "calibrate" in str(config) else lost) in said(raised)
    assert contents(run) == contents(trained)


def test_training_cases_tell_what_is_normal_at_each_place(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, tiny_training: Options
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    parser = start_workflow("train.yaml", **where, **tiny_training).parser
    fitted = parser.get_parsed_content("train#fitted")
    cases = {name for batch in fitted for name in batch["case"]}
    assert cases == {entry["case"] for entry in parser.get_parsed_content("train#slices").index}
    assert not any(bool(batch["abnormal"].any()) for batch in fitted)
    detector = parser.get_parsed_content("network")
    detector.load_state_dict(model_state(trained))
    position = detector.score.position_norm.mean.clone()
    held_out = parser.get_parsed_content("validate#dataloader")
    calibrate(detector, held_out, fitted=fitted)
    torch.testing.assert_close(detector.score.position_norm.mean, position, rtol=1e-3, atol=1e-3)  # as the training did
    calibrate(detector, held_out)
    assert (detector.score.position_norm.mean - position).abs().max() > 0.05

    parser = start_workflow("train.yaml", **where, **tiny_training, **{"train#slices#step": 2}).parser
    assert not list(parser.get_parsed_content("train#fitted"))


# --- abnormal slices --------------------------------------------------------------------------------------------------


def test_without_abnormal_slices_the_mixture_changes_nothing(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_training: Options
) -> None:
    flow, reconstruction = (
        {"_target_": "ignite.metrics.Average", "output_transform": f"$lambda out: @loss.{call}"}
        for call in ("flow_loss(out['pred'])", "reconstruction_loss(out['pred'], out['image'])")
    )
    plain: Options = {
        "loss": {"_target_": "aeflow_monai.network.AEFlowLoss", "alpha": 0.5},
        "train#labelled": "@train#slices",
        "train#sampler": {
            "_target_": "torch.utils.data.distributed.DistributedSampler",
            "dataset": "@train#dataset",
            "num_replicas": 1,
            "rank": 0,
            "seed": "@seed",
        },
        "train#trainer#additional_metrics": {"train_flow_loss": flow, "train_reconstruction_loss": reconstruction},
        "validate#evaluator#additional_metrics": {},
    }
    preset = tmp_path / "plain.yaml"
    preset.write_text(yaml.safe_dump(plain), encoding="utf-8")
    run = tmp_path / "run"
    run_workflow(["train.yaml", preset], **tiny_training, dataset_dir=str(volumes), output_dir=str(run))
    # weights, calibration and thresholds; so maps and scores too
    assert differing(model_state(run), model_state(trained)) == []
    for tag in LOSSES:
        assert loss_curve(run, tag) == loss_curve(trained, tag)


def test_synthetic_lesions_are_trained_on_and_the_model_is_used_as_any_other(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_training: Options
) -> None:
    options = {**tiny_training, "epochs": 2, "lesion_copies": 1, "loss#prior#distance": 1.5}
    workflow = run_workflow("train.yaml", **options, dataset_dir=str(volumes), output_dir=str(tmp_path / "run"))
    slices = workflow.parser.get_parsed_content("train#dataset")
    n_normal = len(workflow.parser.get_parsed_content("train#slices"))
    assert len(slices) == 2 * n_normal
    assert not slices[0]["abnormal"].any()
    assert 0 < slices[n_normal]["abnormal"].mean() < 0.5
    assert not torch.equal(slices[0]["image"], slices[n_normal]["image"])
    assert "abnormal" not in workflow.parser.get_parsed_content("validate#dataset")[0]
    (first, _) = workflow.parser.get_parsed_content("loss").prior.means
    assert first.square().mean().sqrt().item() == pytest.approx(1.5)
    # the model is that of any other training: what the loss knows of abnormal latents is no part of it
    assert model_state(tmp_path / "run").keys() == model_state(trained).keys()
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "maps")}
    run_workflow(tmp_path / "run/configs/inference.yaml", **where, outputs=[])
    assert len(table(tmp_path / "maps/scores.csv")) == 6


def test_labelled_images_are_trained_on_and_the_model_is_used_as_any_other(
    tmp_path: Path, png_slices: Path, run_workflow: Run, tiny_training: Options
) -> None:
    data = shutil.copytree(png_slices, tmp_path / "data")
    abnormal = data / "train/ABNORMAL"
    abnormal.mkdir()
    for image in sorted((data / "test/ABNORMAL").iterdir())[:4]:
        image.rename(abnormal / image.name)
        (data / "test_masks/ABNORMAL" / image.name).unlink()
    states, seen = [], []
    for count in (0, 3):
        run = tmp_path / f"labelled_{count}"
        options = {**tiny_training, "epochs": 1, "dataset_dir": str(data), "output_dir": str(run)}
        workflow = run_workflow(["train.yaml", "semi_supervised.yaml"], labelled_abnormal=count, **options)
        slices = workflow.parser.get_parsed_content("train#dataset")
        seen.append([item["case"] for item in map(slices.__getitem__, range(len(slices))) if item["abnormal"].any()])
        calibrated = workflow.parser.get_parsed_content("validate#slices").index
        assert {Path(item["file"]).parent.name for item in calibrated} == {"NORMAL"}
        states.append(model_state(run))
        assert f"- `labelled_abnormal`: {count} (default null)" in (run / "docs/README.md").read_text()
    assert [len(cases) for cases in seen] == [0, 3]
    assert any("flows" in key for key in differing(*states))
    where = {"dataset_dir": str(data), "output_dir": str(tmp_path / "results")}
    run_workflow(run / "configs/evaluate.yaml", **where, n_bootstrap=10)
    assert len(table(tmp_path / "results/scores.csv")) == 9
    options["output_dir"] = str(tmp_path / "labelled_5")
    with pytest.raises(RuntimeError) as raised:
        run_workflow(["train.yaml", "semi_supervised.yaml"], labelled_abnormal=5, **options)
    assert "labelled_abnormal is 5, but the training section lists 4 usable images" in said(raised)


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_a_command_that_fails_ends_with_what_is_wrong(tmp_path: Path, volumes: Path, run_command: Run) -> None:
    done = run_command("monai.bundle run", "train.yaml", dataset_dir=volumes, output_dir=tmp_path, epohcs=3)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("The run failed: The config has keys that nothing reads: ")
    assert "'epohcs' (did you mean 'epochs'?)" in last
    assert "Check the spelling" in last
    assert not files_below(tmp_path)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ({"epohcs": 3}, "'epohcs' (did you mean 'epochs'?)"),
        ({"train#dataloadr": 3}, "'train#dataloadr' (did you mean 'train#dataloader'?)"),
        ({"train#handelrs": []}, "'train#handelrs' (did you mean 'train#handlers'?)"),
        ({"validte": {"inferer": None}}, "'validte#inferer' (did you mean 'validate#inferer'?)"),
    ],
)
def test_a_misspelt_key_of_a_preset_is_refused(
    tmp_path: Path, start_workflow: Run, preset: Options, message: str
) -> None:
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))
    with pytest.raises(RuntimeError) as raised:
        start_workflow(["train.yaml", tmp_path / "preset.yaml"])
    assert message in said(raised)


@pytest.mark.parametrize("wrong", ["network_def#score#slice_share", "loss#normal#alhpa", "train#slices#stpe"])
def test_a_misspelt_argument_of_a_component_is_refused(
    tmp_path: Path, volumes: Path, run_workflow: Run, tiny_training: Options, wrong: str
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        run_workflow("train.yaml", **tiny_training, **where, **{wrong: 0.5})
    assert wrong.rpartition("#")[2] in said(raised)
    assert not files_below(tmp_path)


def write_pngs(folder: Path, names: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def refusal(run: Run, configs: Any, **options: Any) -> str:
    with pytest.raises((RuntimeError, FileNotFoundError)) as raised:
        run(configs, **options)
    return said(raised)


def test_missing_data_are_named(tmp_path: Path, trained: Path, run_workflow: Run) -> None:
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    where = {"output_dir": str(tmp_path / "run")}
    said_of_absent = f"There is no file or folder {absent}. Say where the images are with --dataset_dir."
    assert refusal(run_workflow, "train.yaml", dataset_dir=str(absent), **where) == said_of_absent
    (empty / "NORMAL").mkdir(parents=True)
    (empty / "NORMAL/notes.txt").touch()
    said_of_empty = refusal(run_workflow, "train.yaml", dataset_dir=str(empty), **where)
    assert said_of_empty.startswith("No image in")
    assert str(empty) in said_of_empty
    assert "--dataset_dir" in said_of_empty
    # a bundle knows no data
    said_of_none = refusal(run_workflow, trained / "configs/train.yaml", **where)
    assert said_of_none == "Say where the images are with --dataset_dir <folder>."
    assert not (tmp_path / "run").exists()


def test_data_without_normals_are_refused(tmp_path: Path, run_workflow: Run, tiny_training: Options) -> None:
    write_pngs(tmp_path / "data", ["train/PNEUMONIA/a.png", "train/PNEUMONIA/b.png", "test/PNEUMONIA/c.png"])
    where = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "run")}
    message = refusal(run_workflow, "train.yaml", **where, **tiny_training)
    assert "is named NORMAL; found: PNEUMONIA" in message
    assert "--normal_classes" in message
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_to_resume_from_is_refused(
    tmp_path: Path, volumes: Path, run_workflow: Run, tiny_training: Options
) -> None:
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "run")}
    message = refusal(run_workflow, "train.yaml", resume=str(tmp_path / "absent.pt"), **where, **tiny_training)
    assert f"There is no checkpoint at {tmp_path / 'absent.pt'}." in message
    assert "logs/checkpoints/checkpoint_epoch=<n>.pt" in message
