import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import aeflow_monai
from aeflow_monai.data.phantom import write_phantom, write_phantom_slices
from aeflow_monai.score.calibration import calibrate

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "bundle/configs"
OVERLAYS = sorted(file.name for file in (ROOT / "configs").glob("*.yaml"))
MAPS = ("anomaly_map", "reconstruction", "residual", "log_likelihood")
# of a volume, by what turns them off
OUTPUTS = {
    **{flag: (f"{flag}.nii.gz",) for flag in (*MAPS, "mask")},
    "overlay": ("overlay.png",),
    "profile": ("slices.csv", "slices.png"),
}
REPORTS = {"metrics.json", "scores.csv", "localisation.json", "slice_scores.csv"}

Run = Callable[..., Any]
Options = dict[str, Any]


def files_below(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def model_state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit by bit."""
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def loss_curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def epochs_in_log(log: str) -> list[int]:
    """Epochs whose training loss is in the log, in its order."""
    return [int(number) for number in re.findall(r"Trainer - INFO - Epoch\[(\d+)\] Metrics -- .*train_loss", log)]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def root_error(raised: pytest.ExceptionInfo[BaseException]) -> BaseException:
    """What is below the errors in which MONAI wraps it."""
    return aeflow_monai.workflow.root_cause(raised.value)


def spatial(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Voxels and affine (RAS, mm) of an image in any format."""
    image = LoadImage(image_only=True, reader=["ITKReader", "NibabelReader"])(file)
    assert isinstance(image, MetaTensor)
    return image.numpy(), image.affine.numpy()


# --- training ---------------------------------------------------------------------------------------------------------


def test_run_train_writes_the_model_into_the_bundle_and_nothing_else(
    tmp_path: Path, volumes: Path, trained: Path, run_command: Run, tiny_training: Options
) -> None:
    bundle, cwd, home = tmp_path / "bundle", tmp_path / "elsewhere", tmp_path / "home"
    shutil.copytree(ROOT / "bundle", bundle, ignore=shutil.ignore_patterns("*.pt"))
    cwd.mkdir()
    before = files_below(bundle)
    done = run_command(
        "monai.bundle run train",
        bundle / "configs/train.yaml",
        cwd=cwd,
        home=home,
        dataset_dir=volumes,
        **tiny_training,
    )
    assert done.returncode == 0, done.stderr
    assert epochs_in_log(done.stdout) == [1, 2, 3]
    assert files_below(bundle) - before == {"models/model.pt"}
    assert not files_below(cwd)
    assert {name.split("/")[0] for name in files_below(home)} == {"train"}
    assert loss_curve(home / "train", "train_loss") == loss_curve(trained, "train_loss")
    assert str(bundle / "models/model.pt") in done.stdout
    assert differing(model_state(bundle / "models"), model_state(trained)) == []


def test_killed_and_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, volumes: Path, trained: Path, run_command: Run, tiny_training: Options
) -> None:
    options = {**tiny_training, "dataset_dir": volumes, "output_dir": tmp_path / "run"}
    kill = tmp_path / "kill_in_epoch_3.yaml"
    handler = "lambda engine: engine.state.epoch < 3 or os.kill(os.getpid(), 9)"
    event = "ignite.engine.Events.ITERATION_COMPLETED"
    kill.write_text(yaml.safe_dump({"+initialize": [f"$@train#trainer.add_event_handler({event}, {handler})"]}))
    killed = run_command("monai.bundle run train", ["train.yaml", kill], **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert epochs_in_log(killed.stdout) == [1, 2]
    assert not (tmp_path / "run/model.pt").exists()

    checkpoint = tmp_path / "run/checkpoints/checkpoint_epoch=2.pt"
    resumed = run_command("monai.bundle run", "train.yaml", resume=checkpoint, **options)
    assert resumed.returncode == 0, resumed.stderr
    assert epochs_in_log(resumed.stdout) == [3]
    for tag in ("train_loss", "train_flow_loss", "train_reconstruction_loss", "val_loss"):
        assert loss_curve(tmp_path / "run", tag) == loss_curve(trained, tag)
    assert differing(model_state(tmp_path / "run"), model_state(trained)) == []


def test_the_seed_decides_the_model(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_training: Options
) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        options = {**tiny_training, "seed": seed, "dataset_dir": str(volumes), "output_dir": str(tmp_path / name)}
        run_workflow("train.yaml", **options)
    assert differing(model_state(tmp_path / "same"), model_state(trained)) == []
    assert differing(model_state(tmp_path / "other"), model_state(trained))


def test_slices_kept_in_files_and_loaded_by_workers_train_the_same_model(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_training: Options
) -> None:
    kept = tmp_path / "slices"
    expected = {f"{name}/slices.{suffix}" for name in ("train", "calibration") for suffix in ("float32", "json")}
    written = []
    for name in ("first", "second"):
        options = {**tiny_training, "dataset_dir": str(volumes), "output_dir": str(tmp_path / name)}
        run_workflow("train.yaml", **options, slice_folder=str(kept), workers=2)
        assert differing(model_state(tmp_path / name), model_state(trained)) == []
        assert files_below(kept) == expected
        written.append({file: (kept / file).stat().st_mtime_ns for file in expected})
    assert written[0] == written[1]  # the second run took what the first one made


def test_two_processes_share_each_epoch_and_end_with_the_same_weights(
    tmp_path: Path, volumes: Path, run_command: Run, tiny_training: Options
) -> None:
    watch = tmp_path / "watch.yaml"
    taken = "list(zip(engine.state.batch['case'], engine.state.batch['slice'].tolist()))"
    event = "ignite.engine.Events.ITERATION_COMPLETED"
    notes = {
        "seen": "$[]",
        "+initialize": [
            f"$@train#trainer.add_event_handler({event}, lambda engine: @seen.append((engine.state.epoch, {taken})))"
        ],
        "+run": [
            "$torch.save({'weights': @network.state_dict(), 'seen': @seen}, '%s/rank%d.pt' % (@output_dir, @rank))"
        ],
    }
    watch.write_text(yaml.safe_dump(notes))
    done = run_command(
        "torch.distributed.run --standalone --nproc_per_node=2 -m monai.bundle run",
        ["train.yaml", "multi_gpu_train.yaml", watch],
        dataset_dir=volumes,
        output_dir=tmp_path,
        **{**tiny_training, "epochs": 2},
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    calibrated = ("term_", "map_", "share_", "slice_", "case_", "position.", "usual_")
    trained_only = [key for key in first["weights"] if not key.startswith(calibrated)]
    assert [key for key in trained_only if not torch.equal(first["weights"][key], second["weights"][key])] == []

    orders = []
    for epoch in (1, 2):
        shares = [[item for at, items in rank["seen"] if at == epoch for item in items] for rank in (first, second)]
        assert len(shares[0]) == len(shares[1]) == 50  # of 5 volumes of 20 slices; the sixth is held out
        assert len({tuple(item) for share in shares for item in share}) == 100
        orders.append(shares)
    assert orders[0] != orders[1]

    # one writer: a model, checkpoints and event files of rank 0 only, with the calibration that rank 1 has not
    assert differing(model_state(tmp_path), first["weights"]) == []
    assert torch.isinf(second["weights"]["case_threshold"])
    assert epochs_in_log(done.stdout) == [1, 2]
    assert [step for step, _ in loss_curve(tmp_path, "train_loss")] == [1, 2]


def test_tensorboard_holds_the_losses_in_their_parts_and_a_picture(trained: Path, tiny_training: Options) -> None:
    tags = events(trained).Tags()
    parts = {f"{kind}_{part}" for kind in ("train", "val") for part in ("loss", "flow_loss", "reconstruction_loss")}
    assert parts <= set(tags["scalars"])
    assert tags["images"] == ["image | reconstruction | anomaly map"]
    curves = {tag: dict(loss_curve(trained, tag)) for tag in parts}
    for kind in ("train", "val"):
        assert list(curves[f"{kind}_loss"]) == [1, 2, 3]
        for epoch, loss in curves[f"{kind}_loss"].items():
            alpha = tiny_training["alpha"]
            flow, reconstruction = (curves[f"{kind}_{part}"][epoch] for part in ("flow_loss", "reconstruction_loss"))
            assert loss == pytest.approx(alpha * flow + (1 - alpha) * reconstruction, rel=1e-5)


def test_a_training_that_diverges_leaves_an_earlier_model_untouched(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_training: Options
) -> None:
    shutil.copy(trained / "model.pt", tmp_path)
    options = {**tiny_training, "learning_rate": 1e20, "dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        run_workflow("train.yaml", **options)
    assert isinstance(root_error(raised), ValueError)
    assert "the training diverged. Lower learning_rate" in str(root_error(raised))
    assert (tmp_path / "model.pt").read_bytes() == (trained / "model.pt").read_bytes()
    assert not [name for name in files_below(tmp_path) if name.startswith(".")]


# --- labelled abnormal images ---------------------------------------------------------------------------------------


def test_without_abnormal_slices_the_mixture_changes_nothing(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_training: Options
) -> None:
    options = {**tiny_training, "dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    plain: Options = {
        "loss": {"_target_": "aeflow_monai.AEFlowLoss", "alpha": "@alpha"},
        "flow_loss": "$lambda out: @loss.flow_loss(out['pred'])",
        "reconstruction_loss": "$lambda out: @loss.reconstruction_loss(out['pred'], out['image'])",
        "initialize": ["$monai.utils.set_determinism(seed=@seed)"],  # without the check for keys that nothing reads
        "train#labelled": "@train#slices",
        "train#sampler": {
            "_target_": "torch.utils.data.distributed.DistributedSampler",
            "dataset": "@train#dataset",
            "num_replicas": 1,
            "rank": 0,
            "seed": "@seed",
        },
    }
    overlay = tmp_path / "plain.yaml"
    overlay.write_text(yaml.safe_dump(plain), encoding="utf-8")
    run_workflow(["train.yaml", overlay], **options)
    # weights, calibration and thresholds; so maps and scores too
    assert differing(model_state(tmp_path), model_state(trained)) == []
    for tag in ("train_loss", "train_flow_loss", "train_reconstruction_loss", "val_loss"):
        assert loss_curve(tmp_path, tag) == loss_curve(trained, tag)


def test_made_up_lesions_are_trained_on_and_the_model_is_used_as_any_other(
    tmp_path: Path, volumes: Path, run_workflow: Run, tiny_training: Options, tiny_network: Options
) -> None:
    options = {**tiny_training, "epochs": 2, "dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    workflow = run_workflow("train.yaml", **{**options, "lesion_copies": 1, "abnormal_distance": 1.5})
    slices = workflow.parser.get_parsed_content("train#dataset")
    n_normal = len(workflow.parser.get_parsed_content("train#slices"))
    assert len(slices) == 2 * n_normal
    assert not slices[0]["abnormal"].any()
    assert 0 < slices[n_normal]["abnormal"].mean() < 0.5
    assert not torch.equal(slices[0]["image"], slices[n_normal]["image"])
    held_out = workflow.parser.get_parsed_content("validate#dataset")
    assert "abnormal" not in held_out[0]
    for files in (["train.yaml", "evaluate.yaml"], ["inference.yaml", "evaluate.yaml"]):
        results = {"results_dir": str(tmp_path / files[0]), "ckpt_path": str(tmp_path / "model.pt")}
        named = {**tiny_network, "n_bootstrap": 10}
        evaluated = run_workflow(files, dataset_dir=str(volumes), **results, **named)
        # the distance is the checkpoint's, whatever the options say
        (first, _) = evaluated.parser.get_parsed_content("network").prior.means
        assert first.square().mean().sqrt().item() == pytest.approx(1.5)
    one, other = (table(tmp_path / name / "scores.csv") for name in ("train.yaml", "inference.yaml"))
    assert one == other


@pytest.mark.parametrize(
    ("n_slices", "options", "expected"),
    [
        (1600, {}, 6),
        (80, {}, 50),
        (8, {}, 200),
        (8, {"epochs": 3}, 3),
        (80, {"min_steps": 100}, 20),
        (80, {"batch_size": 8}, 25),
    ],
)
def test_small_sets_are_gone_through_more_often(n_slices: int, options: Options, expected: int) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    parser.update({**options, "train#slices": [{}] * n_slices})
    assert parser.get_parsed_content("n_epochs") == expected


@pytest.mark.parametrize(
    ("n_slices", "options", "expected"),
    [(1600, {}, 1), (80, {}, 7), (8, {}, 10), (80, {"lesion_copies": 2}, 2), (80, {"lesion_copies": 0}, 0)],
)
def test_small_sets_get_more_made_up_lesions(n_slices: int, options: Options, expected: int) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    parser.update({**options, "train#slices": [{}] * n_slices})
    assert parser.get_parsed_content("n_copies") == expected


def test_labelled_images_are_trained_on_and_the_model_is_used_as_any_other(
    tmp_path: Path, run_workflow: Run, tiny_training: Options, tiny_network: Options
) -> None:
    data = write_phantom_slices(tmp_path / "data", n_train=12, n_test_normal=4, n_test_abnormal=8)
    abnormal = data / "train/ABNORMAL"
    abnormal.mkdir()
    for image in sorted((data / "test/ABNORMAL").iterdir())[:4]:
        image.rename(abnormal / image.name)
        (data / "test_masks/ABNORMAL" / image.name).unlink()
    states, seen = [], []
    for count in (0, 3):
        folder = tmp_path / f"labelled_{count}"
        options = {**tiny_training, "epochs": 2, "dataset_dir": str(data), "output_dir": str(folder)}
        workflow = run_workflow(["train.yaml", "semi_supervised.yaml"], labelled_abnormal=count, **options)
        slices = workflow.parser.get_parsed_content("train#dataset")
        seen.append([item["case"] for item in map(slices.__getitem__, range(len(slices))) if item["abnormal"].any()])
        calibrated = workflow.parser.get_parsed_content("validate#slices").index
        assert {Path(item["file"]).parent.name for item in calibrated} == {"NORMAL"}
        states.append(model_state(folder))
        run_workflow(
            ["train.yaml", "evaluate.yaml"],
            dataset_dir=str(data),
            output_dir=str(folder),
            n_bootstrap=10,
            **tiny_network,
        )
        assert len(table(folder / "scores.csv")) == 8
    assert [len(cases) for cases in seen] == [0, 3]
    assert any("flows" in key for key in differing(*states))
    with pytest.raises(RuntimeError) as raised:
        run_workflow(["train.yaml", "semi_supervised.yaml"], labelled_abnormal=5, **options)
    assert "labelled_abnormal is 5, but the training section lists 4 usable images" in str(root_error(raised))


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_on_the_training_config_and_on_the_inference_config_is_the_same(
    tmp_path: Path,
    volumes: Path,
    trained: Path,
    run_workflow: Run,
    tiny_network: Options,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = []
    for base in ("train.yaml", "inference.yaml"):
        folder = tmp_path / base
        folder.mkdir()
        shutil.copy(trained / "model.pt", folder)
        run_workflow(
            [base, "evaluate.yaml"], dataset_dir=str(volumes), output_dir=str(folder), n_bootstrap=50, **tiny_network
        )
        assert files_below(folder) == {"model.pt", *REPORTS}
        written.append({name: (folder / name).read_bytes() for name in REPORTS})
        printed = capsys.readouterr().out
        for line in ("cases              6 (3 normal, 3 abnormal)", "AUROC ", "oracle: chosen on test labels"):
            assert line in printed
        assert "Not a medical device" in printed
    assert written[0] == written[1]

    metrics = json.loads(written[0]["metrics.json"])
    state = model_state(trained)
    assert metrics["threshold"] == pytest.approx(float(state["case_threshold"]))
    named = {"auroc", "average_precision", "f1", "accuracy", "sensitivity", "specificity"}
    assert {*named, *(f"{name}_ci95" for name in named), "oracle_best_f1", "all_abnormal_f1"} <= metrics.keys()
    assert {"n_normal", "n_abnormal", "n_bootstrap", "bootstrap_seed"} <= metrics.keys()
    assert metrics["baselines"].keys() == {"intensity_mean", "intensity_std", "intensity_p95"}

    rows = table(tmp_path / "train.yaml/scores.csv")
    assert {"case", "file", "label", "score", "prediction"} <= rows[0].keys()
    assert sorted((row["case"], row["label"]) for row in rows) == [
        *((f"test_abnormal_00{i}", "1") for i in range(3)),
        *((f"test_normal_00{i}", "0") for i in range(3)),
    ]
    for row in rows:
        assert int(row["prediction"]) == (float(row["score"]) > metrics["threshold"])
        assert Path(row["file"]).is_file()


def test_three_planes_from_training_to_maps(
    tmp_path: Path, volumes: Path, run_workflow: Run, tiny_training: Options, tiny_network: Options
) -> None:
    planes = {"axes": ["coronal", "axial", "sagittal"], "min_foreground": 0.05}
    where = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "run")}
    run_workflow("train.yaml", **where, **{**tiny_training, **planes, "epochs": 1, "slice_step": 4})
    run_workflow(["train.yaml", "evaluate.yaml"], **where, n_bootstrap=10, **{**tiny_network, **planes})
    scores = {row["case"]: row["score"] for row in table(tmp_path / "run/scores.csv")}
    assert len(scores) == 6

    image = volumes / "images/test_abnormal_000.nii.gz"
    off = {f"write_{flag}": False for flag in OUTPUTS if flag != "profile"}
    run_workflow(
        "inference.yaml",
        dataset_dir=str(image),
        output_dir=str(tmp_path / "maps"),
        ckpt_path=str(tmp_path / "run/model.pt"),
        saliency="plain",
        **{**tiny_network, **planes, **off},
    )
    names = ("saliency.nii.gz", *OUTPUTS["profile"])
    assert files_below(tmp_path / "maps") == {"scores.csv", *(f"test_abnormal_000_{name}" for name in names)}
    (row,) = table(tmp_path / "maps/scores.csv")
    assert float(row["score"]) == pytest.approx(float(scores["test_abnormal_000"]), rel=1e-5)
    voxels, affine = spatial(image)
    saliency, written_affine = spatial(tmp_path / "maps/test_abnormal_000_saliency.nii.gz")
    assert saliency.shape == voxels.shape
    np.testing.assert_allclose(written_affine, affine, atol=1e-5)
    assert np.isfinite(saliency).all()
    assert saliency.min() >= 0
    assert saliency.std() > 0
    # slices along the first plane are counted, from anterior
    coronal = next(axis for axis, code in enumerate(nib.aff2axcodes(nib.load(image).affine)) if code in "AP")
    assert 1 <= int(row["most_anomalous_slice"]) <= voxels.shape[coronal]
    profile = table(tmp_path / "maps/test_abnormal_000_slices.csv")
    assert [line["axis"] for line in profile if line["slice"] == "1"] == planes["axes"]
    assert len(profile) == sum(voxels.shape)
    scored = [line for line in profile if line["axis"] == "coronal" and line["score"]]
    assert max(scored, key=lambda line: float(line["score"]))["slice"] == row["most_anomalous_slice"]
    # in the report, slices count along the first plane
    assert {line["axis"] for line in table(tmp_path / "run/slice_scores.csv")} == {"coronal"}


# --- data without normal cases ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases as BraTS has them: in a folder each, all abnormal, of two modalities."""
    root = tmp_path_factory.mktemp("tumours")
    made_up = write_phantom(root / "phantom", n_train=0, n_test_normal=0, n_test_abnormal=4)
    for number in range(4):
        folder = root / f"brats/BraTS_{number:03}"
        folder.mkdir(parents=True)
        image = nib.load(made_up / f"images/test_abnormal_{number:03}.nii.gz")
        nib.save(image, folder / f"{folder.name}_flair.nii.gz")
        other = np.asarray(image.dataobj, dtype=np.float32) ** 2
        nib.save(nib.Nifti1Image(other, image.affine), folder / f"{folder.name}_t1.nii.gz")
        shutil.copy(made_up / f"masks/test_abnormal_{number:03}.nii.gz", folder / f"{folder.name}_seg.nii.gz")
    return root / "brats"


@pytest.mark.parametrize("modalities", [["flair"], ["flair", "t1"]])
def test_a_set_of_abnormal_cases_is_evaluated_on_slices_and_voxels(
    tmp_path: Path,
    tumours: Path,
    run_workflow: Run,
    tiny_training: Options,
    tiny_network: Options,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    modalities: list[str],
) -> None:
    data = {"dataset_dir": str(tumours), "layout": "brats", "modalities": modalities, "in_channels": len(modalities)}
    where = {**data, "test_fraction": 0.5, "output_dir": str(tmp_path / "run")}
    training = {**tiny_training, "epochs": 1, "lesion_free_slices": True}
    run_workflow("train.yaml", **where, **training)
    state = model_state(tmp_path / "run")
    assert state["aeflow.decoder.to_image.0.weight"].shape[1] == len(modalities)
    (tmp_path / "run/metrics.json").touch()  # of an earlier run
    run_workflow(["train.yaml", "evaluate.yaml"], **where, **tiny_network, n_bootstrap=10)
    assert "No metrics of cases: they need normal and abnormal cases, but all 2 that were read are abnormal." in (
        caplog.text
    )
    assert f"localisation: {tmp_path / 'run/localisation.json'}" in capsys.readouterr().out
    written = {name for name in files_below(tmp_path / "run") if "/" not in name}
    assert written == {"model.pt", *REPORTS} - {"metrics.json"}

    report = json.loads((tmp_path / "run/localisation.json").read_text())
    assert (report["n_volumes"], report["n_abnormal_volumes"], report["n_cases"]) == (2, 2, 2)
    tested = {row["case"] for row in table(tmp_path / "run/scores.csv")}
    masks = [np.asarray(nib.load(tumours / f"{case}/{case}_seg.nii.gz").dataobj) for case in sorted(tested)]
    assert report["n_lesion_voxels"] == sum(int((mask > 0).sum()) for mask in masks)
    size = sum(mask.size for mask in masks)
    assert 0.98 * size < report["n_voxels"] < size  # the darkest half percent counts as background
    assert 0 < report["n_abnormal_slices"] < report["n_slices"]
    assert 0 <= report["slice_auroc"] <= 1
    assert {row["case"] for row in table(tmp_path / "run/slice_scores.csv")} == tested

    off = {f"write_{flag}": False for flag in OUTPUTS}
    run_workflow(
        "inference.yaml",
        **data,
        **tiny_network,
        **off,
        output_dir=str(tmp_path / "maps"),
        ckpt_path=str(tmp_path / "run/model.pt"),
    )
    scores = {row["case"]: float(row["score"]) for row in table(tmp_path / "maps/scores.csv")}
    assert len(scores) == 4
    for row in table(tmp_path / "run/scores.csv"):
        assert scores[row["case"]] == pytest.approx(float(row["score"]), rel=1e-5)


@pytest.mark.parametrize(
    ("configs", "options", "said"),
    [
        ("train.yaml", {"test_fraction": 0.5}, "set lesion_free_slices to train on those of the 2 items with a mask"),
        (["train.yaml", "evaluate.yaml"], {}, "Or divide the patients, with --test_fraction 0.2"),
        (
            "train.yaml",
            {"lesion_free_slices": True, "modalities": ["flair", "t1"]},
            "The network takes 1 channels; 'image' has 2",
        ),
        (
            "train.yaml",
            {"lesion_free_slices": True, "modalities": ["t2"]},
            "lacks the modality t2; asked for t2; found",
        ),
    ],
)
def test_what_a_set_of_abnormal_cases_needs_is_said(
    tmp_path: Path,
    tumours: Path,
    trained: Path,
    run_workflow: Run,
    tiny_network: Options,
    configs: str | list[str],
    options: Options,
    said: str,
) -> None:
    shutil.copy(trained / "model.pt", tmp_path)
    with pytest.raises(RuntimeError) as raised:
        run_workflow(
            configs, dataset_dir=str(tumours), layout="brats", output_dir=str(tmp_path), **options, **tiny_network
        )
    assert said in str(root_error(raised))


def test_abnormal_cases_without_masks_are_not_evaluated(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_network: Options
) -> None:
    rows = [row for row in table(volumes / "manifest.csv") if row["abnormal"] == "1"]
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "abnormal"])
        writer.writerows([volumes / row["path"], "test", 1] for row in rows)
    shutil.copy(trained / "model.pt", tmp_path)
    options = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path), **tiny_network}
    with pytest.raises(RuntimeError) as raised:
        run_workflow(["train.yaml", "evaluate.yaml"], **options)
    message = str(root_error(raised))
    assert "got labels {1} and no masks. Label them or add masks, or use inference.yaml" in message
    assert files_below(tmp_path) == {"manifest.csv", "model.pt"}


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain_folder(tmp_path: Path, volumes: Path) -> Path:
    """Three volumes of different axis order, in folders of their own and without any list."""
    by_axes = {nib.aff2axcodes(nib.load(file).affine): file for file in sorted((volumes / "images").glob("*.nii.gz"))}
    assert len(by_axes) >= 3
    for number, file in enumerate(list(by_axes.values())[:3]):
        (tmp_path / f"plain/{number}").mkdir(parents=True)
        shutil.copy(file, tmp_path / f"plain/{number}/scan_{number}.nii.gz")
    return tmp_path / "plain"


@pytest.fixture
def low_threshold(tmp_path: Path, trained: Path) -> Path:
    """The trained model with a map threshold that a part of every image exceeds."""
    state = model_state(trained)
    state["map_threshold"].fill_(0.25)
    torch.save({"model": state}, tmp_path / "low.pt")
    return tmp_path / "low.pt"


def test_maps_of_a_plain_folder_lie_on_the_grids_of_their_volumes(
    tmp_path: Path, plain_folder: Path, low_threshold: Path, run_workflow: Run, tiny_network: Options
) -> None:
    out = tmp_path / "out"
    run_workflow(
        "inference.yaml",
        dataset_dir=str(plain_folder),
        output_dir=str(out),
        ckpt_path=str(low_threshold),
        **tiny_network,
    )
    names = [name for written in OUTPUTS.values() for name in written]
    assert files_below(out) == {"scores.csv", *(f"scan_{number}_{name}" for number in range(3) for name in names)}
    for number in range(3):
        source = nib.load(plain_folder / f"{number}/scan_{number}.nii.gz")
        arrays = {}
        for name in (*MAPS, "mask"):
            written = nib.load(out / f"scan_{number}_{name}.nii.gz")
            assert written.shape == source.shape
            np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
            assert written.get_data_dtype() == (np.uint8 if name == "mask" else np.float32)
            arrays[name] = np.asarray(written.dataobj)
            assert np.isfinite(arrays[name]).all()
        np.testing.assert_array_equal(arrays["mask"], arrays["anomaly_map"] > 0.25)
        assert 0 < arrays["mask"].mean() < 1
        assert arrays["reconstruction"].min() >= 0
        assert arrays["reconstruction"].max() <= 1
        assert arrays["residual"].min() >= 0
        # the reconstruction of a head is bright where the head is, in the file's own axes
        head = np.asarray(source.dataobj) > np.percentile(source.dataobj, 60)
        assert arrays["reconstruction"][head].mean() > 1.2 * arrays["reconstruction"][~head].mean()
        with Image.open(out / f"scan_{number}_overlay.png") as picture:
            assert min(picture.size) > 100
    rows = table(out / "scores.csv")
    assert [row["case"] for row in rows] == ["scan_0", "scan_1", "scan_2"]
    assert "label" not in rows[0]
    assert {row["prediction"] for row in rows} <= {"0", "1"}


@pytest.mark.parametrize("flag", OUTPUTS)
def test_each_output_can_be_turned_off(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_network: Options, flag: str
) -> None:
    options = {**tiny_network, "ckpt_path": str(trained / "model.pt"), f"write_{flag}": False}
    # one image file is a data set too
    image = volumes / "images/test_abnormal_000.nii.gz"
    run_workflow("inference.yaml", dataset_dir=str(image), output_dir=str(tmp_path), **options)
    left = [name for other, written in OUTPUTS.items() if other != flag for name in written]
    assert files_below(tmp_path) == {"scores.csv", *(f"test_abnormal_000_{name}" for name in left)}


def test_without_any_output_there_are_still_scores(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_network: Options
) -> None:
    off = {f"write_{flag}": False for flag in OUTPUTS}
    options = {**tiny_network, **off, "ckpt_path": str(trained / "model.pt")}
    run_workflow("inference.yaml", dataset_dir=str(volumes), output_dir=str(tmp_path), **options)
    assert files_below(tmp_path) == {"scores.csv"}
    # of a data set with a list it is the test images
    assert len(table(tmp_path / "scores.csv")) == 6


@pytest.mark.parametrize("extension", [".nrrd", ".mha", ".nii"])
def test_other_formats_hold_the_same_numbers_on_the_same_grid(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_network: Options, extension: str
) -> None:
    image = volumes / "images/test_abnormal_001.nii.gz"
    options = {**tiny_network, "dataset_dir": str(image), "ckpt_path": str(trained / "model.pt")}
    only = {f"write_{name}": False for name in ("reconstruction", "residual", "log_likelihood", "overlay")}
    for ext in (".nii.gz", extension):
        run_workflow("inference.yaml", output_dir=str(tmp_path / ext), output_ext=ext, **options, **only)
    _, affine = spatial(image)
    for name in ("anomaly_map", "mask"):
        reference, _ = spatial(tmp_path / f".nii.gz/test_abnormal_001_{name}.nii.gz")
        voxels, written_affine = spatial(tmp_path / f"{extension}/test_abnormal_001_{name}{extension}")
        np.testing.assert_array_equal(voxels, reference)
        np.testing.assert_allclose(written_affine, affine, atol=1e-3)


def test_png_slices_work_from_training_to_inference(
    tmp_path: Path, run_workflow: Run, tiny_training: Options, tiny_network: Options
) -> None:
    data = write_phantom_slices(tmp_path / "slices", n_train=6, n_test_normal=2, n_test_abnormal=2)
    where = {"dataset_dir": str(data), "output_dir": str(tmp_path / "run")}
    run_workflow("train.yaml", **where, **{**tiny_training, "epochs": 1})
    run_workflow(["train.yaml", "evaluate.yaml"], **where, n_bootstrap=10, **tiny_network)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["n_normal"], metrics["n_abnormal"]) == (2, 2)
    localisation = json.loads((tmp_path / "run/localisation.json").read_text())
    assert (localisation["n_volumes"], localisation["n_abnormal_volumes"], localisation["n_abnormal_slices"]) == (
        4,
        2,
        2,
    )
    assert len(table(tmp_path / "run/slice_scores.csv")) == 4

    image = data / "test/ABNORMAL/test_abnormal_000.png"
    run_workflow(
        "inference.yaml",
        dataset_dir=str(image.parent),
        output_dir=str(tmp_path / "maps"),
        ckpt_path=str(tmp_path / "run/model.pt"),
        **tiny_network,
    )
    voxels, affine = spatial(image)
    for name in (*MAPS, "mask"):
        written = nib.load(tmp_path / f"maps/test_abnormal_000_{name}.nii.gz")
        assert written.shape == voxels.shape
        np.testing.assert_allclose(written.affine, to_affine_nd(3, affine), atol=1e-6)
    # a slice of its own has no profile
    names = [name for flag, written in OUTPUTS.items() if flag != "profile" for name in written]
    expected = {f"test_abnormal_00{number}_{name}" for number in range(2) for name in names}
    assert files_below(tmp_path / "maps") == {"scores.csv", *expected}
    assert len(table(tmp_path / "maps/scores.csv")) == 2


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_a_misspelt_option_ends_the_run_with_its_name(volumes: Path, tmp_path: Path, run_command: Run) -> None:
    done = run_command("monai.bundle run", "train.yaml", dataset_dir=volumes, output_dir=tmp_path, epohcs=3)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("The run failed: ")
    assert "'epohcs' (did you mean 'epochs'?)" in last
    assert "Check the spelling" in last
    assert not files_below(tmp_path)


def test_a_missing_data_folder_ends_the_run_with_its_name(tmp_path: Path, run_command: Run) -> None:
    done = run_command("monai.bundle run train", "train.yaml", dataset_dir=tmp_path / "absent", output_dir=tmp_path)
    assert done.returncode != 0
    said = f"There is no file or folder {tmp_path / 'absent'}. Say where the images are with --dataset_dir."
    assert done.stderr.strip().splitlines()[-1] == f"The run failed: {said}"


@pytest.mark.parametrize(
    ("base", "overlay", "message"),
    [
        ("train.yaml", {"epohcs": 3}, "'epohcs' (did you mean 'epochs'?)"),
        ("train.yaml", {"train#dataloadr": 3}, "'train#dataloadr' (did you mean 'train#dataloader'?)"),
        ("train.yaml", {"train#handelrs": []}, "'train#handelrs' (did you mean 'train#handlers'?)"),
        ("train.yaml", {"validte": {"inferer": None}}, "'validte#inferer' (did you mean 'validate#inferer'?)"),
        ("inference.yaml", {"sw_batchsize": 3}, "'sw_batchsize' (did you mean 'sw_batch_size'?)"),
    ],
)
def test_a_misspelt_key_of_an_overlay_is_refused(
    tmp_path: Path, trained: Path, start_workflow: Run, base: str, overlay: Options, message: str
) -> None:
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    given = {"ckpt_path": str(trained / "model.pt")} if base == "inference.yaml" else {}
    with pytest.raises(RuntimeError) as raised:
        start_workflow([base, tmp_path / "overlay.yaml"], **given)
    assert message in str(root_error(raised))


def test_a_misspelt_argument_of_a_component_is_refused(volumes: Path, tmp_path: Path, run_workflow: Run) -> None:
    wrong = {"network_def#slice_share": 0.5, "dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        run_workflow("train.yaml", **wrong)
    assert "slice_share" in str(root_error(raised))


def test_the_readmes_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    model = tmp_path / "model.pt"
    torch.save({"model": parser.get_parsed_content("network").state_dict()}, model)
    assert "bundle/models/model.pt" in code
    monkeypatch.chdir(ROOT)
    names = {"images": torch.rand(2, 1, 128, 128)}
    exec(code.replace("bundle/models/model.pt", str(model)), names)
    assert tuple(names["anomaly_map"].shape) == (2, 1, 128, 128)
    assert tuple(names["scores"].shape) == (2,)


def write_pngs(folder: Path, names: Iterable[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize("config", ["train.yaml", "inference.yaml"])
def test_a_data_folder_without_images_is_refused(
    tmp_path: Path, trained: Path, run_workflow: Run, tiny_network: Options, config: str
) -> None:
    (tmp_path / "empty/NORMAL").mkdir(parents=True)
    (tmp_path / "empty/NORMAL/notes.txt").touch()
    given = {"ckpt_path": str(trained / "model.pt")} if config == "inference.yaml" else {}
    with pytest.raises(RuntimeError) as raised:
        run_workflow(config, dataset_dir=str(tmp_path / "empty"), output_dir=str(tmp_path), **given, **tiny_network)
    message = str(root_error(raised))
    assert message.startswith("No image in")
    assert str(tmp_path / "empty") in message
    assert "--dataset_dir" in message


def test_data_without_normals_are_refused(tmp_path: Path, run_workflow: Run, tiny_training: Options) -> None:
    write_pngs(tmp_path / "data", ["train/PNEUMONIA/a.png", "train/PNEUMONIA/b.png", "test/PNEUMONIA/c.png"])
    with pytest.raises(RuntimeError) as raised:
        run_workflow(
            "train.yaml", dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "run"), **tiny_training
        )
    message = str(root_error(raised))
    assert "is named NORMAL; found: PNEUMONIA" in message
    assert "--normal_classes" in message
    assert not (tmp_path / "run/model.pt").exists()


def test_a_model_is_calibrated_anew_on_normals_of_another_site(
    tmp_path: Path,
    volumes: Path,
    trained: Path,
    run_command: Run,
    run_workflow: Run,
    start_workflow: Run,
    tiny_network: Options,
) -> None:
    site = tmp_path / "site"  # its scanner has another contrast
    site.mkdir()
    for file in sorted((volumes / "images").glob("test_normal_*.nii.gz")):
        source = nib.load(file)
        voxels = source.get_fdata() ** 0.5
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), source.affine), site / file.name)
    options = {**tiny_network, "min_foreground": 0.0, "dataset_dir": str(site), "ckpt_path": str(trained / "model.pt")}
    configs = ["train.yaml", "calibrate.yaml"]
    done = run_command("monai.bundle run calibrate", configs, output_dir=str(tmp_path / "new"), **options)
    assert done.returncode == 0, done.stderr
    assert "normals of 3 patients cannot promise a specificity of 95%" in done.stdout
    assert f"model: {tmp_path / 'new/model.pt'}" in done.stdout
    old, new = model_state(trained), model_state(tmp_path / "new")
    changed = {name.partition(".")[0] for name in differing(old, new)}
    assert {"term_mean", "map_std", "position", "case_threshold"} <= changed
    assert "aeflow" not in changed
    # as cases of that site are scored from now on, none of its normals is above the threshold
    where = {"output_dir": str(tmp_path / "maps"), "ckpt_path": str(tmp_path / "new/model.pt")}
    run_workflow("inference.yaml", dataset_dir=str(site), **where, **tiny_network)
    assert [row["prediction"] for row in table(tmp_path / "maps/scores.csv")] == ["0"] * 3

    refused = run_command("monai.bundle run calibrate", configs, output_dir=str(trained), **options)
    assert refused.returncode != 0
    assert "Name a folder for the new model with --output_dir" in refused.stderr
    assert not differing(old, model_state(trained))
    again = start_workflow(configs, output_dir=str(tmp_path / "again"), keep_features="memory", **options)
    assert "features" not in again.parser.get_parsed_content("validate#dataset")[0]


def test_training_cases_tell_what_is_usual_where(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, tiny_training: Options
) -> None:
    workflow = start_workflow("train.yaml", dataset_dir=str(volumes), output_dir=str(tmp_path), **tiny_training)
    parser = workflow.parser
    usual = parser.get_parsed_content("train#usual")
    cases = {name for batch in usual for name in batch["case"]}
    assert cases == {entry["case"] for entry in parser.get_parsed_content("train#slices").index}
    assert not any(bool(batch["abnormal"].any()) for batch in usual)
    scorer = parser.get_parsed_content("network")
    scorer.load_state_dict(model_state(trained))
    position = scorer.position.mean.clone()
    held_out = parser.get_parsed_content("validate#dataloader")
    calibrate(scorer, held_out, fitted=usual)
    torch.testing.assert_close(scorer.position.mean, position, rtol=1e-3, atol=1e-3)  # as the training did
    calibrate(scorer, held_out)
    assert (scorer.position.mean - position).abs().max() > 0.05

    workflow = start_workflow(
        "train.yaml", dataset_dir=str(volumes), output_dir=str(tmp_path), slice_step=2, **tiny_training
    )
    assert not list(workflow.parser.get_parsed_content("train#usual"))


@pytest.mark.parametrize("configs", ["inference.yaml", ["train.yaml", "evaluate.yaml"]])
def test_a_missing_model_is_refused(
    tmp_path: Path, volumes: Path, start_workflow: Run, configs: str | list[str]
) -> None:
    place = {"ckpt_path": str(tmp_path / "model.pt")} if configs == "inference.yaml" else {"output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        start_workflow(configs, dataset_dir=str(volumes), **place)
    message = str(root_error(raised))
    assert f"no trained model at {tmp_path / 'model.pt'}" in message
    assert "train.yaml" in message


@pytest.mark.parametrize("other", [{"n_steps": 3}, {"stages": [3]}, {"hidden_channels": 16}, {"subnet": "resnet"}])
def test_a_model_of_another_architecture_is_refused(
    tmp_path: Path, volumes: Path, trained: Path, run_workflow: Run, tiny_network: Options, other: Options
) -> None:
    options = {**tiny_network, **other, "ckpt_path": str(trained / "model.pt"), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as raised:
        run_workflow("inference.yaml", dataset_dir=str(volumes), **options)
    message = str(root_error(raised))
    assert "another architecture" in message
    assert "Give the same config files and network options" in message


def test_a_missing_checkpoint_to_resume_from_is_refused(
    tmp_path: Path, volumes: Path, run_workflow: Run, tiny_training: Options
) -> None:
    options = {**tiny_training, "dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    with pytest.raises((RuntimeError, FileNotFoundError)) as raised:
        run_workflow("train.yaml", resume=str(tmp_path / "absent.pt"), **options)
    assert "absent.pt" in str(root_error(raised))


# --- the bundle's files -----------------------------------------------------------------------------------------------


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    verify_net_in_out(
        "network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        device="cpu",
        n=4,
    )


def test_the_trained_model_can_be_exported(
    tmp_path: Path, volumes: Path, trained: Path, start_workflow: Run, tiny_network: Options
) -> None:
    options = {"dataset_dir": str(volumes), "ckpt_path": str(trained / "model.pt"), **tiny_network}
    network = start_workflow("inference.yaml", **options).parser.get_parsed_content("network_def").eval()
    network.load_state_dict(model_state(trained))
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.rand(2, 1, 64, 64)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for n_images in (1, 5):
        image = torch.rand(n_images, 1, 64, 64)
        torch.testing.assert_close(loaded(image), network(image), atol=1e-5, rtol=0)


# TorchScript is deprecated by PyTorch, and a traced network fixes the comparisons of sizes: MONAI's command is served
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_export_of_monai_works_by_tracing(tmp_path: Path, trained: Path, tiny_network: Options) -> None:
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(trained / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        key_in_ckpt="model",
        use_trace=True,
        input_shape=[1, 1, 64, 64],
        **tiny_network,
    )
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    parser.update(tiny_network)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(model_state(trained))
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-5, rtol=0)


def test_metadata_is_complete() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    required = ("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task")
    for key in (*required, "description", "authors", "copyright", "network_data_format", "changelog"):
        assert metadata[key]
    assert metadata["version"] == aeflow_monai.__version__
    assert metadata["version"] in metadata["changelog"]
    assert metadata["required_packages_version"]["aeflow_monai"] == aeflow_monai.__version__


def test_the_folder_follows_the_model_zoo() -> None:
    for name in ("LICENSE", "docs/README.md", "configs/train.yaml", "configs/inference.yaml", "configs/logging.conf"):
        assert (ROOT / "bundle" / name).is_file(), name
    # a package `scripts` would collide with those of other bundles, and MONAI Label reads a task type off the name
    assert not list((ROOT / "bundle").rglob("*.py"))
    assert (ROOT / "bundle").resolve().name not in ("detection", "classification")


@pytest.mark.parametrize("configs", ["train.yaml", "inference.yaml", ["train.yaml", "evaluate.yaml"]])
def test_monai_finds_the_properties_of_a_bundle(
    volumes: Path, trained: Path, start_workflow: Run, tiny_network: Options, configs: str | list[str]
) -> None:
    given = {"ckpt_path": str(trained / "model.pt")} if configs == "inference.yaml" else {"output_dir": str(trained)}
    workflow: ConfigWorkflow = start_workflow(configs, dataset_dir=str(volumes), **given, **tiny_network)
    assert workflow.check_properties() == []


def test_ids_of_training_and_inference_have_the_same_value() -> None:
    train, inference = (yaml.safe_load((CONFIGS / name).read_text()) for name in ("train.yaml", "inference.yaml"))
    different = {key for key in train.keys() & inference.keys() if train[key] != inference[key]}
    assert different == {"imports", "initial_weights", "initialize", "run", "finalize"}
    assert set(inference["imports"]) <= set(train["imports"])


@pytest.mark.parametrize("base", ["train.yaml", "inference.yaml"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_hold_known_keys_only(
    volumes: Path, trained: Path, start_workflow: Run, base: str, overlay: str
) -> None:
    given = {"ckpt_path": str(trained / "model.pt")} if base == "inference.yaml" else {"output_dir": str(trained)}
    workflow: ConfigWorkflow = start_workflow([base, overlay], dataset_dir=str(volumes), **given)
    content = yaml.safe_load((ROOT / "configs" / overlay).read_text())
    assert {key: workflow.parser.get(key) for key in content} == content


def test_the_paper_overlay_is_the_published_network(volumes: Path, tmp_path: Path, start_workflow: Run) -> None:
    options = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), "encoder_weights": "random"}
    workflow: ConfigWorkflow = start_workflow(["train.yaml", "paper.yaml"], **options)
    network = workflow.parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        output = network.aeflow(torch.rand(1, 1, 256, 256))
    assert [tuple(latent.shape) for latent in output.latents] == [(1, 1024, 16, 16)]
    assert tuple(output.reconstruction.shape) == (1, 1, 256, 256)
    widths = [
        (layer.in_channels, layer.out_channels)
        for layer in network.aeflow.decoder.modules()
        if isinstance(layer, torch.nn.ConvTranspose2d)
    ]
    assert widths == [(1024, 512), (512, 256), (256, 64), (64, 1)]
    assert len(network.aeflow.flows[0].steps) == 8
    assert (network.scoring, network.beta, workflow.parser.get("alpha")) == ("paper", 0.9, 0.5)


# --- real data --------------------------------------------------------------------------------------------------------


def real_data(name: str) -> Path:
    """A set of real images, or the test is skipped."""
    folder = Path(os.environ.get("AEFLOW_DATA") or "absent", name)
    if not folder.is_dir():
        pytest.skip(f"real images are not here: set AEFLOW_DATA to a folder that holds {name}")
    return folder


def test_chest_xray_end_to_end(
    tmp_path: Path, run_workflow: Run, tiny_training: Options, tiny_network: Options
) -> None:
    source = real_data("chest_xray")
    rows = table(source / "manifest.csv")
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "abnormal"])
        for split, abnormal, count in (("train", "0", 24), ("train", "1", 4), ("test", "0", 6), ("test", "1", 6)):
            chosen = [row for row in rows if (row["split"], row["abnormal"]) == (split, abnormal)][:count]
            writer.writerows([source / row["path"], split, abnormal] for row in chosen)
    where = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "run")}
    own = {"min_foreground", "calibration_fraction", "alpha", "learning_rate"}  # what the protocol itself decides
    options = {key: value for key, value in tiny_training.items() if key not in own}
    run_workflow(["train.yaml", "chest_xray.yaml"], **where, **options)
    run_workflow(["train.yaml", "chest_xray.yaml", "evaluate.yaml"], **where, n_bootstrap=20, **tiny_network)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["n_normal"], metrics["n_abnormal"]) == (6, 6)
    assert 0 <= metrics["auroc"] <= 1


@pytest.mark.parametrize("name", ["nv_10labels/flair.nii.gz", "BRATS_HG0015/BRATS_HG0015_FLAIR.mha"])
def test_maps_of_real_volumes_keep_their_geometry(
    tmp_path: Path, trained: Path, run_workflow: Run, tiny_network: Options, name: str
) -> None:
    image = real_data("brain_mri") / name
    extension = ".mha" if image.suffix == ".mha" else ".nii.gz"
    run_workflow(
        "inference.yaml",
        dataset_dir=str(image),
        output_dir=str(tmp_path),
        output_ext=extension,
        ckpt_path=str(trained / "model.pt"),
        write_reconstruction=False,
        write_residual=False,
        write_log_likelihood=False,
        **tiny_network,
    )
    voxels, affine = spatial(image)
    case = image.name.removesuffix(extension)
    for key in ("anomaly_map", "mask"):
        written, written_affine = spatial(tmp_path / f"{case}_{key}{extension}")
        assert written.shape == voxels.shape
        np.testing.assert_allclose(written_affine, affine, atol=1e-4)
    assert (tmp_path / f"{case}_overlay.png").is_file()
