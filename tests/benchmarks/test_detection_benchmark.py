"""benchmarks/detection on synthetic slices: what a fit is given, going on after a stop, and the table's numbers."""

import csv
import importlib.util
import json
import os
import re
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from score.normals import raised
from sklearn.metrics import recall_score, roc_auc_score

from aeflow_monai import Encoder, Model, Score, SlicedInferer, Slicer

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
DETECTION = BENCHMARKS / "detection"
HAS_ANOMALIB = importlib.util.find_spec("anomalib") is not None
TINY = {
    "image_size": [64, 64],
    "network_def#network#n_steps": 2,
    "network_def#network#hidden_channels": 8,
    "calibration_fraction": 0.25,
    "epochs": 1,
}
METHODS = ["flow_only", "autoencoder", "autoencoder_rescored", *(["patchcore"] if HAS_ANOMALIB else [])]


def run(data: Path, output: Path, *options: str) -> None:
    """Run the comparison in this process, which has one of its own for each of its steps."""
    command = ["run.py", "--data", str(data), "--output", str(output), "--set", str(data), "--seeds", "0", *options]
    command += ["--config", str(output.parent / "tiny.yaml"), "--methods", *METHODS]
    with pytest.MonkeyPatch.context() as patch:
        for folder in (BENCHMARKS, DETECTION):
            patch.syspath_prepend(str(folder))
        patch.setattr(sys, "argv", command)
        patch.setattr(importlib.import_module("table"), "N_BOOTSTRAP", 100)
        importlib.import_module("run").main()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, png_slices: Path) -> Path:
    return Path(shutil.copytree(png_slices, tmp_path_factory.mktemp("detection") / "slices"))


@pytest.fixture(scope="module")
def fitted(data: Path) -> Path:
    """A comparison that was stopped when all was fitted, and its files listed."""
    output = data.parent / "run"
    (data.parent / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    run(data, output, "--fit_only")
    listing = {str(path): path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    (data.parent / "listing.json").write_text(json.dumps(listing), encoding="utf-8")
    return output


@pytest.fixture(scope="module")
def finished(data: Path, fitted: Path) -> Path:
    run(data, fitted)
    return fitted


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def stored_scores(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    found = rows(folder / "results/scores.csv")
    labels, scores = [int(row["label"]) for row in found], [float(row["anomaly_score"]) for row in found]
    return np.array(labels), np.array(scores), [row["file"] for row in found]


@pytest.mark.end_to_end
def test_fits_are_given_normals_and_nothing_of_the_test_split(data: Path, fitted: Path) -> None:
    listed = [path for path in json.loads((data.parent / "listing.json").read_text()) if path.endswith("manifest.csv")]
    assert listed == [str(fitted / "normals/manifest.csv")]
    normals = rows(fitted / "normals/manifest.csv")
    assert {Path(row["path"]).parent for row in normals} == {data / "train/NORMAL"}
    assert {(row["split"], row["abnormal"]) for row in normals} == {("train", "0")}
    assert len(normals) == 12
    for method in METHODS:
        assert "/test/" not in (fitted / f"seed0/{method}/fit.log").read_text(encoding="utf-8")


@pytest.fixture
def protocols(imported: Callable[[str], ModuleType]) -> ModuleType:
    return imported("protocols")


def test_the_test_list_is_not_read_while_a_fit_is_missing(tmp_path: Path, protocols: ModuleType) -> None:
    asked: list[bool] = []
    protocol = protocols.Protocol(None, [], lambda: asked.append(True) or [])
    with pytest.raises(RuntimeError, match=r"read when all fitting is done; 1 miss, first .*fit\.json"):
        protocol.write_test(tmp_path / "test", [tmp_path / "fit.json"])
    assert not asked
    assert not (tmp_path / "test").exists()


def test_development_split_keeps_patients_apart(protocols: ModuleType) -> None:
    def rows_of(names: list[str], abnormal: bool) -> list[Any]:
        return [protocols.Row(Path(name), abnormal, None, "", protocols.xray_patient(name)) for name in names]

    normal = rows_of([f"IM-{patient:04d}-{image:04d}.jpeg" for patient in range(300) for image in range(2)], False)
    ill = rows_of([f"person{n}_bacteria_{image}.jpeg" for n in range(1, 451) for image in range(2)], True)
    normals, test = protocols.development_split(normal, ill)
    held_out = [row for row in test if not row.abnormal]
    abnormal = [row for row in test if row.abnormal]
    assert (len(normals), len(held_out), len(abnormal)) == (400, 200, 400)
    assert not {row.patient for row in normals} & {row.patient for row in held_out}
    assert len({row.patient for row in abnormal}) == 400
    assert protocols.development_split(normal[::-1], ill[::-1])[1][200:] == test[200:]  # whatever the lists' order
    assert protocols.development_split(normal, [])[0] == normals  # what is fitted on knows no abnormal image


def test_normals_to_fit_on_are_listed_without_a_look_at_abnormal_images(tmp_path: Path, protocols: ModuleType) -> None:
    folder = tmp_path / "chest_xray"
    folder.mkdir()
    normal = [[f"IM-{n:04d}-0001.jpeg", "train", "0"] for n in range(250)]
    ill = [[f"person{n}_virus_1.jpeg", "train", "1"] for n in range(1, 6)]

    def protocol(listed: list[list[str]]) -> Any:
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([["path", "split", "abnormal"], *listed])
        return protocols.chest_xray(tmp_path, "dev", None)

    known, blind = protocol([*normal, *ill]), protocol(normal)
    assert known.digest() == blind.digest()
    with (folder / "manifest.csv").open("a", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(ill)
    blind.write_fit(tmp_path / "normals")
    blind.write_test(tmp_path / "test", [])
    assert {row["abnormal"] for row in rows(tmp_path / "normals/manifest.csv")} == {"0"}
    test = rows(tmp_path / "test/manifest.csv")
    assert [row["abnormal"] for row in test].count("1") == 5  # which were listed after the protocol was made


@pytest.mark.parametrize(("split", "n_train", "n_tested"), [("official", 52, 6), ("dev", 46, 12)])
def test_lesions_are_planted_when_all_is_fitted(
    split: str, n_train: int, n_tested: int, tmp_path: Path, protocols: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path(os.environ.get("AEFLOW_DATA") or "absent")
    if not ((real / "healthy_t1").is_dir() and (real / "ms_lesion").is_dir()):
        pytest.skip("needs healthy_t1 and ms_lesion in the folder that the environment variable AEFLOW_DATA names")
    healthy = sorted((real / "healthy_t1").glob("*.nii.gz"))
    of_the_benchmark, _, _ = protocols.planted_lesions.split(healthy, protocols.N_TEST, 0)
    assert (len(of_the_benchmark), protocols.N_TEST) == (38, 20)
    monkeypatch.setattr(protocols, "N_TEST", 6)  # planting takes a second of each
    protocol = protocols.healthy_t1(real, tmp_path, split, None)
    protocol.write_fit(tmp_path / "normals")
    assert not (tmp_path / "planted").exists()
    fitted_on = rows(tmp_path / "normals/manifest.csv")
    protocol.write_test(tmp_path / "test", [])
    tested = rows(tmp_path / "test/manifest.csv")
    assert (len(fitted_on), len(tested)) == (n_train, n_tested)
    assert sum(row["abnormal"] == "1" for row in tested) == n_tested // 2
    assert not {row["patient"] for row in fitted_on} & {row["patient"] for row in tested}
    assert all(Path(row["path"]).parent == real / "healthy_t1" for row in fitted_on)
    of_patients = Counter((row["patient"], row["abnormal"]) for row in tested)
    assert set(of_patients.values()) == {1}
    assert len({patient for patient, _ in of_patients}) == 6
    official, _, _ = protocols.planted_lesions.split(healthy, 6, 0)
    if split == "dev":  # nothing of the official test
        assert {row["patient"] for row in tested} < {protocols.planted_lesions.case_of(file) for file in official}


@pytest.mark.end_to_end
def test_a_stopped_comparison_goes_on(data: Path, finished: Path) -> None:
    before = json.loads((data.parent / "listing.json").read_text(encoding="utf-8"))
    kept = [name for name in before if name.endswith(("fit.json", "model.pt", "peer.pt", "features.json"))]
    assert len(kept) >= 2 * len(METHODS)
    assert all(Path(name).stat().st_mtime_ns == before[name] for name in kept)
    assert len(rows(finished / "test/manifest.csv")) == 13


def case_threshold(folder: Path) -> float:
    """Of a variant's bundle, or of another method."""
    is_bundle = (folder / "configs").is_dir()
    score = (Model(folder).detector if is_bundle else torch.load(folder / "peer.pt", weights_only=False)).score
    return score.thresholds["case_threshold"]


@pytest.mark.end_to_end
def test_the_table_is_what_scikit_learn_makes_of_the_scores(
    finished: Path, imported: Callable[[str], ModuleType]
) -> None:
    imported("rescored")  # whose classes peer.pt holds
    methods = json.loads((finished / "results.json").read_text(encoding="utf-8"))["methods"]
    files = set()
    for name in METHODS:
        labels, scores, found = stored_scores(finished / f"seed0/{name}")
        files.add(tuple(sorted(found)))
        called = scores > case_threshold(finished / f"seed0/{name}")
        assert methods[name]["auroc"] == pytest.approx(roc_auc_score(labels, scores))
        assert methods[name]["sensitivity"] == pytest.approx(recall_score(labels, called))
        assert methods[name]["specificity"] == pytest.approx(recall_score(labels, called, pos_label=0))
        low, high = methods[name]["auroc_ci95"]
        assert low <= methods[name]["auroc"] <= high
        assert methods[name]["cpu_seconds"] > 0
        assert methods[name]["score_peak_mib"] > 100
    assert len(files) == 1
    table = (finished / "table.md").read_text(encoding="utf-8")
    for name in (*METHODS, "intensity mean", "intensity std", "intensity p95"):
        assert f"| {name} | {methods[name]['auroc']:.3f} |" in table


@pytest.mark.end_to_end
def test_a_rescored_method_differs_in_the_score_alone(finished: Path) -> None:
    own, rescored = (
        json.loads((finished / f"seed0/{name}/fit.json").read_text(encoding="utf-8"))
        for name in ("autoencoder", "autoencoder_rescored")
    )
    assert own == rescored
    _, of_own, _ = stored_scores(finished / "seed0/autoencoder")
    _, of_rescored, _ = stored_scores(finished / "seed0/autoencoder_rescored")
    assert not np.allclose(of_own, of_rescored)
    assert np.corrcoef(of_own, of_rescored)[0, 1] > 0.3


@pytest.mark.end_to_end
def test_other_settings_do_not_take_over_a_fit(
    data: Path, fitted: Path, imported: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = imported("run").main
    config = data.parent / "tiny.yaml"
    command = ["run.py", "--data", str(data), "--output", str(fitted), "--set", str(data), "--config", str(config)]

    def refusal(*options: str, method: str = "autoencoder") -> str:
        monkeypatch.setattr(sys, "argv", [*command, "--seeds", "0", "--fit_only", *options, "--methods", method])
        with pytest.raises(SystemExit) as refused:
            main()
        return str(refused.value)

    assert "delete it, or name another --output" in refusal("--epochs", "2")
    assert re.search("normals None there, 8 now.*name another --output", refusal("--normals", "8"))
    assert "Unknown method 'autoencodr'" in refusal(method="autoencodr")
    before = config.read_text(encoding="utf-8")
    config.write_text(yaml.safe_dump({**TINY, "network_def#network#clamp": 1.0}), encoding="utf-8")
    message = refusal()
    config.write_text(before, encoding="utf-8")
    assert re.search("another config.*digest '", message)


def test_trainings_that_differ_in_more_than_the_score_have_folders_of_their_own(
    data: Path, tmp_path: Path, imported: Callable[[str], ModuleType]
) -> None:
    training_of, resolve = imported("work").training_of, imported("methods").resolve

    def folder(method: str, seed: int = 0, epochs: int = 1) -> Path:
        options = {"output": tmp_path / method, "dataset_dir": data, "config": None, "seed": seed, "epochs": epochs}
        return training_of(Namespace(method=resolve(method), **options))[-1]

    own = folder("aeflow")
    assert folder("flow_only") == folder("likelihood") == own
    assert len({own, folder("aeflow", epochs=4), folder("aeflow", seed=1), folder("permutation")}) == 4


def test_slices_are_resampled_with_their_case(
    imported: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = imported("table")
    monkeypatch.setattr(table, "N_BOOTSTRAP", 200)
    rng = np.random.default_rng(0)
    cases = [f"case{n}" for n in range(20)]
    truth = {case: number % 2 for number, case in enumerate(cases)}

    def slices(strength: float, level: float) -> Any:
        levels = rng.normal(size=20) * level  # what all slices of a case have in common
        return table.Scores.of(
            [
                (case, truth[case] * (n < 5), str(levels[i] + strength * truth[case] * (n < 5) + rng.normal()))
                for i, case in enumerate(cases)
                for n in range(30)
            ]
        )

    strong, weak, odd = slices(3.0, 0.0), slices(0.5, 0.0), slices(3.0, 3.0)
    for chosen in table._resamples(strong)[:5]:
        drawn = Counter(np.array(strong.cases)[chosen])
        assert all(count % 30 == 0 for count in drawn.values())
        assert sum(truth[case] * count for case, count in drawn.items()) == 300  # as many cases with lesions as before
    compared = table._compare({"strong": [strong], "weak": [weak], "odd": [odd]}, peers=["weak", "odd"])
    assert compared.auroc["strong"] == pytest.approx(roc_auc_score(strong.labels, strong.scores))
    assert compared.best_peer in ("weak", "odd")
    assert compared.p_value["strong"] <= 0.01
    assert compared.p_value[compared.best_peer] is None
    widths = {name: high - low for name, (low, high) in compared.interval.items()}
    assert widths["odd"] > 2 * widths["strong"]  # twenty cases, not six hundred slices


@pytest.mark.end_to_end
def test_variants_of_the_score_share_a_training(finished: Path) -> None:
    """`flow_only` differs in the score alone: its bundle is calibrated anew, with the network of the training."""
    (training,) = (folder for folder in finished.glob("seed0/training-*") if folder.is_dir())
    trained, variant = Model(training).detector, Model(finished / "seed0/flow_only").detector
    for key, value in trained.network.state_dict().items():
        assert torch.equal(variant.network.state_dict()[key], value), key
    assert (trained.score.beta, variant.score.beta) == (0.9, 1.0)
    assert trained.score.thresholds != variant.score.thresholds


def test_variants_name_options_that_there_are(imported: Callable[[str], ModuleType]) -> None:
    names, template = imported("methods").variant_names(), imported("shared").template
    plain = template().get()["network_def"]
    for name in names:
        config = template(DETECTION / f"variants/{name}.yaml")
        for part in ("network", "score"):
            assert config.get()["network_def"][part].keys() == plain[part].keys(), name
        assert config.get_parsed_content("network_def#score").n_terms == len(config["stages"]) + 1


@pytest.fixture
def threshold_map(imported: Callable[[str], ModuleType]) -> Any:
    """A method whose map is the image, and whose score of a slice is its mean."""
    module = imported("map_inferer")

    class Itself(module.MapMethod):
        def infer(self, stack: torch.Tensor, chosen: torch.Tensor) -> Any:
            return module.Answer(stack[chosen].mean(dim=(1, 2, 3)), stack[chosen])

    return Itself(Score(case_top_fraction=1.0))


def test_other_maps_give_what_the_bundle_gives(threshold_map: Any, imported: Callable[[str], ModuleType]) -> None:
    module = imported("map_inferer")
    slicer = Slicer(image_size=[32, 32], fit="pad", min_foreground=0.5)
    volume = torch.rand(1, 1, 20, 24, 6) + 0.1
    volume[..., 0] = 0  # is skipped
    stack, chosen = module.axial_stack(slicer, volume[0])
    assert (tuple(stack.shape), chosen.tolist()) == ((6, 1, 32, 32), [1, 2, 3, 4, 5]), "padded to less than half"
    threshold_map.fit_thresholds([("one", threshold_map.infer(stack, chosen))], specificity=0.5)
    found = module.MapInferer(slicer)(volume, threshold_map)

    class Named(torch.nn.Module):
        def forward(self, slices: torch.Tensor, places: Any) -> dict[str, torch.Tensor]:
            return {"anomaly_map": slices, "slice_scores": slices.mean(dim=(1, 2, 3))}

    by_bundle = SlicedInferer(slicer)(volume, Named())
    assert by_bundle.keys() <= found.keys()
    for key, value in by_bundle.items():
        torch.testing.assert_close(found[key], value, equal_nan=True)
    assert float(found["anomaly_score"]) == pytest.approx(float(stack[1:].mean()))
    assert float(found["case_threshold"]) == pytest.approx(raised(float(stack[1:].mean())))
    assert found["map_threshold"] <= volume.max()


def test_a_rescored_peer_has_the_score_of_a_single_map(imported: Callable[[str], ModuleType]) -> None:
    peers, rescored = imported("peers"), imported("rescored")
    torch.manual_seed(0)
    peer = peers.PlainAutoencoder(Encoder(), (64, 64), 1).eval()
    method = rescored.RescoredPeer(peer, Score(n_terms=1, top_fractions=[1.0])).eval()
    stack = torch.rand(5, 1, 64, 64)
    own = peers.FittedPeer(peer, method.score).infer(stack, torch.tensor([0, 2, 4]))
    answer = method.infer(stack, torch.tensor([0, 2, 4]))
    # not calibrated yet, and the blur's deviation is less than the way to the next slice: half of the level is off
    level = own.maps.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(answer.maps, own.maps - 0.5 * level)
    torch.testing.assert_close(answer.scores, own.scores / 2)


@pytest.mark.skipif(not HAS_ANOMALIB, reason="needs anomalib: pip install -e .[bench]")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["patchcore", "padim", "fastflow", "cflow", "dfm"])
def test_a_peer_scores_an_image_by_itself(name: str, imported: Callable[[str], ModuleType]) -> None:
    peers = imported("peers")
    torch.manual_seed(0)
    images = torch.rand(24, 1, 64, 64)
    kind = imported("methods").peer_kind(name)
    kept = Encoder(stages=peers.STAGES)(images)
    peer = kind(Encoder(stages=kind.stages), (64, 64), 1)
    peer.fit([{"image": image, "features": [stage[i] for stage in kept]} for i, image in enumerate(images)])
    peer.eval()
    with torch.no_grad():
        together, alone = peer(images[:4]), peer(images[2:3])
        odd = peer(1 - images[2:3] * torch.linspace(0, 1, 64))
    assert together.maps.shape == (4, 1, 64, 64)
    assert together.scores[2] == pytest.approx(float(alone.scores), rel=1e-4, abs=1e-5)
    assert odd.scores > together.scores.max()
