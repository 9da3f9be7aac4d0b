"""The verbs of `aeflow`, in this process: the same results as by MONAI's command, exit codes, and what is said."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from aeflow_monai import Model, load_datalist
from aeflow_monai.cli.main import main
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import read_json
from aeflow_monai.result_tables import rows_of

# what `monai.bundle run` says of every config
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

Capture = pytest.CaptureFixture[str]


def sets(options: dict[str, Any]) -> list[str]:
    return [text for name, value in options.items() for text in ("--set", f"{name}={value}")]


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.rglob(pattern))}


@pytest.fixture
def own_bundle(tmp_path: Path, trained: Path) -> Path:
    """A copy of the trained bundle, whose model card may be completed."""
    return Path(shutil.copytree(trained, tmp_path / "bundle"))


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from aeflow_monai.cli.main import main\n"
        "try: main(['predict', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'monai', 'numpy', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:\n  aeflow predict scan.nii.gz -m RUN -o maps\n" in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_every_verb_shows_two_examples(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    known = {
        "demo",
        "train",
        "predict",
        "evaluate",
        "calibrate",
        "prepare",
        "compare",
        "doctor",
        "label",
        "bundle",
        "report",
    }
    assert known <= set(verbs)
    for verb in known:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        examples = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
        assert len(examples) >= 2
        assert all("aeflow " in line for line in examples)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_verbs(capsys: Capture, shell: str) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    said = capsys.readouterr().out
    assert "calibrate" in said
    assert "specificity" in said


def test_a_training_is_that_of_monais_command(
    tmp_path: Path, volumes: Path, trained: Path, tiny_training: dict[str, Any], capsys: Capture
) -> None:
    run = tmp_path / "RUN"
    epochs = str(tiny_training["epochs"])
    options = {name: value for name, value in tiny_training.items() if name != "epochs"}
    assert main(["train", str(volumes), "-o", str(run), "--epochs", epochs, "--device", "cpu", *sets(options)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"model: {run}", f"model card: {run / 'docs/README.md'}"]
    assert [line.partition(":")[0] for line in said.err.splitlines() if line.startswith("epoch ")] == [
        f"epoch {number}/{epochs}" for number in range(1, int(epochs) + 1)
    ]
    assert said.err.endswith(f"Next, if the data has a test split: aeflow evaluate {volumes} -m {run}\n")
    ours, theirs = (read_model(folder / "models/model.pt").state for folder in (run, trained))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "Engine run" in (run / "logs/train.log").read_text()


def test_the_command_that_comes_next_can_be_pasted(
    tmp_path: Path, volumes: Path, tiny_training: dict[str, Any], capsys: Capture
) -> None:
    data = shutil.copytree(volumes, tmp_path / "my volumes")
    run = tmp_path / "my RUN"
    options = sets({**tiny_training, "epochs": 1, "network_def#network#n_steps": 1})
    assert main(["train", str(data), "-o", str(run), *options]) == 0
    words, _, command = capsys.readouterr().err.splitlines()[-1].partition(": ")
    assert words == "Next, if the data has a test split"
    assert shlex.split(command) == ["aeflow", "evaluate", str(data), "-m", str(run)]
    assert main([*shlex.split(command)[1:], "-o", str(tmp_path / "RESULTS")]) == 0
    assert capsys.readouterr().err.endswith(f"Next: look at {tmp_path / 'RESULTS/report.html'} in a browser.\n")


def test_a_prediction_is_that_of_monais_command(
    tmp_path: Path, volumes: Path, trained: Path, inferred: Path, capsys: Capture
) -> None:
    ours = tmp_path / "ours"
    assert main(["predict", str(volumes), "-m", str(trained), "-o", str(ours)]) == 0
    for pattern in ("*.nii.gz", "*.csv", "*.png"):
        assert hashes(ours, pattern) == hashes(inferred, pattern) != {}
    said = capsys.readouterr().out
    assert "cases, " in said
    assert f"results: {ours}" in said
    assert read_json(ours / "run.json")["command"].startswith("python -m monai.bundle run --config_file ")


def test_several_images_and_lines_for_programs(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted(volumes.rglob("test_*.nii.gz"))[:2]
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(images[0].read_bytes()[:100])
    command = ["predict", *map(str, images), str(damaged), "-m", str(trained), "-o", str(tmp_path / "MAPS"), "--json"]
    assert main([*command, "--outputs", "anomaly_mask"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = {Path(line["file"]).name: line["state"] for line in lines}  # as they come: failures of reading are early
    assert states == {**{image.name: "scored" for image in images}, "damaged.nii.gz": "failed"}
    assert len(lines) == 3
    table = {row["case"]: row for row in rows_of(tmp_path / "MAPS/scores.csv")}
    for line in lines:
        assert line.pop("results") == str(tmp_path / "MAPS")
        if line.pop("state") == "scored":
            assert {name: "" if cell is None else str(cell) for name, cell in line.items()} == table[line["case"]]
    assert {path.name for path in (tmp_path / "MAPS").glob("*.nii.gz")} == {
        f"{image.name.removesuffix('.nii.gz')}_anomaly_mask.nii.gz" for image in images
    }


def test_images_that_are_all_abnormal_may_be_of_another_kind(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture
) -> None:
    shape = nib.load(next((volumes / "images").iterdir())).shape
    (tmp_path / "scans").mkdir()
    for number in range(10):
        noise = np.random.default_rng(number).integers(1, 1000, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / f"scans/{number}.nii.gz")
    command = ["predict", "-m", str(trained), "--outputs", "anomaly_mask", "-o"]
    assert main([*command, str(tmp_path / "maps"), str(tmp_path / "scans")]) == 0
    said = "Nearly all are above it. Images of another modality, scanner or preparation are, ill or not"
    assert said in capsys.readouterr().out
    nine = [str(tmp_path / f"scans/{number}.nii.gz") for number in range(9)]
    assert main([*command, str(tmp_path / "fewer"), *nine]) == 0
    assert said not in capsys.readouterr().out


def test_an_evaluation_says_what_matters(tmp_path: Path, volumes: Path, own_bundle: Path, capsys: Capture) -> None:
    command = ["evaluate", str(volumes), "-m", str(own_bundle), "-o", str(tmp_path / "RESULTS")]
    assert main(command) == 0
    metrics = read_json(tmp_path / "RESULTS/metrics.json")
    said = capsys.readouterr().out
    assert f"AUROC {metrics['auroc']:.3f} (" in said
    page = tmp_path / "RESULTS/report.html"
    assert f"report: {page}" in said
    written = page.read_text()
    page.unlink()
    assert main(["report", str(tmp_path / "RESULTS")]) == 0
    assert len(page.read_text()) > len(written) / 100
    assert main(command) == 2
    assert "Give another folder with -o, or replace them with --overwrite." in capsys.readouterr().err
    assert main([*command, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_dry_run_writes_nothing(tmp_path: Path, volumes: Path, trained: Path, capsys: Capture) -> None:
    model, out = ["-m", str(trained)], ["-o", "~nobody's/OUT", "--dry-run"]  # there is no such user
    assert main(["train", str(volumes), *out]) == 0
    said = capsys.readouterr().out
    assert "would train on 5 normal images of 5 patients; " in said
    assert "would set thresholds on 1 held-out normal image of 1 patient:" in said
    assert main(["predict", str(volumes), *model, *out]) == 0
    assert "would score 6 images" in capsys.readouterr().out
    assert main(["evaluate", str(volumes), *model, *out]) == 0
    assert "would evaluate on 6 images, 3 abnormal, 3 with a mask; " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_shard_says_how_many_studies_it_has(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture
) -> None:
    images = [item["image"] for item in load_datalist(volumes, "test")]
    (tmp_path / "list.txt").write_text("\n".join(images), encoding="utf-8")
    command = ["predict", str(tmp_path / "list.txt"), "-m", str(trained), "-o", str(tmp_path / "OUT"), "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "would score 6 studies of shard 1/1, but for those done:" in said
    assert said.count(".nii.gz") == 5
    assert "  and 1 more" in said
    assert main([*command, "--shard", "1/1000"]) == 0
    assert "would score 0 studies of shard 1/1000" in capsys.readouterr().out
    assert main([*command, "--set", "layuot=folder"]) == 2
    assert not (tmp_path / "OUT").exists()


def test_models_are_compared_case_by_case(tmp_path: Path, volumes: Path, own_bundle: Path, capsys: Capture) -> None:
    folder = tmp_path / "COMPARED"
    assert main(["compare", str(volumes), "-m", str(own_bundle), str(own_bundle), "-o", str(folder)]) == 0
    report = read_json(folder / "comparison.json")
    assert report["n"] == 6
    rows = rows_of(folder / "comparison.csv")
    assert [row["anomaly_score_1"] for row in rows] == [row["anomaly_score_2"] for row in rows]
    assert {float(row["rank_change"]) for row in rows} == {0.0}
    assert report["notes"] == [[], []]
    assert report["difference"] == 0
    assert report["p_value"] == 1
    assert "second minus first +0.000 (+0.000 to +0.000), p = 1, on 6 cases" in capsys.readouterr().out


def test_a_comparison_repeats_what_a_model_knows(
    tmp_path: Path, volumes: Path, own_bundle: Path, capsys: Capture
) -> None:
    known = load_datalist(volumes, "train")[:2]
    items = [*known, *(item for item in load_datalist(volumes, "test") if item["label"])]
    rows = [f"{item['image']},test,{item['label']}" for item in items]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,split,abnormal", *rows]), encoding="utf-8")
    folder = tmp_path / "COMPARED"
    command = ["compare", str(tmp_path / "manifest.csv"), "-m", str(own_bundle), str(own_bundle), "-o", str(folder)]
    assert main(command) == 0
    note = "2 of 5 test images were trained on, so this is no test."
    assert all(note in notes for notes in read_json(folder / "comparison.json")["notes"])
    assert capsys.readouterr().out.rpartition("sensitivity")[2].count(f"{own_bundle}: {note}") == 2


def test_models_of_other_normals_are_not_compared(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture
) -> None:
    stored, detector, models = read_model(model_path(trained)), Model(trained).detector, []
    for normal in ("HEALTHY", "SICK"):
        models.append(str(tmp_path / normal))
        write_bundle(tmp_path / normal, detector, {**stored.config, "normal_classes": [normal]}, stored.card)
    for item in load_datalist(volumes, "test"):
        folder = tmp_path / "DATA/test" / ("SICK" if item["label"] else "HEALTHY")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(item["image"], folder)
    command = ["compare", str(tmp_path / "DATA"), "-m", *models, "-o", str(tmp_path / "COMPARED")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "6 cases of 6 are normal for one model and abnormal for the other: " in said
    assert "give --set normal_classes=... to both" in said
    assert not (tmp_path / "COMPARED").exists()
    assert main([*command, "--dry-run"]) == 2
    assert main([*command, "--set", "normal_classes=[HEALTHY]"]) == 0


def test_models_of_other_modalities_are_compared_by_case(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture
) -> None:
    stored, detector, models = read_model(model_path(trained)), Model(trained).detector, []
    for modality in ("T1w", "FLAIR"):
        models.append(str(tmp_path / modality))
        config = {**stored.config, "layout": "bids", "modalities": [modality]}
        write_bundle(tmp_path / modality, detector, config, stored.card)
    for number, item in enumerate(load_datalist(volumes, "test")):
        for modality in ("T1w", "FLAIR"):
            image = tmp_path / f"DATA/sub-{number:02}/anat/sub-{number:02}_{modality}.nii.gz"
            image.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(item["image"], image)
        if item["label"]:
            mask = tmp_path / f"DATA/derivatives/sub-{number:02}/anat/sub-{number:02}_label-lesion_mask.nii.gz"
            mask.parent.mkdir(parents=True)
            shutil.copy(item["lesion"], mask)
    command = ["compare", str(tmp_path / "DATA"), "-m", *models, "-o", str(tmp_path / "COMPARED")]
    assert main(command) == 0
    report = read_json(tmp_path / "COMPARED/comparison.json")
    assert report["n"] == 6
    assert report["matched_by"] == "case"
    assert "Cases match by their names: the models take no file in common" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_an_interrupted_training_says_how_to_go_on_and_does(
    tmp_path: Path, volumes: Path, tiny_training: dict[str, Any], capsys: Capture
) -> None:
    run = tmp_path / "RUN"
    command = ["train", str(volumes), "-o", str(run), *sets({**tiny_training, "epochs": 10, "train#slices#step": 2})]
    with subprocess.Popen(
        [Path(sys.executable).with_name("aeflow"), *command],
        stderr=subprocess.PIPE,
        text=True,
        # of tests in the background of a shell, whose processes ignore the signal
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("epoch 2/10: ") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        last = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in last
    said, _, again = last.rpartition("Go on with:\n  ")
    assert "Interrupted. " in said
    assert " is kept. " in said
    assert shlex.split(again) == ["aeflow", "train", str(volumes), "-o", str(run), "--resume"]
    assert main(shlex.split(again)[1:]) == 0
    assert (run / "models/model.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere", "-o", "RUN"], "There is no file or folder"),
        (["train", "{data}", "-o", "RUN", "--set", "epochs=abc"], "epochs: expected a whole number of 1 or more"),
        (["train", "{data}", "-o", "RUN", "--resume"], "There is no checkpoint in"),
        (["train", "{data}", "-o", "RUN", "--epochs", "2", "--set", "epochs=3"], "epochs is given already, as '2'"),
        (["predict", "{data}", "-m", "nowhere", "-o", "MAPS"], "Expected the folder of a training, with nowhere"),
        (["predict", "{data}", "-m", "{model}", "-o", "MAPS", "--set", "image_size=[32,32]"], "image_size"),
        (["report", "nowhere"], "nowhere"),
        (["bundle", "nowhere"], "There is no trained model at"),
        (["config", "chest"], "There is no config 'chest'"),
    ],
)
def test_wrong_use_ends_with_one_message(
    tmp_path: Path,
    volumes: Path,
    trained: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(data=volumes, model=trained) for argument in arguments]) == 2
    said = capsys.readouterr().err
    _, error, text = said.rpartition("error: ")
    assert error
    assert message in text
    assert len(text.splitlines()) <= 5
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_every_config_that_is_listed_can_be_asked_for(capsys: Capture) -> None:
    assert main(["config"]) == 0
    head, *rows = [line.rstrip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert head == ["name", "file"]
    assert {"train", "chest_xray", "paper", "multi_gpu_train"} <= {name for name, _ in rows}
    for name, file in rows:
        assert main(["config", name]) == 0
        assert capsys.readouterr().out == f"['{file}']\n"
