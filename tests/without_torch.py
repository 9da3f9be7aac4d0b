"""Runs a script in a process in which neither torch nor MONAI nor this package can be imported."""

import subprocess
import sys
from pathlib import Path

NO_TORCH = """
import runpy, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "monai", "aeflow_monai"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_torch(script: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", NO_TORCH, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
