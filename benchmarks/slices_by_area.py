"""How well a score tells slices with a lesion from others that show as much of the organ.

Lesions lie in the middle of the head, so the area of the brain alone tells slices with lesions from others, and so does
any score that grows with it. Among slices of like area it cannot help. Usage, for the methods of one comparison:

    python benchmarks/slices_by_area.py --data RUN/planted --config configs/healthy_t1.yaml RUN/seed0/*/results

Each folder holds the slice_scores.csv of an evaluation of the data set's test section.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from monai.bundle import ConfigParser

from aeflow_monai.data.datalist import load_datalist

CONFIGS = Path(__file__).parent.parent / "bundle/configs"


def slices_by_area(table: Path, areas: dict[str, list[float]], tolerance: float = 0.05) -> dict[str, float]:
    """How well slices with lesion are told from others by the organ's area, and by the score at like area.

    Args:
        table: slice_scores.csv of the evaluation.
        areas: of each case, the share of each slice that is above 0.
        tolerance: pairs of like area differ by at most this share of the largest one.
    """
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] in ("normal", "abnormal")]
    score = np.array([float(row["score"]) for row in rows])
    area = np.array([areas[row["case"]][int(row["slice"]) - 1] for row in rows])
    abnormal = np.array([row["kind"] == "abnormal" for row in rows])
    like = np.abs(area[abnormal][:, None] - area[~abnormal]) <= tolerance * area.max()

    def higher(values: np.ndarray, pairs: np.ndarray) -> float:
        difference = values[abnormal][:, None] - values[~abnormal]
        return float(((difference > 0) + 0.5 * (difference == 0))[pairs].mean())

    everywhere = np.ones_like(like)
    return {
        "auroc": higher(score, everywhere),
        "auroc_of_like_area": higher(score, like),
        "auroc_of_area": higher(area, everywhere),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders with slice_scores.csv")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="overlay of train.yaml, for its preprocessing")
    given = parser.parse_args()
    config = ConfigParser()
    config.read_config([str(CONFIGS / "train.yaml"), *([str(given.config)] if given.config else [])])
    preprocessing = config.get_parsed_content("preprocessing")
    areas = {}
    for item in load_datalist(given.data, "test"):
        areas[item["case"]] = (preprocessing(item)["image"][0] > 0).float().mean(dim=(0, 1)).tolist()
    print("| | slice AUROC | of like area | area alone |\n|---|---:|---:|---:|")
    for folder in given.results:
        found = slices_by_area(folder / "slice_scores.csv", areas)
        print(f"| {folder.parent.name} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |")


if __name__ == "__main__":
    main()
