"""Processor time per study, by stage: reading, network, writing.

    python benchmarks/scale_cost.py [--repeats 5] [--page docs/scale.md]

Scores slices of 512 x 512 and volumes of 240 x 240 x 155 with the default network, untrained, in one thread, by the
class that shards and Ray workers use, but with one stage after the other: by the fastest installed runtime with all
kinds of outputs, and by the others with masks. Times are medians of processor time, which other work on the machine
hardly affects. With `--page` the table is written into that page, between the lines `<!-- scale_cost.py -->` and
`<!-- end of scale_cost.py -->`.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from shared import LARGE, arguments, commit, machine, write_untrained, write_volume

from aeflow_monai.archive.ledger import Claim
from aeflow_monai.archive.study_scorer import StudyScorer
from aeflow_monai.engine.inference.runtimes import installed_runtimes
from aeflow_monai.files import replacing

BEGIN, END = "<!-- scale_cost.py -->", "<!-- end of scale_cost.py -->"
OUTPUTS = {"scores alone": "[]", "masks": "[anomaly_mask]", "maps and masks": "[anomaly_map,anomaly_mask]"}


def stages(scorer: StudyScorer, image: Path, repeats: int) -> list[float]:
    """Return median processor seconds for reading, network and writing of one study."""
    found = []
    for number in range(repeats + 1):
        claim = Claim(number, "00000", {"image": str(image), "case": "case", "patient": "case"})
        chain, times = scorer._chain(claim.folder), [time.process_time()]
        study = scorer._read(claim, chain)
        times.append(time.process_time())
        study = scorer._look(study)
        times.append(time.process_time())
        outcome = scorer._write(study)
        times.append(time.process_time())
        if outcome.row is None:
            raise RuntimeError(str(outcome.failure))
        found.append(np.diff(times))
    return [statistics.median(each) for each in zip(*found[1:], strict=True)]  # the first loads modules


def table(repeats: int) -> str:
    """Return the table in Markdown, with a line on the machine."""
    names = ("study", "runtime", "written", "read, s", "network, s", "write, s", "core hours")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    fastest, *others = installed_runtimes()
    cases = [(fastest, written) for written in OUTPUTS] + [(runtime, "masks") for runtime in others]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)).save(folder / "slice.png")
        write_volume(folder / "brain.nii.gz")
        kinds = {
            "CT slice, 512 x 512": ("slice.png", {}, 100_000),
            "brain, 240 x 240 x 155": ("brain.nii.gz", LARGE, 10_000),
        }
        for kind, (image, of_training, n) in kinds.items():
            run = write_untrained(folder / f"RUN_{n}", **of_training, device="cpu")
            for runtime, written in cases:
                options = {"outputs": OUTPUTS[written], "device": "cpu", "runtime": runtime}
                times = stages(StudyScorer(run, options, folder / "OUT"), folder / image, repeats)
                hours = f"{n * sum(times) / 3600:.1f} for {n:,}".replace(",", " ")
                cells = [kind, runtime, written, *(f"{seconds:.3f}" for seconds in times), hours]
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    return "\n".join([*lines, "", f"Medians of {repeats}, commit {commit()}, {machine()}."])


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = table(given.repeats)
    print(text)
    if given.page:
        page = given.page.read_text(encoding="utf-8")
        new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.DOTALL)
        with replacing(given.page) as unfinished:
            unfinished.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
