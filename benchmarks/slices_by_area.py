"""How well a score separates slices with a lesion from others that show as much of the organ.

Lesions lie in the middle of the head, so the area of the brain alone separates slices with lesions from others, and so
does any score that grows with it. Among slices of similar area it cannot help. Usage, for the methods of a comparison:

    python benchmarks/slices_by_area.py --data RUN/planted --config healthy_t1 RUN/seed0/*/results

Each folder holds the slice_scores.csv of an evaluation of the data set's test section.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from shared import arguments, read_rows, template

from aeflow_monai import load_datalist
from aeflow_monai.output.slice_place import slice_places


def areas_of(image: torch.Tensor) -> dict[int, float]:
    """Return the fraction above 0 of each axial slice of a preprocessed volume (1, X, Y, Z), by number in the file."""
    areas: list[float] = (image.as_subclass(torch.Tensor)[0] > 0).float().mean(dim=(0, 1)).tolist()
    return {place.slice_from_0: area for place, area in zip(slice_places(image, "axial"), areas, strict=True)}


def slices_by_area(table: Path, areas: dict[str, dict[int, float]], tolerance: float = 0.05) -> dict[str, float]:
    """Return AUROC of slices with lesion against those without by the organ's area, and by the score at similar area.

    Args:
        table: slice_scores.csv of the evaluation.
        areas: for each case, the fraction of each slice that is above 0, by its number in the file.
        tolerance: areas are similar if they differ by at most this fraction of the largest area.
    """
    rows = [row for row in read_rows(table) if row["kind"] in ("normal", "abnormal")]
    score = np.array([float(row["anomaly_score"]) for row in rows])
    area = np.array([areas[row["case"]][int(row["slice_from_0"])] for row in rows])
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
    parser = arguments(__doc__, "data")
    parser.add_argument("results", type=Path, nargs="+", help="folders with slice_scores.csv")
    parser.add_argument("--config", help="on top of train.yaml, for its preprocessing: name of a preset, or path")
    given = parser.parse_args()
    preprocessing = template(*([given.config] if given.config else [])).get_parsed_content("preprocessing")
    areas = {item["case"]: areas_of(preprocessing(item)["image"]) for item in load_datalist(given.data, "test")}
    print("| | slice AUROC | of like area | area alone |\n|---|---:|---:|---:|")
    for folder in given.results:
        found = slices_by_area(folder / "slice_scores.csv", areas)
        print(f"| {folder.parent.name} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |")


if __name__ == "__main__":
    main()
