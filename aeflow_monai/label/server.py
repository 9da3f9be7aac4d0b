"""Starts MONAI Label's server with the app."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["make_app_folder", "refuse_presets_beside_a_model", "serve"]

# MONAI Label looks for a file of this name in the app's folder, and for a class in it.
_MAIN = "from aeflow_monai.label.app import AnomalyApp\n\n__all__ = ['AnomalyApp']\n"


def make_app_folder(folder: str | Path) -> Path:
    """Make a folder that `monailabel start_server --app` takes; models, logs and temporary files go there.

    Args:
        folder: is made if it is missing.

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
    """Refuse presets of a first training where a model is given.

    Args:
        model: folder of its bundle, if any.
        presets: by name or path.

    Raises:
        ValueError: there are both.
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
    log_level: str = "INFO",
) -> None:
    """Run the server until it is stopped.

    Args:
        studies: folder of images, or the address of a DICOMweb server.
        app_dir: see `make_app_folder`.
        model: folder of a training's bundle to begin with.
        presets: of the first training, where there is no model; see `config_files`.
        host: address to listen at; "0.0.0.0" accepts other machines.
        port: to listen at.
        log_level: DEBUG, INFO, WARNING or ERROR.

    Raises:
        FileNotFoundError: there is no such folder of studies, or no such bundle.
        ValueError: the model is no whole bundle; there is no such preset; or presets are given beside a model.
        ModuleNotFoundError: MONAI Label is not installed.
    """
    if not studies.startswith(("http://", "https://")) and not Path(studies).is_dir():
        raise FileNotFoundError(f"Expected a folder of images at {studies}; there is none. Correct --studies.")
    refuse_presets_beside_a_model(model, presets)
    from aeflow_monai.engine.config import config_files  # with torch, which the command's help does without
    from aeflow_monai.label.models import require_bundle

    # checked here, where an error is only a message; absolute, since MONAI Label's own processes may run elsewhere
    conf = {
        "model": str(require_bundle(model).absolute()) if model else None,
        "presets": ",".join(config_files(*presets)),
    }
    folder = make_app_folder(app_dir)
    # before MONAI Label is imported: it and the processes that it starts put temporary files there
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "tmp/inductor"))
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
