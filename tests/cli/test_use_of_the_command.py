"""What a user of `aeflow` gets wrong, or has in an unusual way: refusals, names, interruptions."""

import codecs
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outputs import files_below

from aeflow_monai.cli.main import main
from aeflow_monai.files import read_json

# what `monai.bundle run` says of every config
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def own_bundle(tmp_path: Path, trained: Path) -> Path:
    """A copy of the trained bundle, whose model card may be completed."""
    return Path(shutil.copytree(trained, tmp_path / "bundle"))


def test_a_dry_run_tells_what_the_run_would_be_refused_for(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    monkeypatch.chdir(tmp_path)
    image = volumes / "images/test_normal_000.nii.gz"
    maps = ["predict", str(image), "-m", str(trained), "-o", "MAPS"]
    (tmp_path / "FOREIGN").mkdir()
    (tmp_path / "FOREIGN/scores.csv").write_text("mine")
    assert main([*maps, "--outputs", "profile", "--quiet"]) == 0
    refused = [
        (maps, "or replace them with --overwrite."),
        ([*maps, "--overwrite", "--outputs", "pictures"], "outputs: expected a list of some of"),
        ([*maps, "--overwrite", "--set", "bogus=1"], "keys that nothing reads: 'bogus'"),
        ([*maps, "--overwrite", "--set", "bogus#x=1"], "the config has no bogus"),
        ([*maps, "--overwrite", "--device", "gpu7"], "device: expected a device"),
        ([*maps[:-1], "FOREIGN"], "FOREIGN holds scores.csv, which no run of this package wrote"),
        ([*maps[:3], "nowhere", *maps[4:]], "Expected the folder of a training, with nowhere"),
        (["train", str(volumes), "-o", str(trained)], "holds a trained model, which would be lost"),
        (["train", str(volumes), "-o", "RUN", "--epochs", "0"], "epochs: expected a whole number"),
        (["train", str(volumes), "-o", "RUN", "--set", "stages=[9]"], "has feature stages 0 to 4; got stages=[9]"),
        (["train", str(volumes), "-o", "RUN", "--set", "intensity#upper=0.2"], "0 <= lower < upper <= 100"),
    ]
    of_others = files_below(trained)
    for command, message in refused:
        capsys.readouterr()
        assert main(command) == 2
        real = capsys.readouterr().err.rpartition("error: ")[2]
        assert message in real
        before = written()
        assert main([*command, "--dry-run"]) == 2
        assert capsys.readouterr().err.rpartition("error: ")[2] == real
        assert written() == before
    assert files_below(trained) == of_others
    assert main([*maps, "--overwrite", "--dry-run"]) == 0
    assert written() == before


def test_a_dry_run_counts_what_can_be_used(tmp_path: Path, volumes: Path, trained: Path, capsys: Capture) -> None:
    data = tmp_path / "DATA"
    data.mkdir()
    image = sorted(volumes.rglob("test_*.nii.gz"))[0]
    for name in ("a.nii.gz", "b\n.nii.gz"):
        shutil.copy(image, data / name)
    command = ["predict", str(data), "-m", str(trained), "-o", str(tmp_path / "MAPS"), "--outputs", "profile"]
    assert main([*command, "--dry-run"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("would score 1 image:\n")
    assert "1 cannot be used:\n" in said.out
    assert said.err.endswith("error: Of 2 images 1 cannot be used. Mend or remove them.\n")
    assert main([*command, "--dry-run", "--json"]) == 1
    states = sorted(json.loads(line)["state"] for line in capsys.readouterr().out.splitlines())
    assert states == ["would fail", "would run"]
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out.startswith("1 case, ")
    assert len(said.err.rpartition("error: ")[2].splitlines()) == 1


def test_what_the_command_gives_cannot_be_set_otherwise(tmp_path: Path, trained: Path, capsys: Capture) -> None:
    # else the summary would be of another folder than the run
    for option in ("dataset_dir=x", "output_dir=x", "run_id=train", "args_file=x"):
        given = ["predict", str(trained), "-m", str(trained), "-o", str(tmp_path / "MAPS"), "--set", option]
        assert main(given) == 2
        assert f"--set {option}: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_paths_of_the_standard_input(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = map(str, sorted(volumes.rglob("test_*.nii.gz"))[:2])
    text = f"{first}\r\n   \r\n\n{second} \n{first}\n{os.path.relpath(first)}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(codecs.BOM_UTF8 + text.encode())))
    command = ["predict", "-", "-m", str(trained), "-o", str(tmp_path / "MAPS"), "--outputs", "profile", "--json"]
    assert main(command) == 0
    assert [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()] == [first, second]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-16"))))  # as PowerShell writes it
    assert main([*command, "--overwrite"]) == 0
    assert [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()] == [first, second]
    for stdin, message in (
        (None, "Expected paths of images"),
        (io.TextIOWrapper(io.BytesIO(b"\xff.nii.gz\n")), "\\udcff.nii.gz"),
        (io.TextIOWrapper(io.BytesIO(text.encode("utf-16-le"))), "Expected text in the standard input, in UTF-8"),
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main([*command, "--overwrite"]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said


def test_two_folders_of_files_are_refused_by_name(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture
) -> None:
    folders = [str(volumes), str(tmp_path)]
    assert main(["predict", *folders, "-m", str(trained), "-o", str(tmp_path / "MAPS")]) == 2
    assert f"{volumes} is a folder without DICOM files. Give one folder alone" in capsys.readouterr().err


def test_names_are_told_as_they_are_in_full(tmp_path: Path, volumes: Path, trained: Path, capsys: Capture) -> None:
    data = tmp_path / "DATA"
    data.mkdir()
    names = ["=1+1", "-lead", "[red]x", "long" * 20]
    for name in names:
        shutil.copy(sorted(volumes.rglob("test_*.nii.gz"))[0], data / f"{name}.nii.gz")
    command = ["predict", str(data), "-m", str(trained), "-o", str(tmp_path / "MAPS"), "--outputs", "profile"]
    assert main([*command, "--json"]) == 0
    assert {json.loads(line)["case"] for line in capsys.readouterr().out.splitlines()} == {*names}
    assert main([*command, "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert sum(any(line.startswith(f"{name} ") for name in names) for line in said.splitlines()) == 3
    assert "…" not in said


def test_signs_that_an_encoding_lacks_end_no_run(
    tmp_path: Path, volumes: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "ü.nii.gz"
    shutil.copy(sorted(volumes.rglob("test_*.nii.gz"))[0], image)
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["predict", str(image), "-m", str(trained), "-o", str(tmp_path / "MAPS"), "--outputs", "profile"]) == 0
    out.flush()
    assert b"\\xfc" in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_comparison_looks_at_both_models_first_and_goes_on(
    tmp_path: Path, volumes: Path, own_bundle: Path, capsys: Capture
) -> None:
    folder, data = tmp_path / "COMPARED", tmp_path / "DATA"
    shutil.copytree(volumes, data)
    next(data.rglob("test_abnormal*0.nii.gz")).write_bytes(b"no image")
    command = ["compare", str(data), "-o", str(folder), "-m", str(own_bundle)]
    assert main([*command, str(tmp_path / "nowhere")]) == 2
    assert main([*command, str(own_bundle), "--dry-run"]) == 0
    assert not folder.exists()
    capsys.readouterr()
    assert main([*command, str(own_bundle), "--json"]) == 1
    assert read_json(folder / "comparison.json")["n"] == 5
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = [line.get("state") for line in lines]
    assert sorted(states[1:7]) == sorted(states[8:14]) == ["failed", *["scored"] * 5]
    begun = [lines[index] for index in (0, 7)]
    assert [Path(line["results"]).name for line in begun] == ["1-bundle", "2-bundle"]
    assert lines[14]["n"] == 5
    assert main([*command, str(own_bundle)]) == 2
    assert "holds a comparison" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["predict", "evaluate", "calibrate", "compare", "train", "demo", "doctor"])
def test_an_interruption_says_how_to_begin_again(
    tmp_path: Path, volumes: Path, trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Also where a library makes another error of it, as matplotlib does of one in its import."""

    def interrupted(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError("too many values to unpack") from None

    monkeypatch.setattr("aeflow_monai.cli.terminal.Terminal.say", interrupted)
    monkeypatch.setattr("aeflow_monai.cli.terminal.Terminal.result", interrupted)
    data, model, out = str(volumes), ["-m", str(trained)], ["-o", str(tmp_path / "OUT")]
    given = {
        "predict": [data, *model, *out],
        "evaluate": [data, *model, *out],
        "calibrate": [data, *model, *out],
        "compare": [data, *model, str(trained), *out],
        "train": [data, *out],
        "demo": out,
        "doctor": [],
    }[verb]
    assert main([verb, *given]) == 130
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert shlex.join(["aeflow", verb, *given]) in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_while_it_starts_has_no_traceback() -> None:
    code = "import signal, sys; from aeflow_monai.cli.main import main\n"
    code += "class Finder:\n    def find_spec(self, name, *_):\n"
    code += "        if name == 'rich': signal.raise_signal(signal.SIGINT)\n"
    code += "sys.meta_path.insert(0, Finder()); sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted. Nothing was begun.\n")


def test_the_doctor_sees_a_folder_that_cannot_be_written(
    tmp_path: Path, trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEFLOW_HOME", "/proc/self/nowhere")
    assert main(["doctor", "-m", str(tmp_path)]) == 2
    assert "FAIL  disk: nothing can be written to /proc/self/nowhere" in capsys.readouterr().out
    assert main(["predict", "a.nii", "b.nii", "-m", str(trained), "-o", str(tmp_path / "MAPS")]) == 2
    assert "Set AEFLOW_HOME to a folder" in capsys.readouterr().err


def test_a_wrong_path_is_told_before_anything_large_is_imported(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/model").symlink_to(trained)
    program = "import sys; from aeflow_monai.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for arguments, said in (
        (
            ["predict", "nowhere.nii", "-m", "demo/model", "-o", "MAPS"],
            f"There is no file or folder {tmp_path}/nowhere",
        ),
        (["evaluate", ".", "-m", "demo"], "no such file. Did you mean demo/model?"),
        (["train", "nowhere", "-o", "RUN"], "There is no file or folder"),
    ):
        command = [sys.executable, "-c", program, *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        assert ended.stdout == "2 False\n"
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}


def test_no_verb_and_a_mistyped_one(capsys: Capture) -> None:
    assert main([]) == 2
    assert "calibrate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["evalute", "DATA"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith("Did you mean evaluate?")
