"""The argument parser of `aeflow`, without imports of torch or MONAI, so that the help is shown at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import shtab

from aeflow_monai.about import DISCLAIMER, __version__
from aeflow_monai.cli.helpful_parser import HelpfulParser, Once
from aeflow_monai.files import home

__all__ = ["parser"]

_EXIT_CODES = "exit codes: 0; 1 some cases failed, or the run broke off; 2 wrong use; 130 interrupted"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command; its result has `run`, "module:function" in this folder."""
    top = HelpfulParser(
        prog="aeflow",
        description=f"Find what is abnormal in medical images after seeing only normal ones. {DISCLAIMER}",
        epilog=f"aeflow VERB --help shows examples. {_EXIT_CODES}.",
    )
    top.add_argument("--version", action="version", version=__version__)
    shtab.add_argument_to(top, "--print-completion", help="print what completes the command in a shell")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, run: str, says: str, *examples: str) -> HelpfulParser:
        lines = "".join(f"  {example}\n" for example in examples)
        verb = verbs.add_parser(
            name,
            help=says,
            description=f"{says[:1].upper()}{says[1:]}. {DISCLAIMER}",
            epilog=f"examples:\n{lines}\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.set_defaults(run=run)
        shown = verb.add_mutually_exclusive_group()
        shown.add_argument("-q", "--quiet", action="store_true", help="print results and errors only")
        shown.add_argument("-v", "--verbose", action="store_true", help="print the log too, and tracebacks")
        return verb

    models = (_demo, _train, _predict, _evaluate, _calibrate, _prepare, _report, _compare, _export)
    for describe in (*models, _doctor, _label, _bundle, _config):
        describe(add)
    return top


_Add = Callable[..., HelpfulParser]


def _demo(add: _Add) -> None:
    verb = add(
        "demo",
        "fitting:demo",
        "train, evaluate and predict on the embedded, synthetic volumes; a few minutes without GPU",
        "aeflow demo -o demo",
        "aeflow demo -o demo --epochs 2      # faster and worse",
    )
    _output(verb, "folder of all that is written", required=False)
    verb.add_argument("--epochs", type=int, metavar="N", help="of the training")
    _config_options(verb)


def _train(add: _Add) -> None:
    verb = add(
        "train",
        "fitting:train",
        "train a model on normal images; its folder is a complete bundle",
        "aeflow train DATA -o RUN",
        "aeflow train DATA -o RUN --preset healthy_t1 --epochs 20 --set network_def#network#clamp=1.9",
        "aeflow train DATA -o RUN --resume    # go on with an interrupted training",
    )
    verb.add_argument("data", metavar="DATA", help="folder or list of images, see docs/data.md")
    _output(verb, "folder of the new model")
    verb.add_argument("--preset", action="append", default=[], metavar="NAME", help="by name or path; may be repeated")
    verb.add_argument("--epochs", type=int, metavar="N", help="default: 2, or more where slices are few")
    verb.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    _config_options(verb)
    _dry_run(verb)


def _predict(add: _Add) -> None:
    verb = add(
        "predict",
        "scoring:predict",
        "score images, and write anomaly maps and masks in their own geometry",
        "aeflow predict scan.nii.gz -m RUN -o maps",
        "find SCANS -name '*_T1w.nii.gz' | aeflow predict - -m RUN -o maps --json",
        "aeflow predict list.txt -m RUN -o OUT --shard 3/16    # the same again goes on",
    )
    verb.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, several, a folder, a folder of DICOM, a list (.txt, .csv, .jsonl), or - for paths by line",
    )
    _model(verb)
    _output(verb, "folder of maps, masks and scores.csv")
    verb.add_argument(
        "--outputs",
        metavar="NAMES",
        help="what is written, as anomaly_map,anomaly_mask; of anomaly_map, anomaly_mask, reconstruction, residual, "
        "log_likelihood, overlay, profile (default: all)",
    )
    verb.add_argument(
        "--shard",
        metavar="K/N",
        help="score part K of N, with a ledger: the same command goes on after whatever ended it, see docs/scale.md",
    )
    verb.add_argument("--resume", action="store_true", help="keep a ledger and go on with it, as --shard 1/1")
    verb.add_argument("--retry-failed", action="store_true", help="of a ledger: score those that failed again")
    verb.add_argument("--ray", metavar="ADDRESS", help="score on a Ray cluster, or local; needs the extra [ray]")
    verb.add_argument("--workers", type=int, metavar="N", help="of --ray (default: one for each GPU, or core)")
    _scoring(verb)


def _evaluate(add: _Add) -> None:
    verb = add(
        "evaluate",
        "scoring:evaluate",
        "compare a model's scores and maps with labels and masks; completes its model card",
        "aeflow evaluate DATA -m RUN",
        "aeflow evaluate DATA -m RUN -o results --set 'normal_classes=[HEALTHY]'",
    )
    verb.add_argument("data", metavar="DATA", help="folder or list of labelled images")
    _model(verb)
    _output(verb, "folder of the results (default: a new one in the home folder of aeflow)", required=False)
    _scoring(verb)


def _calibrate(add: _Add) -> None:
    verb = add(
        "calibrate",
        "fitting:calibrate",
        "fit a model's scores and thresholds to normal images of another site; writes a new bundle",
        "aeflow calibrate NORMALS -m RUN -o SITE",
        "aeflow calibrate NORMALS -m RUN -o SITE --specificity 0.9",
    )
    verb.add_argument("data", metavar="NORMALS", help="folder or list of normal images")
    _model(verb)
    _output(verb, "folder of the new model")
    verb.add_argument("--specificity", type=float, metavar="P", help="that the thresholds aim at (default: 0.95)")
    _config_options(verb)


def _prepare(add: _Add) -> None:
    verb = add(
        "prepare",
        "fitting:prepare",
        "read a data set once, tell what is made of it, and write a list of it",
        "aeflow prepare DATA -o LISTED",
        "aeflow prepare DATA -o LISTED --preset healthy_t1",
    )
    verb.add_argument("data", metavar="DATA", help="folder or list of images")
    _output(verb, "folder of dataset.json")
    verb.add_argument("--preset", action="append", default=[], metavar="NAME", help="by name or path")
    _config_options(verb)


def _report(add: _Add) -> None:
    verb = add(
        "report",
        "scoring:report",
        "write report.html of an inference or evaluation again, from its tables; merge shards",
        "aeflow report results",
        "aeflow report maps --quiet",
    )
    verb.add_argument("folder", metavar="FOLDER", help="folder of the results, or of the results of shards")
    verb.add_argument("--json", action="store_true", help="of shards: print how many are done as a JSON object")


def _compare(add: _Add) -> None:
    verb = add(
        "compare",
        "comparison:compare",
        "evaluate models on the same labelled images, and compare them case by case",
        "aeflow compare DATA -m RUN_A RUN_B",
        "aeflow compare DATA -m RUN_A RUN_B -o comparison",
    )
    verb.add_argument("data", metavar="DATA", help="folder or list of labelled images")
    verb.add_argument("-m", "--model", nargs=2, required=True, metavar="RUN", help="folders of two trainings")
    _output(verb, "folder of the evaluations and comparison.json", required=False)
    _scoring(verb)


def _export(add: _Add) -> None:
    verb = add(
        "export",
        "exporting:export",
        "write a model as one file, or one per plane, for ONNX Runtime, OpenVINO or torch, with all of its scoring",
        "aeflow export RUN --to onnx -o EXPORTED",
        "aeflow export RUN --to openvino -o EXPORTED",
    )
    verb.add_argument("folder", metavar="RUN", help="folder of a training")
    verb.add_argument("--to", required=True, choices=["onnx", "openvino", "torch"], help="what the file is for")
    _output(verb, "folder of the model and its JSON file; or the path of the model")
    verb.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def _doctor(add: _Add) -> None:
    verb = add(
        "doctor",
        "doctor:doctor",
        "check that all that is needed is here and works, with remedies",
        "aeflow doctor",
        "aeflow doctor -m RUN",
    )
    verb.add_argument("-m", "--model", metavar="RUN", help="folder of a training, whose model is tried too")


def _bundle(add: _Add) -> None:
    verb = add(
        "bundle",
        "bundles:bundle",
        "check the bundle that a training wrote, and print the commands of MONAI for it",
        "aeflow bundle RUN",
        "aeflow bundle /models/site_b",
    )
    verb.add_argument("folder", metavar="RUN", help="folder of a training")


def _config(add: _Add) -> None:
    verb = add(
        "config",
        "bundles:config",
        "print the paths of the package's own configs and presets, as --config_file of MONAI takes them",
        "aeflow config    # which there are",
        "aeflow config train chest_xray",
        'python -m monai.bundle run train --config_file "$(aeflow config train)" --dataset_dir DATA --output_dir RUN',
    )
    verb.add_argument("names", nargs="*", metavar="NAME", help="train, then presets, by name or path; if none, all")


def _label(add: _Add) -> None:
    verb = add(
        "label",
        "serving:label",
        "serve anomaly maps and a sorted worklist to 3D Slicer and OHIF, by MONAI Label",
        "aeflow label --studies SCANS --model RUN",
        "aeflow label --studies http://pacs:8042/dicom-web --model RUN --port 8010",
    )
    verb.add_argument("--studies", help="folder of images, or the address of a DICOMweb server")
    verb.add_argument("-m", "--model", metavar="RUN", help="folder of a training, to begin with its model")
    verb.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="NAME",
        help="without a model: preset of the first training, by name or path; may be repeated",
    )
    verb.add_argument(
        "--app", default=home("label"), help="folder for models, logs and temporary files (default: %(default)s)"
    )
    verb.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to serve other machines (default: %(default)s)")
    verb.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    verb.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="further address by which browsers may reach the server, such as https://reading.example.org; may be "
        "repeated",
    )
    verb.add_argument(
        "--allow-anyone",
        action="store_true",
        help="with a --host that other machines reach: serve them without a password",
    )
    verb.add_argument(
        "--max-upload-mb",
        type=float,
        default=1024,
        metavar="MB",
        help="largest request, in megabytes (default: %(default)s)",
    )
    verb.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    verb.add_argument("--init", action="store_true", help="only make the app's folder, for MONAI Label's own command")


def _model(verb: HelpfulParser) -> None:
    verb.add_argument("-m", "--model", required=True, metavar="RUN", help="folder of a training")


def _output(verb: HelpfulParser, says: str, required: bool = True) -> None:
    verb.add_argument("-o", "--output", action=Once, required=required, metavar="FOLDER", help=says)


def _config_options(verb: HelpfulParser) -> None:
    verb.add_argument("--device", metavar="NAME", help="of torch, as cpu or cuda:1 (default: a GPU if there is one)")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="any other option of the config, see docs/options.md; may be repeated",
    )


def _scoring(verb: HelpfulParser) -> None:
    _config_options(verb)
    verb.add_argument(
        "--runtime",
        choices=["auto", "torch", "onnxruntime", "openvino"],
        help="what computes the network (default: the fastest that is installed, see docs/speed.md)",
    )
    verb.add_argument("--overwrite", action="store_true", help="take away the results of an earlier run")
    verb.add_argument("--json", action="store_true", help="print a JSON object for each case, and nothing else")
    _dry_run(verb)


def _dry_run(verb: HelpfulParser) -> None:
    verb.add_argument("--dry-run", action="store_true", help="say what would be read, skipped and written")


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE; got {text!r}")
    return name, value
