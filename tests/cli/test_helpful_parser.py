"""What is said of a command that was typed wrongly."""

from pathlib import Path

import pytest

from aeflow_monai.cli.main import main
from aeflow_monai.cli.parsers import parser


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "train DATA -o RUN --ephocs 3",
            "aeflow train: error: unrecognized arguments: --ephocs 3. Did you mean --epochs?",
        ),
        ("train DATA -o RUN --ephocs=3", "Did you mean --epochs?"),
        (
            "train DATA -o RUN --epoch 3",
            "Did you mean --epochs?",
        ),  # no abbreviations
        ("train DATA -o RUN --image_size 64", "An option of the config goes behind --set: --set image_size=VALUE"),
        ("predict A -m RUN -o maps --output-ext .nrrd", "goes behind --set: --set output_ext=VALUE"),
        ("evaluate D -m R -o X --layout bids", "goes behind --set: --set layout=VALUE"),
        ("evaluate D -m R -o X --n_bootstrap 3", "goes behind --set: --set n_bootstrap=VALUE"),
        ("compare D -m A B --series 3", "goes behind --set: --set series=VALUE"),
        ("train DATA -o RUN --slicer#fit pad", "goes behind --set: --set slicer#fit=VALUE"),
        ("train DATA -o RUN --output_dir X", "Did you mean --output?"),
        ("predict A -m RUN -o maps --epochs 3", "unrecognized arguments: --epochs 3\n"),
        ("train DATA -o RUN --nonsense", "aeflow train: error: unrecognized arguments: --nonsense\n"),
        ("train DATA more -o RUN", "aeflow train: error: unrecognized arguments: more\n"),
        (
            "predict a.png -m RUN -o maps --output anomaly_map",
            "given twice, as maps and as anomaly_map. Did you mean --outputs?",
        ),
        ("export RUN --to onnx -o a -o b", "argument -o/--output: given twice, as a and as b\n"),
        ("compare DATA -m A -m B", "Give both behind one -m: -m RUN_A RUN_B"),
        ("trian DATA", "Did you mean train?"),
        ("--nonsense", "aeflow: error:"),
    ],
)
def test_what_may_be_meant_is_named(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_advice_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("healthy", "sick"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "RUN")]) == 2
    said = capsys.readouterr().err
    assert "=..." not in said
    assert "--set \"normal_classes=['NORMAL']\"" in said
