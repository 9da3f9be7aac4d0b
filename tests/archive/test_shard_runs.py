"""Archives that are scored in shards, by processes that are killed, and merged."""

import csv
import io
import json
import os
import signal
from pathlib import Path

import pytest
from archive_runs import OUTPUTS, Scans
from forked import ForkServer

from aeflow_monai.cli.main import main
from aeflow_monai.engine.inference.runtimes import installed_runtimes
from aeflow_monai.file_digests import sha256_of
from aeflow_monai.files import read_json
from aeflow_monai.locks import claim_folder, release_folder
from aeflow_monai.result_tables import rows_of

# what `monai.bundle run` says of every config
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, scans: Scans, trained: Path) -> Path:
    """What one ordinary run writes of the whole volumes: read only."""
    out = tmp_path_factory.mktemp("undisturbed") / "OUT"
    whole = sorted(map(str, scans.folder.glob("scan*.nii.gz")))
    assert main(["predict", *whole, "-m", str(trained), "-o", str(out), *OUTPUTS, "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, scans: Scans, trained: Path) -> Path:
    """What two shards write, not merged yet."""
    out = tmp_path_factory.mktemp("sharded") / "OUT"
    for shard in ("1/2", "2/2"):
        command = ["predict", str(scans.listed), "-m", str(trained), "-o", str(out), "--shard", shard, *OUTPUTS]
        assert main([*command, "--quiet"]) == 1  # one of the studies that fail is in each
    return out


def maps_of(out: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in out.rglob("*.nii.gz")}


def without_place(table: Path) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name != "results"} for row in rows_of(table)]


def test_results_of_a_run_without_a_ledger_are_replaced_only_where_that_is_asked_for(
    tmp_path: Path, scans: Scans, trained: Path, capsys: Capture
) -> None:
    out, image = tmp_path / "OUT", str(next(scans.folder.glob("scan*.nii.gz")))
    command = ["predict", image, "-m", str(trained), "-o", str(out), *OUTPUTS, "--quiet"]
    assert main(command) == 0
    before = (out / "scores.csv").read_text(encoding="utf-8")
    assert main([*command, "--resume"]) == 2
    assert "holds the results of a run that kept no ledger, which cannot go on" in capsys.readouterr().err
    assert (out / "scores.csv").read_text(encoding="utf-8") == before
    assert main([*command, "--resume", "--overwrite"]) == 0
    assert read_json(out / "run.json")["n_shards"] == 1


@pytest.mark.skipif("onnxruntime" not in installed_runtimes(), reason="needs the extra fast")
def test_the_record_names_the_runtime_that_computed_a_shard(
    tmp_path: Path, scans: Scans, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, image = tmp_path / "OUT", next(scans.folder.glob("scan*.nii.gz"))
    listed = tmp_path / "list.txt"
    listed.write_text(f"{image}\n", encoding="utf-8")
    command = ["predict", str(listed), "-m", str(trained), "-o", str(out), "--shard", "1/1", *OUTPUTS, "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr("aeflow_monai.engine.inference.runtimes.kept_form", lambda *_: 1 / 0)
        assert main(command) == 0
    assert main(["report", str(out), "--quiet"]) == 0
    assert read_json(out / "run.json")["machine"]["runtime"] == "torch"


def test_images_that_the_model_was_not_trained_for_are_told_of_an_archive_too(
    tmp_path: Path, scans: Scans, png_slices: Path, trained: Path
) -> None:
    out, listed = tmp_path / "OUT", tmp_path / "list.txt"
    pictures = sorted(png_slices.rglob("*.png"))[:2]
    listed.write_text("\n".join(map(str, [*pictures, next(scans.folder.glob("scan*.nii.gz"))])), encoding="utf-8")
    for shard in ("1/2", "2/2"):
        command = ["predict", str(listed), "-m", str(trained), "-o", str(out), "--shard", shard, *OUTPUTS, "--quiet"]
        assert main(command) == 0
    assert main(["report", str(out), "--quiet"]) == 0
    (note,) = read_json(out / "run.json")["notes"]
    assert note.startswith("A single slice was given, but the model was trained on volumes.")
    assert note in (out / "report.html").read_text("utf-8")


@pytest.mark.end_to_end
def test_a_killed_run_goes_on_and_is_as_one_that_nobody_killed(
    tmp_path: Path, scans: Scans, trained: Path, undisturbed: Path, fork_server: ForkServer, capsys: Capture
) -> None:
    out = tmp_path / "OUT"
    command = ["predict", str(scans.listed), "-m", str(trained), "-o", str(out), "--resume", *OUTPUTS]
    # it ends by itself, since a kill from here may come when nothing is left
    script = f"""
import os
from importlib import import_module
from aeflow_monai.archive import Ledger
from aeflow_monai.cli.main import main
import_module("aeflow_monai.archive.ledger")._EVERY = 0.0  # seconds: each study is stored as soon as it is done
done = Ledger.done
def and_die(ledger, *study):
    done(ledger, *study)
    if ledger.counts().done == 2:
        os.kill(os.getpid(), 9)
Ledger.done = and_die
main({command!r})
"""
    killed = fork_server.run(["-c", script], tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main(["report", str(out)]) == 1
    said = capsys.readouterr()
    assert " open\n" in said.out
    assert "Give the commands of the open shards again; what is done is not done again." in said.err
    done = rows_of(out / "scores.unfinished.csv")
    assert 2 <= len(done) < scans.n_whole
    assert not (out / "scores.csv").exists()
    before = {name: (out / done[0]["results"] / name).stat().st_mtime_ns for name in names_of(done)}

    assert main(command) == 1
    said = capsys.readouterr()
    assert f"14 studies: {scans.n_whole} done, 2 failed, 0 open" in said.out
    assert "2 lines name a study again, which was scored once" in said.out
    assert not (out / "scores.unfinished.csv").exists()
    assert {name: (out / done[0]["results"] / name).stat().st_mtime_ns for name in before} == before
    assert without_place(out / "scores.csv") == sorted(rows_of(undisturbed / "scores.csv"), key=lambda row: row["file"])
    assert maps_of(out) == maps_of(undisturbed)
    failures = {row["case"]: row["message"] for row in rows_of(out / "failures.csv")}
    assert failures.keys() == {"damaged", "absent"}
    assert failures["absent"].startswith(f"There is no file {scans.folder / 'absent.nii.gz'}. Correct the list")
    assert read_json(out / "run.json")["state"] == "finished"
    assert '<meta name="generator"' in (out / "report.html").read_text()


def names_of(rows: list[dict[str, str]]) -> list[str]:
    return [f"{row['case']}_{name}.nii.gz" for row in rows for name in ("anomaly_map", "anomaly_mask")]


def test_shards_merge_to_what_one_process_gives(
    scans: Scans, sharded: Path, undisturbed: Path, capsys: Capture
) -> None:
    assert main(["report", str(sharded), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == {"done": scans.n_whole, "failed": 2, "open": 0, "missing_shards": [], "shards": 2}
    assert without_place(sharded / "scores.csv") == sorted(
        rows_of(undisturbed / "scores.csv"), key=lambda row: row["file"]
    )
    for row in rows_of(sharded / "scores.csv"):
        assert all((sharded / row["results"] / name).is_file() for name in names_of([row]))
    assert maps_of(sharded) == maps_of(undisturbed)
    first = (sharded / "scores.csv").read_bytes()
    main(["report", str(sharded)])
    assert (sharded / "scores.csv").read_bytes() == first
    assert len(list(csv.reader(io.StringIO(first.decode())))) == scans.n_whole + 1


def test_what_is_finished_is_read_and_nothing_more(scans: Scans, sharded: Path, trained: Path, capsys: Capture) -> None:
    before = {path: path.stat().st_mtime_ns for path in sharded.rglob("*.nii.gz")}
    command = ["predict", str(scans.listed), "-m", str(trained), "-o", str(sharded), "--shard", "1/2", *OUTPUTS]
    assert main(command) == 1
    assert "shard 1/2: " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in sharded.rglob("*.nii.gz")} == before


def test_a_shard_that_was_not_begun_is_named(tmp_path: Path, scans: Scans, trained: Path, capsys: Capture) -> None:
    (tmp_path / "list.txt").write_text(str(scans.folder / "scan00.nii.gz"))
    command = ["predict", str(tmp_path / "list.txt"), "-m", str(trained), "-o", str(tmp_path / "OUT"), *OUTPUTS]
    codes = [main([*command, "--shard", f"{number}/3"]) for number in (1, 2)]
    assert codes == [0, 0]
    assert main(["report", str(tmp_path / "OUT")]) == 1
    said = capsys.readouterr()
    assert "not begun: 3/3" in said.out
    assert "Of 1 study" in said.err or "Of 0 studies" in said.err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--shard", "1/3"], "was begun with 2 shards; got --shard 1/3. Give --shard K/2"),
        (["--shard", "1/2", "--outputs", "anomaly_mask"], "was begun with other options: "),
    ],
)
def test_other_shards_and_options_are_refused(
    scans: Scans, sharded: Path, trained: Path, changed: list[str], message: str, capsys: Capture
) -> None:
    command = ["predict", str(scans.listed), "-m", str(trained), "-o", str(sharded), "--device", "cpu"]
    assert main([*command, *changed]) == 2
    assert message in capsys.readouterr().err


def test_another_list_is_refused(tmp_path: Path, scans: Scans, sharded: Path, trained: Path, capsys: Capture) -> None:
    (tmp_path / "other.txt").write_text(str(scans.folder / "scan00.nii.gz"))
    command = ["predict", str(tmp_path / "other.txt"), "-m", str(trained), "-o", str(sharded), "--shard", "1/2"]
    assert main([*command, *OUTPUTS]) == 2
    assert "was begun with another list: " in capsys.readouterr().err


def test_a_list_that_was_refused_binds_nothing(tmp_path: Path, scans: Scans, trained: Path, capsys: Capture) -> None:
    out = ["-m", str(trained), "-o", str(tmp_path / "OUT"), "--shard", "1/1", *OUTPUTS]
    (tmp_path / "wrong.csv").write_text("file\na.nii.gz\n")
    assert main(["predict", str(tmp_path / "wrong.csv"), *out]) == 2
    (tmp_path / "right.txt").write_text(str(scans.folder / "scan00.nii.gz"))
    assert main(["predict", str(tmp_path / "right.txt"), *out]) == 0
    assert "1 study: 1 done, 0 failed, 0 open" in capsys.readouterr().out


@pytest.mark.end_to_end
def test_a_list_that_grew_between_shards_is_not_finished(tmp_path: Path, trained: Path, capsys: Capture) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "OUT"
    listed.write_text("".join(f"absent{number}.png\n" for number in range(6)))
    command = ["predict", str(listed), "-m", str(trained), "-o", str(out), *OUTPUTS, "--quiet", "--shard"]
    main([*command, "1/2"])
    listed.write_text("".join(f"absent{number}.png\n" for number in range(12)))
    main([*command, "2/2"])
    capsys.readouterr()
    assert main(["report", str(out)]) == 2
    assert "Give the commands of all shards again" in capsys.readouterr().err
    main([*command, "1/2"])
    capsys.readouterr()
    assert main(["report", str(out)]) == 1
    assert "12 studies: 0 done, 12 failed, 0 open" in capsys.readouterr().out


def test_one_process_a_shard(scans: Scans, sharded: Path, trained: Path, fork_server: ForkServer) -> None:
    claim_folder(sharded / "shards/1-of-2", "output_dir")
    command = ["predict", str(scans.listed), "-m", str(trained), "-o", str(sharded), "--shard", "1/2", *OUTPUTS]
    try:
        refused = fork_server.run(["-m", "aeflow_monai.cli.main", *command], scans.folder, os.environ)
    finally:
        release_folder(sharded / "shards/1-of-2")
    assert "Another run writes to" in refused.stderr


def test_failed_studies_are_scored_again_when_they_are_mended(
    tmp_path: Path, scans: Scans, trained: Path, capsys: Capture
) -> None:
    (tmp_path / "list.jsonl").write_text('{"path": "late.nii.gz", "case": "the late one"}\n')
    command = ["predict", str(tmp_path / "list.jsonl"), "-m", str(trained), "-o", str(tmp_path / "OUT"), *OUTPUTS]
    assert main(command) == 1  # a list of lines keeps a ledger by itself
    (tmp_path / "late.nii.gz").write_bytes((scans.folder / "scan00.nii.gz").read_bytes())
    assert main(command) == 1
    assert main([*command, "--retry-failed"]) == 0
    assert "1 study: 1 done, 0 failed, 0 open" in capsys.readouterr().out
    assert not (tmp_path / "OUT/failures.csv").exists()
    assert [row["case"] for row in rows_of(tmp_path / "OUT/scores.csv")] == ["the late one"]


def test_a_folder_can_be_gone_on_with(tmp_path: Path, scans: Scans, trained: Path) -> None:
    folder = tmp_path / "SCANS"
    folder.mkdir()
    for name in ("scan00.nii.gz", "scan01.nii.gz"):
        (folder / name).write_bytes((scans.folder / name).read_bytes())
    command = ["predict", str(folder), "-m", str(trained), "-o", str(tmp_path / "OUT"), "--resume", *OUTPUTS]
    assert main(command) == 0
    first = (tmp_path / "OUT/scores.csv").read_bytes()
    (folder / "scan02.nii.gz").write_bytes((scans.folder / "scan02.nii.gz").read_bytes())
    assert main(command) == 0
    assert (tmp_path / "OUT/scores.csv").read_bytes().startswith(first)
    assert len(rows_of(tmp_path / "OUT/scores.csv")) == 3
