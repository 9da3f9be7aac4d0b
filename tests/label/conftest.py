import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from asking import CASE, MEGABYTES, ORIGIN, OUTSIDE
from outputs import contents
from PIL import Image

ROOT = Path(__file__).parents[2]
WITHOUT_MONAI_LABEL = ("test_models.py",)
# Writes down what a process opens to write, and where it connects to.
AUDIT = """
import os, sys
_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def _hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        mode, flags = args[1], args[2] or 0
        writes = any(c in mode for c in "wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
        if writes:
            os.write(_log, f"write {os.path.abspath(os.fsdecode(args[0]))}\\n".encode())
    elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
        os.write(_log, f"write {os.path.abspath(os.fsdecode(args[1 if event != 'os.mkdir' else 0]))}\\n".encode())
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(_log, f"network {event} {args[1] if event != 'socket.getaddrinfo' else args[0]!r}\\n".encode())
sys.addaudithook(_hook)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What holds for all tests of this folder."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))  # of its client
        if importlib.util.find_spec("monailabel") is None and item.path.name not in WITHOUT_MONAI_LABEL:
            reason = "MONAI Label has an environment of its own: pip install -e '.[label]'"
            item.add_marker(pytest.mark.skip(reason=reason))


class Server:
    """A MONAI Label server on loopback, and its client."""

    def __init__(self, folder: Path, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder / "server.log"
        self.downloads = folder / "downloads"
        self.downloads.mkdir(exist_ok=True)
        self.command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 240) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                self.get("/info/")
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise TimeoutError(self.log.read_text())

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End the server alone, so that a process it started outlives it."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        self.process.wait(30)

    def close(self) -> None:
        """End all that it started."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.process.wait(30)

    def ask(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Status and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def get(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """Content of an answer that is no refusal."""
        status, content = self.ask(path, method, body)
        assert status == 200, content
        return content

    @property
    def client(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it imports is deprecated
            from monailabel.client import MONAILabelClient

        return MONAILabelClient(f"http://127.0.0.1:{self.port}", tmpdir=str(self.downloads))

    def peak_megabytes(self) -> float:
        """The largest memory of the server's process so far."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def refusal(self, method: str, *arguments: Any) -> str:
        """What the client is told when it is refused."""
        client = self.client
        try:
            getattr(client, method)(*arguments)
        except Exception as error:  # of the client, whose class cannot be imported where it is not installed
            return str(error.msg)  # type: ignore[attr-defined]
        raise AssertionError(f"{method}{arguments} was not refused")

    def wait_for(self, task: str, timeout: float = 600) -> dict[str, Any]:
        """The status of a task's last process when it has ended."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = self.get(task)
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                return dict(status)
            time.sleep(0.2)
        raise TimeoutError(self.log.read_text())

    def evaluation(self) -> dict[str, Any]:
        """The report of the voxel metrics, made anew if something changed."""
        self.get("/scoring/voxel_metrics", "POST", {})
        status = self.wait_for("/scoring/")
        assert status["status"] == "DONE", status["details"]
        return dict(self.client.info()["train_stats"]["anomaly"]["evaluation"])

    def wait_for_scores(self, version: int, ask: bool = True, timeout: float = 600) -> dict[str, Any]:
        """Info of all images when a version of the model has scored them; it is asked to, or does so by itself."""
        if ask:
            self.get("/scoring/anomaly_score", "POST", {})
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            objects = self.client.datastore()["objects"]
            infos = {name: entry["image"]["info"] for name, entry in objects.items()}
            if all(info.get("anomaly_model") == version for info in infos.values()):
                return infos
            time.sleep(0.3)
        raise TimeoutError(self.log.read_text())


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory, tiny_training: dict[str, Any]) -> Path:
    """A preset for a first training of seconds."""
    file = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_training))
    return file


@pytest.fixture(scope="session")
def make_studies(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a folder with four oblique volumes, two of them with lesions, a picture, and a file that is no image."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("studies")
        for name in ("test_normal_000", "test_normal_001", "test_abnormal_000", "test_abnormal_001"):
            shutil.copy(volumes / f"images/{name}.nii.gz", folder)
        volume = nib.load(volumes / "images/test_abnormal_000.nii.gz")
        slices = np.moveaxis(volume.get_fdata(), int(np.argmin(volume.shape)), 0)
        pixels = (slices[10] / slices[10].max() * 255).astype(np.uint8)
        Image.fromarray(pixels.T).save(folder / "picture.png")
        (folder / "broken.nii.gz").write_bytes(b"this is no image")
        return folder

    return make


@pytest.fixture(scope="module")
def studies(make_studies: Callable[[], Path]) -> Path:
    return make_studies()


@pytest.fixture(scope="session")
def make_server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Makes servers of the app, which are ended with the session."""
    servers: list[Server] = []

    def make(studies: Path | str, *options: str, model: Path | None = trained, **environment: str) -> Server:
        folder = tmp_path_factory.mktemp("server")
        command = [sys.executable, "-m", "aeflow_monai.cli.main", "label", "--studies", str(studies)]
        command += ["--app", str(folder / "app"), *options]
        command += ["--model", str(model)] if model else []
        servers.append(Server(folder, command, environment))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a server that writes down what it writes and where it connects to."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "sitecustomize.py").write_text(AUDIT)
    (folder / "home").mkdir()
    return {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "AUDIT_LOG": str(folder / "log"),
        "HOME": str(folder / "home"),
        # which the import of torch makes, before anything of this package runs
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "home/.cache/torchinductor"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture(scope="session")
def guarded_studies(make_studies: Callable[[], Path]) -> Path:
    """The studies of `guarded`, with names that no request can have, and a file outside."""
    folder = make_studies()
    (folder.parent / "outside").mkdir(exist_ok=True)
    (folder.parent / "outside/secret.nii.gz").write_text(OUTSIDE)
    shutil.copy(folder / f"{CASE}.nii.gz", folder / "UPPER.NII.GZ")
    for name in ("a\nINFO forged.png", os.fsdecode(b"\xff.png"), ".hidden.png"):
        shutil.copy(folder / "picture.png", folder / name)
    shutil.copy(folder / f"{CASE}.nii.gz", folder / "twin.nii.gz")
    nib.save(nib.load(folder / "test_normal_000.nii.gz"), folder / "twin.nii")
    return folder


@pytest.fixture(scope="session")
def guarded(guarded_studies: Path, make_server: Callable[..., Any]) -> Iterator[Any]:
    """A server that whoever may ask, shared by all who attack it; garbage lies where its models and sessions are."""
    options = ("--origin", ORIGIN, "--max-upload-mb", str(MEGABYTES))
    server = make_server(guarded_studies, *options, MONAI_LABEL_AUTO_UPDATE_SCORING="false")
    server.folder.joinpath("app/model/v7").mkdir(parents=True)  # garbage that is there before the start
    for garbage in ("app/model/v7/models", "app/model/v8/models", "app/sessions/garbage"):
        server.folder.joinpath(garbage).mkdir(parents=True)
    for file in ("v7/models/model.pt", "model.pt", "v9", "train_stats.json", "evaluation.json"):
        server.folder.joinpath("app/model", file).write_bytes(b"garbage")
    server.start()
    yield server
    server.close()


@pytest.fixture
def nothing_is_written(guarded: Any, guarded_studies: Path) -> Iterator[None]:
    """Whatever a test asks for, all that lies outside of the studies and the app stays as it is."""
    outside = guarded_studies.parent / "outside"
    before = contents(outside)
    yield
    assert contents(outside) == before
    assert (guarded.folder / "app/main.py").is_file()
    assert guarded.ask("/info/")[0] == 200  # it lives on
