"""The command `aeflow`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aeflow_monai.about import DISCLAIMER, __version__
from aeflow_monai.files import home

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; those of the process if None.

    Returns:
        The exit code: 0, or 1 after an error that the user can mend.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (OSError, ModuleNotFoundError, ValueError) as error:
        print(f"aeflow {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aeflow", description=f"AE-Flow anomaly detection for medical images. {DISCLAIMER}"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    config = commands.add_parser(
        "config",
        help="print the paths of configs and presets, for --config_file of `python -m monai.bundle run`",
        description="Print the paths of the package's own configs, as --config_file of `python -m monai.bundle run` "
        'takes them: --config_file "$(aeflow config train healthy_t1)".',
    )
    config.add_argument("names", nargs="+", help="train, then presets such as chest_xray, healthy_t1, brats2021, paper")
    config.set_defaults(run=_config)
    label = commands.add_parser(
        "label",
        help="serve anomaly maps and a sorted worklist to 3D Slicer and OHIF, by MONAI Label",
        description=f"Serve a folder of images to 3D Slicer and OHIF, by MONAI Label. {DISCLAIMER}",
    )
    label.add_argument("--studies", help="folder of images, or the address of a DICOMweb server")
    label.add_argument("--model", help="folder of a training, to begin with its model")
    label.add_argument(
        "--preset",
        action="append",
        default=[],
        help="without a model: preset of the first training, by name or path; may be repeated",
    )
    label.add_argument(
        "--app", default=home("label"), help="folder for models, logs and temporary files (default: %(default)s)"
    )
    label.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to serve other machines (default: %(default)s)")
    label.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    label.add_argument(
        "--origin",
        action="append",
        default=[],
        help="further address by which browsers may reach the server, such as https://reading.example.org; may be "
        "repeated",
    )
    label.add_argument(
        "--allow-anyone",
        action="store_true",
        help="with a --host that other machines reach: serve them without a password",
    )
    label.add_argument(
        "--max-upload-mb", type=float, default=1024, help="largest request, in megabytes (default: %(default)s)"
    )
    label.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    label.add_argument(
        "--init", action="store_true", help="only make the app's folder, for `monailabel start_server --app`"
    )
    label.set_defaults(run=_label)
    return parser


def _config(options: argparse.Namespace) -> int:
    from aeflow_monai.engine.config import config_files, require_order

    files = config_files(*options.names)
    require_order(files)
    print(files)
    return 0


def _label(options: argparse.Namespace) -> int:
    from aeflow_monai.label.server import make_app_folder, serve

    if options.init:
        print(make_app_folder(options.app))
        return 0
    if not options.studies:
        raise ValueError("Name the folder of your images with --studies <folder>.")
    print(DISCLAIMER, flush=True)
    serve(
        options.studies,
        options.app,
        model=options.model,
        presets=options.preset,
        host=options.host,
        port=options.port,
        origins=options.origin,
        allow_anyone=options.allow_anyone,
        max_upload_mb=options.max_upload_mb,
        log_level=options.log_level,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
