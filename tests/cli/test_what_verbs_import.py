"""Verbs that score nothing start without the large libraries: torch and MONAI take seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest
from archive_runs import a_shard

PROGRAM = (
    "import sys\n"
    "from aeflow_monai.cli.main import main\n"
    "print(main(sys.argv[1:]), sorted({'torch', 'monai', 'ignite', 'nibabel', 'pydicom'} & set(sys.modules)))"
)


def run(folder: Path, *arguments: str) -> tuple[str, str]:
    """What the command prints in a new interpreter, to both streams; and its exit code, and what it has imported."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ended = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True
    )
    said, _, code_and_imports = ended.stdout.rstrip("\n").rpartition("\n")
    return said, code_and_imports


def test_a_report_of_shards(tmp_path: Path) -> None:
    a_shard(tmp_path, 1, "a")
    said, ended = run(tmp_path, "report", ".")
    assert said.startswith("1 study: 1 done, 0 failed, 0 open\n1 case, 1 above the threshold of 0.40, 0 failed\n")
    assert "\nnot begun: 2/2\n" in said
    assert ended == "1 []"
    assert not (tmp_path / "report.html").exists()
    a_shard(tmp_path, 2, "b")
    said, ended = run(tmp_path, "report", ".")
    page = tmp_path / "report.html"
    assert said == (
        "2 studies: 2 done, 0 failed, 0 open\n2 cases, 2 above the threshold of 0.40, 0 failed\n"
        f"results: {tmp_path}\nreport: {page}"
    )
    assert ended == "0 []"
    assert page.is_file()
    assert run(tmp_path, "report", ".", "--json")[0] == (
        '{"done": 2, "failed": 0, "open": 0, "missing_shards": [], "shards": 2}'
    )


def test_a_report_of_one_inference(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("case,file,anomaly_score\na,a.png,0.5\n")
    assert run(tmp_path, "report", ".") == (f"report: {tmp_path}/report.html", "0 []")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("report", "empty"), 2, "There is no scores.csv in {}/empty. Give the folder of a finished inference"),
        (("report", "absent"), 2, "There is no scores.csv in {}/absent. Give the folder of a finished inference"),
        (("config", "train", "chest_xray"), 0, "configs/chest_xray.yaml"),
        (("config",), 0, "healthy_t1"),
        (("config", "nonsense"), 2, "There is no config 'nonsense': choose one of"),
        (("config", "chest_xray", "train"), 2, "Name train.yaml first, and presets behind it."),
        (("train", ".", "-o", "RUN", "--preset", "nonsense"), 2, "There is no config 'nonsense': choose one of"),
        (("predict", "empty", "-m", "model", "-o", "OUT", "--shard", "0/3"), 2, "--shard: expected K/N, such as 3/16"),
        (("label",), 2, "Name the folder of your images with --studies"),
        (("label", "--init", "--app", "app"), 0, "{}/app"),
    ],
)
def test_other_verbs_and_messages(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model/configs").mkdir(parents=True)
    (tmp_path / "model/configs/inference.yaml").touch()  # which is looked for first
    printed, ended = run(tmp_path, *arguments)
    assert said.format(tmp_path) in printed
    assert ended == f"{code} []"
