"""AE-Flow and its variants beside other methods: fitted and tested on the same images, with the same frozen encoder.

All methods and seeds are fitted first, by processes that are given a list of normals and no other; the test list is
read when that is over. What is done already is kept, so an interrupted run goes on, and a later one adds methods and
seeds. Usage:

    python benchmarks/detection/run.py --data DIR --output DIR [--set chest_xray] [--split dev] [--seeds 0 1 2]
        [--methods aeflow flow_only my_variant.yaml patchcore padim fastflow cflow ...] [--normals N] [--fit_only]

DIR holds chest_xray/manifest.csv, or healthy_t1 and ms_lesion/gold_masks_all30. --set may also be the path of whatever
the bundle can read and has a test split, as a MedMNIST .npz. A method is `aeflow` (the bundle's defaults and the data
set's config), the name of a config in benchmarks/detection/variants or the path of another one, one of peers.py, or
behind that, as `padim_rescored`, its maps with AE-Flow's way from a map to a score. anomalib's need the extra `bench`.
Last epoch for everyone. Written to the output: table.md, results.json, and a folder for each seed and method; that of
AE-Flow or a variant is its bundle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from aeflow_monai.files import read_json, replacing, write_json

sys.path.append(str(Path(__file__).parent.parent))
import protocols
from methods import label_of, options_of, peer_names, resolve, variant_names
from shared import arguments, commit, processor
from table import Result, markdown, summarise

HERE = Path(__file__).parent


class Runs:
    """The processes of one run, all of the same data and settings.

    Args:
        output: of the whole comparison.
        config: of the data set, if any.
        epochs: of all methods that are trained; the bundle's if None.
    """

    def __init__(self, output: Path, config: Path | None, epochs: int | None) -> None:
        self.output = output
        self.normals, self.test, self.features = output / "normals", output / "test", output / "features"
        self.config = config
        self.epochs = epochs
        self.server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            with self.server:  # which closes its standard input, so that it ends
                pass

    def folder(self, seed: int, method: str) -> Path:
        """Of the results of a method with a seed."""
        return self.output / f"seed{seed}" / label_of(method)

    def call(
        self,
        task: str,
        folder: Path,
        dataset: Path,
        seed: int = 0,
        method: str | None = None,
        fitted: Path | None = None,
    ) -> None:
        """Run a task in a process of its own, unless its result is there; of a method that lies there or elsewhere."""
        done = folder / f"{task}.json"
        if done.exists() and task != "speed":
            self._check(done, task, method)
            return
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{task}: {label_of(method) if method else 'all'}, seed {seed}", flush=True)
        words = [task, "--dataset_dir", str(dataset), "--seed", str(seed)]
        words += ["--output", str(folder), "--features", str(self.features)]
        words += ["--method", method] if method else []
        words += ["--fitted", str(fitted)] if fitted else []
        words += ["--config", str(self.config)] if self.config else []
        words += ["--epochs", str(self.epochs)] if self.epochs else []
        log = folder / f"{task}.log"
        code = self._serve(words, log)
        if code:
            raise SystemExit(f"{task} of {method or 'all'}, seed {seed}, failed with exit code {code}: see {log}.")

    def _serve(self, words: list[str], log: Path) -> int:
        """Have a step done in a process of its own, which a server forks; gives its exit code."""
        if self.server is None:
            command, quiet = [sys.executable, str(HERE / "work.py"), "serve"], {**os.environ, "TQDM_DISABLE": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.server = subprocess.Popen(command, **pipes, text=True, env=quiet)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([words, str(log)]), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline() or 1)

    def _check(self, done: Path, task: str, method: str | None) -> None:
        if task != "fit" or method is None:
            return
        was = read_json(done)["settings"]
        now = {"options": options_of(method), "epochs": self.epochs}
        if was != now:
            raise SystemExit(
                f"{done.parent} was fitted with {was}, now it is {now}: delete it, or name another --output."
            )


def same_protocol(output: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix data of two kinds, or two versions of a config, in one folder."""
    path = output / "protocol.json"
    was = read_json(path) or settings
    different = sorted(name for name in settings if was.get(name) != settings[name])
    if different:
        parts = "; ".join(f"{name} {was.get(name)!r} there, {settings[name]!r} now" for name in different)
        raise SystemExit(f"{output} holds a run of other normals or another config ({parts}); name another --output.")
    write_json(path, settings)


def main() -> None:
    parser = arguments(__doc__, "data", "output")
    parser.add_argument("--set", default="chest_xray", help="chest_xray, healthy_t1, phantom, or a path of data")
    parser.add_argument("--split", default="official", choices=["official", "dev"])
    parser.add_argument("--config", type=Path, help="on top of train.yaml for all methods, not the data set's own")
    parser.add_argument("--normal_classes", nargs="+", default=["NORMAL"], help="of a data set of your own")
    parser.add_argument("--methods", nargs="+", help="all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--normals", "--subjects", type=int, help="fit on this many training images or subjects only")
    parser.add_argument("--epochs", type=int, help="passes over the slices; the bundle's by default")
    parser.add_argument("--fit_only", action="store_true", help="stop before the test list is read")
    given = parser.parse_args()
    peers = peer_names()
    methods = [resolve(method) for method in given.methods or ["aeflow", *variant_names(), *peers]]
    output = given.output
    output.mkdir(parents=True, exist_ok=True)
    config = given.config.absolute() if given.config else None
    protocol = protocols.load(given.set, given.data, output, given.split, given.normals, config, given.normal_classes)
    settings = {"set": given.set, "split": given.split, "normals": given.normals, "digest": protocol.digest()}
    same_protocol(output, settings)
    first = output / f"seed{given.seeds[0]}"
    with Runs(output, protocol.config, given.epochs) as runs:
        # a later run that adds a method fits it as blindly as the first
        (runs.test / "manifest.csv").unlink(missing_ok=True)
        protocol.write_fit(runs.normals)
        if any(method in peers for method in methods):
            runs.call("features", runs.features, runs.normals)
        wanted = [(seed, method, runs.folder(seed, method)) for seed in given.seeds for method in methods]
        for seed, method, folder in wanted:
            runs.call("fit", folder, runs.normals, seed, method)
        if given.fit_only:
            return
        protocol.write_test(runs.test, [folder / "fit.json" for _, _, folder in wanted])
        for seed, method, folder in wanted:
            runs.call("score", folder, runs.test, seed, method)
        runs.call("speed", first, runs.normals, given.seeds[0])

    results = [Result.read(label_of(method), seed, folder) for seed, method, folder in wanted]
    summary: dict[str, Any] = {
        **settings,
        "epochs": given.epochs,
        "seeds": given.seeds,
        "commit": commit(),
        "machine": f"{processor()}, {torch.get_num_threads()} threads used",
        "torch": torch.__version__,
        **read_json(first / "speed.json"),
        "methods": summarise(results, peers=[name for name in methods if name in peers]),
    }
    write_json(output / "results.json", summary)
    text = markdown(summary)
    with replacing(output / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
