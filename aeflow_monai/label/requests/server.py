"""Start MONAI Label's server with the app."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.engine.config.template import config_files
from aeflow_monai.label.requests.addresses import is_loopback, parse_origin

__all__ = ["MAX_UPLOAD_MB", "make_app_folder", "refuse_presets_beside_a_model", "serve"]

# For comparison: 512 x 512 x 1000 voxels of 16 bits take 524 MB.
MAX_UPLOAD_MB = 1024

# MONAI Label imports the class of the app from a file main.py in the app's folder.
_MAIN = "from aeflow_monai.label.app import AnomalyApp\n\n__all__ = ['AnomalyApp']\n"


def make_app_folder(folder: str | Path) -> Path:
    """Create an app folder for `monailabel start_server --app`; it also holds models, logs and temporary files.

    Args:
        folder: created if missing.

    Returns:
        Its absolute path.
    """
    folder = Path(folder).absolute()
    for name in ("", "model", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    main = folder / "main.py"
    if not main.is_file() or main.read_text(encoding="utf-8") != _MAIN:
        main.write_text(_MAIN, encoding="utf-8")
    return folder


def refuse_presets_beside_a_model(model: str | None, presets: Sequence[str]) -> None:
    """Refuse presets of a first training if a model is given.

    Args:
        model: folder of the model's bundle, if any.
        presets: names or paths of presets.

    Raises:
        ValueError: both are given.
    """
    if model and presets:
        raise ValueError(
            f"Leave the presets away ({', '.join(presets)}): they are for the first training of a server without a "
            f"model. The model in {model} has its own options, and trainings from the viewer go on with them."
        )


def serve(
    studies: str,
    app_dir: str | Path,
    *,
    model: str | None = None,
    presets: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    origins: Sequence[str] = (),
    allow_anyone: bool = False,
    max_upload_mb: float = MAX_UPLOAD_MB,
    log_level: str = "INFO",
) -> None:
    """Run the server until it is stopped.

    Args:
        studies: folder of images, or the address of a DICOMweb server.
        app_dir: see `make_app_folder`.
        model: bundle of a training to start with.
        presets: presets of the first training if there is no model; see `config_files`.
        host: address to listen on; "0.0.0.0" accepts other machines.
        port: port to listen on.
        origins: further addresses by which browsers may reach it, see `parse_origin`.
        allow_anyone: whether other machines that reach the port may use it without a password.
        max_upload_mb: most megabytes of a request.
        log_level: DEBUG, INFO, WARNING or ERROR.

    Raises:
        FileNotFoundError: the folder of studies or the bundle does not exist.
        ValueError: the model is not a complete bundle; a preset does not exist; presets are given with a model; an
            origin is invalid; or other machines could reach the server without a password.
        ModuleNotFoundError: MONAI Label is not installed.
    """
    if not studies.startswith(("http://", "https://")) and not Path(studies).is_dir():
        raise FileNotFoundError(f"Expected a folder of images at {studies}; there is none. Correct --studies.")
    refuse_presets_beside_a_model(model, presets)
    _refuse_an_open_door(host, allow_anyone)
    if not max_upload_mb > 0:
        raise ValueError(f"Expected a number of megabytes above 0 for --max-upload-mb; got {max_upload_mb:g}.")
    known = [*map(parse_origin, origins), *_own_names(host, port)]
    from aeflow_monai.label.models import require_bundle  # imports torch, which the command's help does not need

    # checked early for a clear message; absolute, since MONAI Label's processes may run in another folder
    conf = {
        "model": str(require_bundle(model).absolute()) if model else None,
        "presets": ",".join(config_files(*presets)),
        "origins": ",".join(known),
        "allow_anyone": str(allow_anyone).lower(),
        "max_upload_mb": f"{max_upload_mb:g}",
    }
    folder = make_app_folder(app_dir)
    # before MONAI Label is imported: it and its processes put temporary files there
    os.environ["TMPDIR"] = str(folder / "tmp")
    try:
        from monailabel.main import Main
    except ModuleNotFoundError as error:
        if error.name != "monailabel":
            raise
        raise ModuleNotFoundError(
            "MONAI Label is not installed here. Make an environment of its own for it, since it needs an older pydicom "
            "and numpy, and there: pip install 'aeflow_monai[label]'",
            name="monailabel",
        ) from error
    arguments: Sequence[str] = [
        *("start_server", "--app", str(folder), "--studies", studies, "--host", host, "--port", str(port)),
        *("--verbose", log_level),
        *(word for name, value in conf.items() if value for word in ("--conf", name, value)),
    ]
    main = Main()
    main.action_start_server(main.args_parser().parse_args(arguments))


def _refuse_an_open_door(host: str, allow_anyone: bool) -> None:
    has_password = os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "yes")
    if not (is_loopback(host) or allow_anyone or has_password):
        raise ValueError(
            f"With --host {host}, other machines reach the server, which has no password: whoever does sees "
            "the images and changes labels. docs/monai_label.md says in steps how to set a password and TLS. If the "
            "network itself keeps strangers out, say so with --allow-anyone."
        )


def _own_names(host: str, port: int) -> list[str]:
    """Return the address that the server listens on, or the machine's name if it listens on all addresses."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return [parse_origin(f"http://{name}:{port}")]
