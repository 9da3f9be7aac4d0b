"""All methods on all sets, on development splits only, as the basis for choosing defaults.

    python benchmarks/other_organs.py --source CLONES --output SETS
    python benchmarks/panel.py --data DATA --sets SETS --output OUT --seeds 0 1 2 --methods aeflow padim dfm knn

One run of detection/run.py for each set, with the bundle's defaults (panel.yaml) or another encoder's config (--config
benchmarks/detection/encoders/lite2.yaml). Existing results are kept, so an interrupted run can be resumed, and a later
one adds sets, methods and seeds. Writes a folder for each set, and table.md: AUROC of images, or of cases and slices of
volumes, mean over seeds; then for each method the mean AUROC, the mean rank and the worst gap, the largest distance to
the best method on any set.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from other_organs import SETS
from shared import arguments, commit, processor, table_of_sets

from aeflow_monai.files import read_json, replacing

HERE = Path(__file__).parent
VOLUMES = ("healthy_t1", "phantom")
IMAGES = ("chest_xray", "dementia_mri", *SETS)


def source_of(name: str, data: Path, sets: Path) -> str:
    """Return a set as an argument of detection/run.py."""
    if name in ("chest_xray", *VOLUMES):
        return name
    return str((sets if name in SETS else data) / name)


def columns(name: str, output: Path) -> dict[str, dict[str, float]]:
    """Return the AUROC of each method by table column; empty if the set has not been run."""
    methods = (read_json(output / name / "results.json") or {}).get("methods", {})
    fitted = {method: row for method, row in methods.items() if not row.get("trivial")}
    found = {f"{name}, cases" if name in VOLUMES else name: {key: row["auroc"] for key, row in fitted.items()}}
    if name in VOLUMES:
        found[f"{name}, slices"] = {key: row["slice AUROC"] for key, row in fitted.items()}
    return {column: of_methods for column, of_methods in found.items() if of_methods}


def main() -> None:
    parser = arguments(__doc__, "data", "sets", "output")
    parser.add_argument("--only", nargs="+", default=[*IMAGES, *VOLUMES], help="names of sets; all by default")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--config", type=Path, default=HERE / "panel.yaml", help="of all sets; see detection/encoders")
    parser.add_argument("--methods", nargs="+", default=["aeflow", "padim", "dfm", "patchcore", "fastflow", "knn"])
    given = parser.parse_args()
    for name in given.only:
        command = [sys.executable, HERE / "detection/run.py", "--data", given.data, "--output", given.output / name]
        command += ["--set", source_of(name, given.data, given.sets), "--split", "dev", "--config", given.config]
        subprocess.run([*map(str, command), "--seeds", *given.seeds, "--methods", *given.methods], check=True)
    found = {column: row for name in given.only for column, row in columns(name, given.output).items()}
    head = f"Development splits, seeds {', '.join(given.seeds)}; commit {commit()}; {processor()}.\n\n"
    text = head + table_of_sets(found)
    with replacing(given.output / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
