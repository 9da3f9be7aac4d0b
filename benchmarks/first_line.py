"""Times to the first line and to the end of `aeflow`, and of the equivalent MONAI command.

    python benchmarks/first_line.py [--repeats 3] [--page docs/command.md]

Measures the help, a training of one epoch on the existing volumes of the demo, and a prediction of one of them by that
model. Both ways take turns, several times; the table has medians. With `--page` it is written into that page, between
the lines `<!-- first_line.py -->` and `<!-- end of first_line.py -->`. Run it on an idle machine.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared import arguments, bundle_command, commit, machine

from aeflow_monai import config_files, write_phantom
from aeflow_monai.files import replacing

BEGIN, END = "<!-- first_line.py -->", "<!-- end of first_line.py -->"
WAYS = ("python -m monai.bundle run", "aeflow")


def timed(command: list[str]) -> tuple[float, float]:
    """Return seconds to the first line on either stream, and to the end."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
    return first, time.perf_counter() - start


def commands(data: Path, folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return each task as commands of MONAI and of `aeflow`, in order, with results in a new folder."""
    aeflow = [str(Path(sys.executable).with_name("aeflow"))]
    image, model = str(data / "images/test_abnormal_000.nii.gz"), folder / "aeflow"
    trained = {"dataset_dir": data, "output_dir": folder / "monai", "epochs": 1}
    scored = {"dataset_dir": image, "output_dir": folder / "monai_maps"}
    return {
        "`--help`": ([sys.executable, "-m", "monai.bundle", "run", "--", "--help"], [*aeflow, "--help"]),
        "`train`, 40 volumes, 1 epoch": (
            bundle_command(config_files("train"), trained, "train"),
            [*aeflow, "train", str(data), "-o", str(model), "--epochs", "1"],
        ),
        "`predict`, one volume": (
            bundle_command([model / "configs/inference.yaml"], scored),
            [*aeflow, "predict", image, "-m", str(model), "-o", str(folder / "aeflow_maps")],
        ),
    }


def table(found: dict[str, list[list[tuple[float, float]]]]) -> str:
    """Format medians as Markdown."""
    lines = [
        f"| | {' | '.join(f'`{way}`: first line, s | end, s' for way in WAYS)} |",
        "|---|---|---|---|---|",
    ]
    for title, ways in found.items():
        medians = [statistics.median(values) for times in ways for values in zip(*times, strict=True)]
        lines.append(f"| {title} | {' | '.join(f'{value:.1f}' for value in medians)} |")
    return "\n".join([*lines, "", f"Medians, commit {commit()}, {machine()}."])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    found: dict[str, list[list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = write_phantom(Path(name, "data"))
        for i in range(given.repeats):
            for title, pair in commands(data, Path(name, str(i))).items():
                for way, command in zip(found.setdefault(title, [[], []]), pair, strict=True):
                    way.append(timed(command))
    print(table(found))
    if given.page:
        text = given.page.read_text(encoding="utf-8")
        pattern = f"(?<={re.escape(BEGIN)}\n).*(?=\n{re.escape(END)})"
        new, n_places = re.subn(pattern, lambda _: f"\n{table(found)}\n", text, flags=re.DOTALL)
        if n_places != 1:
            raise ValueError(f"Expected one place for the table, {BEGIN} ... {END}, in {given.page}; got {n_places}.")
        with replacing(given.page) as draft:
            draft.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
