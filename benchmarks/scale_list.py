"""A list of a million lines: time and memory until its first study can be scored.

    python benchmarks/scale_list.py [--lines 10000 1000000]

Writes lists of synthetic paths, and reads each into the ledger of one shard of 16 and of the whole list, in a process
of its own. Memory is the peak of that process, most of which is due to imports; the files are not accessed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared import arguments, commit, machine, peak_memory

KINDS = {
    ".txt": ("", "site-{0:03d}/sub-{1:07d}/t1.nii.gz"),
    ".csv": ("path,case,patient", "site-{0:03d}/sub-{1:07d}/t1.nii.gz,case_{1},patient_{1}"),
    ".jsonl": ("", '{{"path": "site-{0:03d}/sub-{1:07d}/t1.nii.gz", "patient": "patient_{1}"}}'),
}


def write_list(path: Path, n_lines: int) -> Path:
    """Write a list of paths that do not exist."""
    head, line = KINDS[path.suffix]
    with path.open("w", encoding="utf-8") as file:
        if head:
            file.write(f"{head}\n")
        file.writelines(f"{line.format(number % 997, number)}\n" for number in range(n_lines))
    return path


def read(path: Path, total: int) -> None:
    """Read a list into a ledger beside it, and print processor seconds, MiB and number of studies."""
    from aeflow_monai.archive.ledger import Ledger
    from aeflow_monai.archive.listed import studies_in
    from aeflow_monai.archive.shard import Shard

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, Ledger(Path(folder, "ledger.sqlite")) as ledger:
        begin = time.process_time()
        ledger.begin(studies_in(path, Shard(1, total)))
        first = len(ledger.claim(1))
        seconds = time.process_time() - begin
        if first != 1:
            raise RuntimeError(f"{path} gave no study.")
        print(f"{seconds:.1f} {peak_memory():.0f} {ledger.counts().open}")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--read", type=Path, help="of the processes that this one starts")
    parser.add_argument("--total", type=int, default=1)
    given = parser.parse_args()
    if given.read:
        read(given.read, given.total)
        return
    print("| list | lines | shard | its studies | processor, s | peak memory, MiB |\n|---|---:|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        for kind in KINDS:
            for n_lines in given.lines:
                path = write_list(Path(name, f"list_{n_lines}{kind}"), n_lines)
                for total in (16, 1):
                    command = [sys.executable, __file__, "--read", str(path), "--total", str(total)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    seconds, mebibytes, n_studies = done.stdout.split()
                    shard = f"1/{total}" if total > 1 else "all"
                    print(f"| {kind} | {n_lines} | {shard} | {n_studies} | {seconds} | {mebibytes} |", flush=True)
    print(f"\nCommit {commit()}, {machine()}.")


if __name__ == "__main__":
    main()
