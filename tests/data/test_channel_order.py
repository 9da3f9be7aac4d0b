"""Images of several files, whose order makes the channels."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from aeflow_monai import Model
from aeflow_monai.cli.main import main
from aeflow_monai.data import LoadCased
from aeflow_monai.data.channel_order import channel_names, common_channel_names, require_order
from aeflow_monai.result_tables import rows_of

ORDERS = {"as trained": ("T1", "FLAIR"), "swapped": ("FLAIR", "T1")}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a_T1.nii.gz", "a_FLAIR.nii.gz"], ("t1", "flair")),
        (["T1/a.nii", "FLAIR/a.nii"], ("t1", "flair")),
        (["a-0000.mha", "a-0001.mha"], ("0000", "0001")),
        (["x/a.nii", "x/a.nii"], ()),
        (["a_T1.nii.gz"], ()),
    ],
)
def test_names_tell_files_apart(files: list[str], names: tuple[str, ...]) -> None:
    assert channel_names(files) == names


def test_images_of_different_names_have_none_in_common() -> None:
    assert common_channel_names([["a_t1.nii", "a_t2.nii"], ["b_t1.nii", "b_pd.nii"]]) == ()
    assert common_channel_names([]) == ()


def test_other_names_are_accepted() -> None:
    require_order(["a_t2.nii", "a_t1.nii"], ())
    require_order(["a_post.nii", "a_pre.nii"], ("t1", "t2"))
    require_order(["a_t1.nii"], ("t1", "t2"))


def test_names_are_told_in_upper_or_lower_case() -> None:
    with pytest.raises(ValueError, match="in the order of the training, T1, T2"):
        require_order(["a_t2.nii", "a_t1.nii"], ("T1", "T2"))
    require_order(["a_t1.nii", "a_t2.nii"], ("T1", "T2"))


def test_swapped_files_are_refused_as_they_are_loaded(tmp_path: Path) -> None:
    for name in ("T1", "FLAIR"):
        nib.save(nib.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)), tmp_path / f"a_{name}.nii")
    load = LoadCased("image", channel_names=["t1", "flair"])
    assert load({"image": [tmp_path / "a_T1.nii", tmp_path / "a_FLAIR.nii"]})["image"].shape == (2, 2, 3, 4)
    with pytest.raises(ValueError, match=r"order of the training, t1, flair; got a_FLAIR\.nii, a_T1\.nii"):
        load({"image": [tmp_path / "a_FLAIR.nii", tmp_path / "a_T1.nii"]})


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory, volumes: Path) -> Path:
    """Volumes of two files each."""
    folder = tmp_path_factory.mktemp("two_files")
    for path in sorted(volumes.rglob("train_*.nii.gz"))[:6]:
        image, case = nib.load(path), path.name.split(".")[0]
        nib.save(image, folder / f"{case}_T1.nii.gz")
        other = np.asarray(image.dataobj, dtype=np.float32).max() - np.asarray(image.dataobj, dtype=np.float32)
        nib.save(nib.Nifti1Image(other, image.affine), folder / f"{case}_FLAIR.nii.gz")
    return folder


def listed(folder: Path, name: str, split: str, order: tuple[str, ...]) -> Path:
    cases = sorted({path.name.rsplit("_", 1)[0] for path in folder.glob("*.nii.gz")})
    rows = [";".join(f"{case}_{name}.nii.gz" for name in order) + f",{split},0" for case in cases]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["path,split,abnormal", *rows]), encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_a_model_knows_the_order_of_its_channels(
    tmp_path: Path, two_files: Path, tiny_training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "RUN"
    train = listed(two_files, "train", "train", ORDERS["as trained"])
    options = {**tiny_training, "epochs": 1, "in_channels": 2}
    sets = [word for name, value in options.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    wrong = ["train", str(train), "-o", str(run), *sets, "--set", "channel_names=[flair, t2]"]
    for words in (["--dry-run"], []):
        assert main([*wrong, *words]) == 2
        assert "such as [t1, flair]; got [flair, t2]." in capsys.readouterr().err.replace("\n", " ")
    assert main(["train", str(train), "-o", str(run), "--quiet", *sets]) == 0
    metadata = json.loads((run / "configs/metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["channel_def"] == {"0": "t1", "1": "flair"}

    for name, order in ORDERS.items():
        tested = listed(two_files, name.replace(" ", "_"), "test", order)
        for way, words in (("ONE", []), ("SHARDS", ["--shard", "1/1"])):
            out = tmp_path / f"{name} {way}"
            command = ["predict", str(tested), "-m", str(run), "-o", str(out), "--quiet", *words]
            assert main([*command, "--outputs", "anomaly_mask"]) == (0 if name == "as trained" else 1)
            if way == "SHARDS":
                main(["report", str(out), "--quiet"])
            if name == "as trained":
                scored = rows_of(out / "scores.csv")
                assert len(scored) == 6
            else:
                failures = rows_of(out / "failures.csv")
                assert len(failures) == 6
                assert all("in the order of the training, t1, flair" in row["message"] for row in failures)

    model, row = Model(run), scored[0]
    files = [two_files / f"{row['case'].removesuffix('_T1')}_{name}.nii.gz" for name in ORDERS["as trained"]]
    assert model.predict(files).anomaly_score == pytest.approx(float(row["anomaly_score"]), rel=1e-5)
    with pytest.raises(ValueError, match="in the order of the training, t1, flair"):
        model.predict(files[::-1])
