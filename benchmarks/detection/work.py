"""One step of the comparison, in a process of its own so that its memory and time are its own. Started by run.py.

    python work.py serve                                                steps that it is told, each in a forked process
    python work.py features --dataset_dir NORMALS --output DIR ...      the frozen encoder's features, once for all
    python work.py fit --method NAME --dataset_dir NORMALS --output DIR --seed N ...
    python work.py score --method NAME --dataset_dir TEST --output DIR --seed N ...
    python work.py speed --output DIR ...                               all fitted methods, in turn

A method is the name of one of peers.py, that name and "_rescored" (see rescored.py), the path of a config that goes on
top of the data set's, or "aeflow". The folder of a variant of AE-Flow is the bundle that its training wrote; that of
another method holds peer.pt.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from aeflow_monai import Encoder, Model, Score, Workflow, config_files
from aeflow_monai.data import FeatureDataset, SliceDataset
from aeflow_monai.engine import calibrate, number_of_epochs
from aeflow_monai.engine.bundles.bundle import write_bundle
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.engine.inference.allocator import keep_freed_memory
from aeflow_monai.files import read_json, replacing, write_json
from aeflow_monai.score import calibrate_score

sys.path.append(str(Path(__file__).parent.parent))
from map_inferer import Answer, MapMethod, evaluator_of
from methods import options_of, peer_kind, rescored
from peers import BATCH_SIZE, STAGES, FittedPeer
from rescored import MapsOfNormals, RescoredPeer
from shared import ROOT, arguments, bundle_command, commit, in_turn, peak_memory, template

# parts of the network_def that make scores and are not trained: such a variant takes over the training without them
SCORE_PARTS = ("score", "flow_term")


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
        features = [torch.from_numpy(np.array(stage[index], dtype=np.float32)) for stage in self.stages]
        return {**self.slices[index], "features": features}


class Spent:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def report(self) -> dict[str, float]:
        """By the clock, and of the processor."""
        wall, cpu = self.start
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def configs_of(given: argparse.Namespace) -> list[Path]:
    """The data set's config."""
    return [given.config] if given.config else []


def config_of_data(given: argparse.Namespace) -> ConfigParser:
    """The bundle's train.yaml with the data set's config; of axial slices, on which other methods are compared."""
    return template(*configs_of(given), dataset_dir=str(given.dataset_dir), seed=given.seed, axes=["axial"])


def encoder_of(parser: ConfigParser, stages: tuple[int, ...] = STAGES) -> Encoder:
    """The frozen encoder that all methods share."""
    return Encoder(parser["backbone"], stages, parser["encoder_weights"], parser["in_channels"])


def all_slices(given: argparse.Namespace, parser: ConfigParser) -> SliceDataset:
    """The slices of all normals."""
    preprocessing, slicer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("slicer")
    return SliceDataset(parser.get_parsed_content("normals"), preprocessing, slicer, folder=given.features / "slices")


def batches_of_normals(parser: ConfigParser) -> list[DataLoader[Any]]:
    """Held-out normals, some and all that are fitted on, and copies, as a training calibrates on them; no features."""
    fitted = {f"train#{name}#dataset#dataset": "@train#normal" for name in ("fitted", "trained", "varied")}
    parser.update({"validate#dataloader#dataset": "@validate#slices", **fitted})
    names = ("validate#dataloader", "train#fitted", "train#trained", "train#varied")
    return [parser.get_parsed_content(name) for name in names]


def single_score(parser: ConfigParser) -> Score:
    """The config's score, of a single map."""
    parser["network_def#score#n_terms"] = 1
    score: Score = parser.get_parsed_content("network_def#score")
    return score


def parameters(network: nn.Module) -> dict[str, int]:
    """How many numbers are trained, and how many are stored in all, statistics and memory banks included."""
    stored = [*network.parameters(), *network.buffers()]
    return {
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "stored_numbers": sum(tensor.numel() for tensor in stored),
    }


def features(given: argparse.Namespace) -> dict[str, Any]:
    """Compute the features of all normals, for all methods but AE-Flow, which keeps its own."""
    parser = config_of_data(given)
    encoder, slices = encoder_of(parser), all_slices(given, parser)
    spent = Spent()
    for index, stage in enumerate(FeatureDataset(slices, encoder, given.features).stages):
        with replacing(given.features / f"features_{index}.npy") as unfinished:  # the fits are other processes
            np.save(unfinished, stage)
    return {"n_slices": len(slices), **spent.report()}


def fit_peer(given: argparse.Namespace) -> dict[str, Any]:
    """Fit another method; its thresholds come from the same held-out normals as AE-Flow's."""
    kind = peer_kind(given.method)
    parser = config_of_data(given)
    set_determinism(given.seed)
    encoder = encoder_of(parser, kind.stages)
    kept = KeptSlices(all_slices(given, parser), given.features)
    held_out_files = {str(item["image"]) for item in parser.get_parsed_content("split")[1]}
    fitted, held_out = [], []
    for number, entry in enumerate(kept.slices.index):
        (held_out if entry["file"] in held_out_files else fitted).append(number)
    epochs = number_of_epochs(given.epochs or parser["epochs"], len(fitted), parser["batch_size"])
    peer = kind(encoder, tuple(kept.slices.shape[1:]), epochs)
    clock = Spent()
    peer.fit(Subset(kept, fitted))
    spent = clock.report()
    if given.method != "autoencoder":  # the encoder's pass over what was fitted belongs to the training
        once = read_json(given.features / "features.json")
        spent = {name: value + once[name] * len(fitted) / once["n_slices"] for name, value in spent.items()}
    report = {**spent, **parameters(peer), "n_fitted": len(fitted)}

    method = FittedPeer(peer, single_score(parser)).eval()

    def answer(numbers: list[int]) -> tuple[str, Answer]:
        stack = torch.stack([kept.slices[number]["image"] for number in numbers])
        return kept.slices.index[numbers[0]]["patient"], method.infer(stack, torch.arange(len(stack)))

    by_file = itertools.groupby(held_out, key=lambda number: kept.slices.index[number]["file"])
    with torch.no_grad():
        method.fit_thresholds((answer(list(numbers)) for _, numbers in by_file), parser["specificity"])
    torch.save(method, given.output / "peer.pt")
    return {**report, "peak_memory_mib": peak_memory()}


def fit_rescored(given: argparse.Namespace, peer: str) -> dict[str, Any]:
    """Calibrate the maps of another method, which is fitted already, as AE-Flow's are."""
    folder = given.output.parent / peer
    if not (folder / "fit.json").exists():
        raise SystemExit(f"{given.method} takes the fit of {peer}: name {peer} before it.")
    parser = config_of_data(given)
    method = RescoredPeer(load_method(folder).peer, single_score(parser)).eval()
    held_out, fitted = (MapsOfNormals(method.peer, batches) for batches in batches_of_normals(parser)[:2])
    calibrate_score(method.score, held_out, parser["specificity"], fitted)
    torch.save(method, given.output / "peer.pt")
    return read_json(folder / "fit.json")


def load_method(folder: Path) -> Any:
    """Another method that was fitted."""
    return torch.load(folder / "peer.pt", weights_only=False)


def train(given: argparse.Namespace, content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train AE-Flow by the user's own command, unless it is done; beside the bundle lie its config, log and report."""
    config, log, record = (folder.with_name(f"{folder.name}.{kind}") for kind in ("yaml", "log", "json"))
    if record.exists():
        return read_json(record)
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    command = bundle_command([config], {"dataset_dir": given.dataset_dir, "output_dir": folder}, "train")
    spent, peak = Spent(), 0.0
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"The training failed: see {log}.")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = {"seconds": spent.report()["seconds"], "cpu_seconds": usage.ru_utime + usage.ru_stime}
    report |= {"peak_memory_mib": peak, "commit": commit()}
    write_json(record, report)
    return report


def training_of(given: argparse.Namespace) -> tuple[ConfigParser, dict[str, Any], Path]:
    """A variant's config, the config of its training, and the training's folder.

    Variants that differ in the score alone have the same training.
    """
    options = {"seed": given.seed, "device": "cpu"}

    def merged(*configs: Path) -> ConfigParser:
        parser = Workflow(config_files("train", *map(str, configs)), logging_file=False, **options).parser
        content = parser["given"].content
        if given.epochs:  # which show copies too: as many slices as other methods see
            content["epochs"] = math.ceil(given.epochs / (1 + content["acquisition_copies"]))
        return parser

    plain = merged(*configs_of(given))["given"].content
    parser = merged(*configs_of(given), *([Path(given.method)] if options_of(given.method) else []))
    content = parser["given"].content
    own = {"network_def": {**content["network_def"], **{part: plain["network_def"][part] for part in SCORE_PARTS}}}
    trained = {**content, **own, "specificity": plain["specificity"]}
    digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:8]
    return parser, trained, given.output.parent / f"training-{digest}"


def fit_variant(given: argparse.Namespace) -> dict[str, Any]:
    """Train AE-Flow, or take over a training that differs in the score alone and calibrate it anew."""
    parser, trained, folder = training_of(given)
    content = parser["given"].content
    report = train(given, trained, folder)
    if content == trained:
        unused = shutil.ignore_patterns("checkpoints", "tensorboard")
        shutil.copytree(folder, given.output, dirs_exist_ok=True, ignore=unused)
    else:
        data = {"dataset_dir": str(given.dataset_dir)}
        parser.update(data)
        detector, stored = parser.get_parsed_content("network_def"), read_model(model_path(folder))
        prefix, state = "network.", stored.state
        of_network = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        detector.network.load_state_dict(of_network)
        held_out, fitted, trained, varied = batches_of_normals(parser)
        slicer = parser.get_parsed_content("slicer")
        calibrate(detector, held_out, content["specificity"], fitted, trained, varied, slicer)
        write_bundle(
            given.output, detector, {**content, **data}, {**stored.card, "specificity": content["specificity"]}
        )
    return {**report, **parameters(Model(given.output).detector)}


def fit(given: argparse.Namespace) -> dict[str, Any]:
    """Fit a method."""
    if options_of(given.method) is not None:
        return fit_variant(given)
    peer = rescored(given.method)
    return fit_rescored(given, peer) if peer else fit_peer(given)


def score(given: argparse.Namespace) -> dict[str, Any]:
    """Evaluate a variant of AE-Flow by its bundle; another method by the template of it, without a training."""
    options = {"dataset_dir": str(given.dataset_dir), "output_dir": str(given.output / "results"), "device": "cpu"}
    fitted = given.fitted or given.output
    if options_of(given.method) is not None:
        configs = fitted / "configs"
        logging = str(configs / "logging.conf")
        workflow = Workflow(str(configs / "evaluate.yaml"), workflow_type="infer", logging_file=logging, **options)
        workflow.initialize()
        steps: list[Callable[[], object]] = [workflow.run, workflow.finalize]
    else:
        parser = template(*configs_of(given), "inference", "evaluate", **options)
        steps = [evaluator_of(parser, load_method(fitted)).run]
    spent = Spent()
    for step in steps:
        step()
    return {"cpu_seconds": spent.report()["cpu_seconds"], "peak_memory_mib": peak_memory()}


def speed(given: argparse.Namespace, repeats: int = 7) -> dict[str, Any]:
    """Milliseconds per image of all fitted methods of a seed and of the bare encoder, in turn, on the same images."""
    parser = config_of_data(given)
    image = torch.rand(BATCH_SIZE, parser["in_channels"], *parser["image_size"])
    calls: dict[str, Callable[[Tensor], Any]] = {"encoder": encoder_of(parser)}
    for folder in sorted(file.parent for file in given.output.glob("*/fit.json")):
        calls[folder.name] = (
            asked(load_method(folder)) if (folder / "peer.pt").exists() else Model(folder).detector.maps
        )
    with torch.no_grad():
        times = in_turn({name: partial(call, image) for name, call in calls.items()}, repeats)
    return {"ms_per_image": {name: 1000 * statistics.median(found) / len(image) for name, found in times.items()}}


def asked(method: MapMethod) -> Callable[[Tensor], Answer]:
    """What another method does with a batch of images."""
    return lambda image: method.infer(image, torch.arange(len(image)))


def serve() -> None:
    """Do the steps that the standard input names, each in a process forked from this one, which spares the imports.

    A line has the arguments of a step and the path of its log, as JSON; the answer is the step's exit code.
    """
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        process = fork.Process(target=_logged, args=json.loads(line))
        process.start()
        process.join()
        print(process.exitcode, flush=True)


def _logged(given: list[str], log: str) -> None:
    """One step, whose output goes to a file."""
    with Path(log).open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    main(given)


def return_freed_memory() -> None:
    """Let glibc give each large buffer back: the search for PatchCore's core set would keep one more at each step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    if mallopt is not None:
        mallopt(-3, 2**17)  # the threshold of its own mmap, which otherwise grows with the buffers


def main(words: list[str] | None = None) -> None:
    tasks = {"features": features, "fit": fit, "score": score, "speed": speed}
    parser = arguments(__doc__, "dataset_dir", "output")
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--method")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--fitted", type=Path, help="folder of the fit, if it is not the output")
    parser.add_argument("--features", type=Path, help="folder of the kept features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    given = parser.parse_args(words)
    given.output.mkdir(parents=True, exist_ok=True)
    if given.method == "patchcore" and given.task == "fit":
        return_freed_memory()
    else:
        keep_freed_memory()
    report = tasks[given.task](given)
    report = {"commit": commit(), **report}  # of a training that was taken over: its own
    if given.task == "fit":
        report["settings"] = {"options": options_of(given.method), "epochs": given.epochs}
    write_json(given.output / f"{given.task}.json", report)  # its presence says that the task is done


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
