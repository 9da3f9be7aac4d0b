"""One step of the comparison, in a process of its own so that its memory and time are its own. Started by run.py.

    python work.py features --dataset_dir NORMALS --output DIR ...      the frozen encoder's features, once for all
    python work.py fit --method NAME --dataset_dir NORMALS --output DIR --seed N ...
    python work.py score --method NAME --dataset_dir TEST --output DIR --seed N ...
    python work.py speed --output DIR ...                               all fitted methods, in turn

A method is the name of one of peers.py, that name and "_rescored" (see rescored.py), the path of an overlay of the
bundle's train.yaml, or "aeflow".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, set_determinism
from torch import Tensor
from torch.utils.data import Dataset, Subset

from aeflow_monai.data.feature_dataset import FeatureDataset
from aeflow_monai.data.slice_dataset import SliceDataset
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.saliency import MapScorer
from aeflow_monai.engine.workflow import keep_freed_memory
from aeflow_monai.network.encoder import Encoder
from aeflow_monai.score.calibration import calibrate
from aeflow_monai.score.scoring import AnomalyScorer
from aeflow_monai.score.scoring import SETTINGS
from aeflow_monai.score.thresholds import set_thresholds

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CONFIGS = ROOT / "bundle/configs"
VARIANTS = HERE / "variants"
RESCORED = "_rescored"
# options that change the score and nothing that is trained: such a variant takes the training of the one without them
SCORE_OPTIONS = {"scoring", "slice_shares", "specificity", *SETTINGS}


def commit() -> str:
    """The commit of this code, marked if it was changed."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def overlay_of(method: str) -> dict[str, Any] | None:
    """The options of a variant of AE-Flow, none for AE-Flow itself; None if the method is another one."""
    if method == "aeflow":
        return {}
    if method.endswith(".yaml"):
        return yaml.safe_load(Path(method).read_text(encoding="utf-8")) or {}
    return None


def rescored(method: str) -> str | None:
    """Whose maps a method rescores; None if it is no such method."""
    return method.removesuffix(RESCORED) if method.endswith(RESCORED) else None


def label_of(method: str) -> str:
    """A method's name, which is its folder's too."""
    return Path(method).stem if method.endswith(".yaml") else method


def bundle(given: argparse.Namespace, overlays: Sequence[Path], evaluation: bool, **options: Any) -> ConfigWorkflow:
    """The bundle with the data set's config and the overlays on top, and evaluate.yaml if it is to be evaluated."""
    files = [CONFIGS / "train.yaml", *([given.config] if given.config else []), *overlays]
    files += [CONFIGS / "evaluate.yaml"] if evaluation else []
    own = {"dataset_dir": str(given.dataset_dir), "output_dir": str(given.output), "seed": given.seed, "device": "cpu"}
    return ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type="eval" if evaluation else "train",
        **{**own, **options},
    )


def peak_memory(process: int | str = "self") -> float:
    """Largest resident memory of a process so far, in MiB; nan where /proc does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return math.nan


class KeptSlices(Dataset[dict[str, Any]]):
    """The normals' slices with the encoder's features, from the files that `features` wrote.

    Args:
        slices: of all normals.
        folder: of the files.
    """

    def __init__(self, slices: SliceDataset, folder: Path) -> None:
        self.slices = slices
        self.stages = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("features_*.npy"))]
        if {len(stage) for stage in self.stages} != {len(slices)}:
            raise ValueError(f"{folder} holds features of other slices than these {len(slices)}: delete it.")

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = [torch.from_numpy(np.array(stage[index])) for stage in self.stages]
        return {**self.slices[index], "features": features}


class PeerInferer(Inferer):
    """Stands where the bundle has its SlicedInferer: maps and slice scores of a volume by another method.

    Args:
        peer: fitted.
        slicer: the slicing policy, along axial slices.
    """

    def __init__(self, peer: peers.Peer, slicer: Slicer) -> None:
        super().__init__()
        self.peer = peer.eval()
        self.slicer = slicer

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Any = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The map of one volume (1, C, X, Y, Z), 0 where slices are skipped, and the scores of its slices."""
        volume = inputs[0].as_subclass(Tensor)
        chosen = self.slicer.chosen(volume, "axial")
        anomaly_map = torch.zeros(1, *volume.shape[1:])
        scores = torch.full((1, volume.shape[-1]), math.nan)
        for part in chosen.split(peers.BATCH_SIZE):
            answer = self.peer(self.slicer.slices(volume, "axial", part).contiguous())
            self.slicer.paste(answer.maps, anomaly_map, "axial", part)
            scores[0, part] = answer.scores
        return {"anomaly_map": convert_to_dst_type(anomaly_map[None], inputs)[0], "slice_scores_axial": scores}


def all_slices(given: argparse.Namespace, parser: Any) -> SliceDataset:
    folder = given.features / "slices"
    preprocessing, slicer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("slicer")
    return SliceDataset(parser.get_parsed_content("normals"), preprocessing, slicer, folder=folder)


def features(given: argparse.Namespace) -> dict[str, Any]:
    """Compute the features of all normals, for all methods but AE-Flow, which keeps its own."""
    parser = bundle(given, [], evaluation=False).parser
    encoder = Encoder(parser["backbone"], peers.STAGES, parser["encoder_weights"], parser["in_channels"])
    slices = all_slices(given, parser)
    start = (time.perf_counter(), time.process_time())
    FeatureDataset(slices, encoder, given.features)
    return {
        "n_slices": len(slices),
        "seconds": time.perf_counter() - start[0],
        "cpu_seconds": time.process_time() - start[1],
    }


def fit_peer(given: argparse.Namespace) -> dict[str, Any]:
    """Fit another method; its thresholds come from the same held-out normals as AE-Flow's."""
    kind = peers.kind_of(given.method)
    parser = bundle(given, [], evaluation=False).parser
    set_determinism(given.seed)
    encoder = Encoder(parser["backbone"], kind.stages, parser["encoder_weights"], parser["in_channels"])
    kept = KeptSlices(all_slices(given, parser), given.features)
    held_out_files = {str(item["image"]) for item in parser.get_parsed_content("split")[1]}
    fitted, held_out = [], []
    for number, entry in enumerate(kept.slices.index):
        (held_out if entry["file"] in held_out_files else fitted).append(number)
    parser["train#slices"] = fitted  # of which n_epochs takes the number
    epochs = given.epochs or parser.get_parsed_content("n_epochs")
    peer = kind(encoder, tuple(kept.slices.shape[1:]), epochs)
    start = (time.perf_counter(), time.process_time())
    peer.fit(Subset(kept, fitted))
    spent = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
    if given.method != "autoencoder":  # the encoder's pass over what was fitted belongs to the training
        once = json.loads((given.features / "features.json").read_text(encoding="utf-8"))
        spent = {name: value + once[name] * len(fitted) / once["n_slices"] for name, value in spent.items()}

    scorer: AnomalyScorer = parser.get_parsed_content("network")
    peer.eval()
    peaks: list[float] = []
    slices: list[float] = []
    cases: dict[str, list[float]] = {}
    with torch.no_grad():
        for number in held_out:
            answer = peer(kept.slices[number]["image"][None])
            peaks.append(float(answer.maps.amax()))
            slices.append(float(answer.scores))
            cases.setdefault(kept.slices.index[number]["file"], []).append(slices[-1])
    of_cases = [float(scorer.case_score({"axial": torch.tensor(scores)})) for scores in cases.values()]
    n_patients = len({kept.slices.index[number]["patient"] for number in held_out})
    set_thresholds(scorer, of_cases, slices, peaks, n_patients, parser["specificity"])
    torch.save({"model": scorer.state_dict()}, given.output / "model.pt")  # for its thresholds alone
    torch.save(peer, given.output / "peer.pt")
    return {**spent, "peak_memory_mib": peak_memory(), **parameters(peer), "n_fitted": len(fitted)}


def train(given: argparse.Namespace, overlay: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train AE-Flow by the user's own command, unless the folder holds that training."""
    record = folder / "training.json"
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    files = [CONFIGS / "train.yaml", *([given.config] if given.config else []), path]
    command = [sys.executable, "-m", "monai.bundle", "run", "train", "--config_file", str([str(f) for f in files])]
    command += ["--dataset_dir", str(given.dataset_dir), "--output_dir", str(folder), "--seed", str(given.seed)]
    command += ["--epochs", str(given.epochs)] if given.epochs else []
    start, peak = time.perf_counter(), 0.0
    with (folder / "training.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            # only while it runs: a child's ru_maxrss starts at its parent's peak
            peak = float(np.nanmax([peak, peak_memory(process.pid)]))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"The training failed: see {folder / 'training.log'}.")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    report = {**spent, "peak_memory_mib": peak, "commit": commit()}
    record.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def fit_variant(given: argparse.Namespace, overlay: dict[str, Any]) -> dict[str, Any]:
    """Train AE-Flow, or take over a training that differs in the score alone and calibrate it anew."""
    trained = {name: value for name, value in overlay.items() if name not in SCORE_OPTIONS}
    settings = json.dumps([trained, given.epochs], sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    folder = given.output.parent / f"training-{digest}"
    report = train(given, trained, folder)
    model, path = given.output / "model.pt", given.output / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    if trained == overlay:
        shutil.copy(folder / "model.pt", model)
    else:
        parser = bundle(given, [path], evaluation=False, initial_weights="checkpoint").parser
        scorer: AnomalyScorer = parser.get_parsed_content("network")
        state = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)["model"]
        prefix = "aeflow."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        scorer.aeflow.load_state_dict(own)
        held_out, fitted = (parser.get_parsed_content(part) for part in ("validate#dataloader", "train#usual"))
        calibrate(scorer, held_out, parser["specificity"], fitted=fitted)
        torch.save({"model": scorer.state_dict()}, model)
    return {**report, **parameters(fitted_scorer(given, given.output))}


def fit_rescored(given: argparse.Namespace, peer: str) -> dict[str, Any]:
    """Calibrate the maps of another method, which is fitted already, as AE-Flow's are."""
    folder, path = given.output.parent / peer, given.output / "overlay.yaml"
    if not (folder / "fit.json").exists():
        raise SystemExit(f"{given.method} takes the fit of {peer}: name {peer} before it.")
    # the network that is not asked is as small as can be
    network = {"network_def::_target_": "rescored.RescoredPeer", "network_def::peer_path": str(folder / "peer.pt")}
    path.write_text(yaml.safe_dump({**network, "n_steps": 1, "keep_features": None}), encoding="utf-8")
    parser = bundle(given, [path], evaluation=False, initial_weights="checkpoint").parser
    scorer: AnomalyScorer = parser.get_parsed_content("network")
    held_out, fitted = (parser.get_parsed_content(part) for part in ("validate#dataloader", "train#usual"))
    calibrate(scorer, held_out, parser["specificity"], fitted=fitted)
    torch.save({"model": scorer.state_dict()}, given.output / "model.pt")
    return json.loads((folder / "fit.json").read_text(encoding="utf-8"))


def fitted_scorer(given: argparse.Namespace, folder: Path) -> AnomalyScorer:
    """A fitted variant of AE-Flow, from its folder."""
    workflow = bundle(given, [folder / "overlay.yaml"], evaluation=False, initial_weights="checkpoint")
    scorer: AnomalyScorer = workflow.parser.get_parsed_content("network")
    scorer.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True)["model"])
    return scorer.eval()


def parameters(network: torch.nn.Module) -> dict[str, int]:
    """How many numbers are trained, and how many are stored in all, statistics and memory banks included."""
    stored = [*network.parameters(), *network.buffers()]
    return {
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "stored_numbers": sum(tensor.numel() for tensor in stored),
    }


def fit(given: argparse.Namespace) -> dict[str, Any]:
    """Fit a method."""
    overlay, peer = overlay_of(given.method), rescored(given.method)
    if overlay is not None:
        return fit_variant(given, overlay)
    return fit_rescored(given, peer) if peer else fit_peer(given)


def score(given: argparse.Namespace) -> dict[str, Any]:
    """Evaluate by the bundle; another method takes the place of AE-Flow's network."""
    options = {"results_dir": str(given.output / "results"), "ckpt_path": str(given.output / "model.pt")}
    is_peer = (given.output / "peer.pt").exists()
    workflow = bundle(given, [] if is_peer else [given.output / "overlay.yaml"], evaluation=True, **options)
    workflow.initialize()
    if is_peer:
        peer = torch.load(given.output / "peer.pt", weights_only=False)
        workflow.parser["inferer"] = PeerInferer(peer, workflow.parser.get_parsed_content("slicer"))
    start = time.process_time()
    workflow.run()
    workflow.finalize()
    return {"cpu_seconds": time.process_time() - start, "peak_memory_mib": peak_memory()}


def speed(given: argparse.Namespace, repeats: int = 7) -> dict[str, Any]:
    """Milliseconds per image of all fitted methods of a seed and of the bare encoder, in turn, on the same images."""
    parser = bundle(given, [], evaluation=False).parser
    encoder = Encoder(parser["backbone"], peers.STAGES, parser["encoder_weights"], parser["in_channels"])
    networks: dict[str, torch.nn.Module] = {"encoder": encoder}
    for folder in sorted(file.parent for file in given.output.glob("*/fit.json")):
        if rescored(folder.name):  # whose network is twice what it had to be
            continue
        if (folder / "peer.pt").exists():
            networks[folder.name] = torch.load(folder / "peer.pt", weights_only=False).eval()
        else:
            networks[folder.name] = MapScorer(fitted_scorer(given, folder)).eval()
    image = torch.rand(peers.BATCH_SIZE, parser["in_channels"], *parser["image_size"])
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for name, network in networks.items():
                start = time.perf_counter()
                network(image)
                times[name].append(1000 * (time.perf_counter() - start) / len(image))
    # the first round warms up
    return {"ms_per_image": {name: statistics.median(found[1:]) for name, found in times.items()}}


def main() -> None:
    tasks = {"features": features, "fit": fit, "score": score, "speed": speed}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--method")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="folder of the kept features")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    given = parser.parse_args()
    os.chdir(ROOT)  # where MONAI looks for a bundle whose config files lie in several folders
    given.output.mkdir(parents=True, exist_ok=True)
    if given.method != "patchcore" or given.task != "fit":
        keep_freed_memory()  # the search for PatchCore's core set would keep one block more at each step
    report = tasks[given.task](given)
    report = {"commit": commit(), **report}  # of a training that was taken over: its own
    if given.task == "fit":
        report["settings"] = {"overlay": overlay_of(given.method), "epochs": given.epochs}
    unfinished = given.output / f".{given.task}.json"
    unfinished.write_text(json.dumps(report, indent=2), encoding="utf-8")
    unfinished.replace(given.output / f"{given.task}.json")  # its presence says that the task is done


if __name__ == "__main__":
    main()
