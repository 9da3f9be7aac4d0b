import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from aeflow_monai.engine.inference.allocator import keep_freed_memory

for _ in range(int(sys.argv[1])):  # also twice
    keep_freed_memory()
counts = []
for _ in range(20):
    torch.zeros(10 * 2**20)  # 40 MiB, which are freed at once; up to 32 MiB glibc learns by itself to keep
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[-1] - counts[5])
"""


GLIBC = tuple(map(int, platform.libc_ver()[1].split("."))) if platform.libc_ver()[0] == "glibc" else ()


@pytest.mark.skipif(GLIBC < (2, 35), reason="only glibc is tuned, and an older one keeps no more than 32 MiB")
def test_freed_memory_is_used_again_without_asking_the_system_for_it() -> None:
    of_system, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, times], capture_output=True, text=True, check=True).stdout)
        for times in ("0", "2")
    )
    assert of_system > 1000
    assert kept < of_system / 2
