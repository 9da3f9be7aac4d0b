"""Draw docs/monai_label.png: a synthetic volume, with the map and mask that MONAI Label returns for it over HTTP.

The model is that of the quick start; it was not trained on the volume. Needs an environment with the extra
`label`. Usage:

    python -m monai.bundle run train --config_file bundle/configs/train.yaml --output_dir runs/phantom
    python benchmarks/label_picture.py --model runs/phantom --to docs/monai_label.png
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # before pyplot selects a window backend

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from label_inference import running_server
from shared import arguments

from aeflow_monai import write_phantom

CASE = "test_abnormal_001"
SHOWN = (slice(8, 88), slice(10, 102))  # voxels around the head, counted from the right and from posterior


def answers(folder: Path, model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the volumes of the image, its lesion and both replies, and the map's result dictionary."""
    phantom = write_phantom(folder / "phantom", n_train=1, n_test_normal=1, n_test_abnormal=2)
    (folder / "studies").mkdir()
    shutil.copy(phantom / f"images/{CASE}.nii.gz", folder / "studies")
    files = {"image": phantom / f"images/{CASE}.nii.gz", "lesion": phantom / f"masks/{CASE}.nii.gz"}
    with running_server(folder, model) as client:
        for task in ("anomaly_map", "anomaly_mask"):
            files[task], said = client.infer(task, CASE, {})
            volumes = {name: nib.as_closest_canonical(nib.load(file)) for name, file in files.items()}
    return {name: np.asarray(volume.dataobj) for name, volume in volumes.items()} | {
        "zooms": volumes["image"].header.get_zooms(),
        "affine": volumes["image"].affine,
    }, said


def main() -> None:
    options = arguments(__doc__, "model", "to").parse_args()
    with tempfile.TemporaryDirectory() as name:
        volumes, said = answers(Path(name), options.model)
    most, threshold = said["most_anomalous_slice"], said["map_threshold"]
    # slice number from inferior, in the reoriented volumes
    number = round(nib.affines.apply_affine(np.linalg.inv(volumes["affine"]), most["center_ras_mm"])[2])

    def cut(key: str) -> Any:
        """Return the most anomalous slice, with the patient's right on the left and anterior up."""
        return volumes[key][::-1, :, number][SHOWN].T

    zooms = volumes["zooms"]
    looks = {"origin": "lower", "aspect": zooms[1] / zooms[0]}
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.9), facecolor="black")
    titles = ("image", "anomaly_map", "anomaly_mask (red), planted lesion (dotted)")
    for axis, title in zip(axes, titles, strict=True):
        axis.imshow(cut("image"), cmap="gray", **looks)
        axis.set_title(title, color="white", fontsize=10)
        axis.axis("off")
    shown = cut("anomaly_map")
    opacity = np.clip(shown / (1.5 * threshold), 0, 0.85)
    axes[1].imshow(shown, cmap="inferno", alpha=opacity, vmin=0, vmax=2 * threshold, **looks)
    axes[2].contour(cut("anomaly_mask"), [0.5], colors="#ff5252", linewidths=1.6)
    axes[2].contour(cut("lesion"), [0.5], colors="#7fd1ff", linewidths=1.2, linestyles="dotted")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.86, bottom=0.14, wspace=0.02)
    colours = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 2 * threshold), "inferno")
    bar = figure.colorbar(colours, cax=figure.add_axes((0.39, 0.09, 0.22, 0.025)), orientation="horizontal")
    bar.set_label("standard deviations of normals, line at the threshold", color="white", fontsize=8)
    bar.ax.tick_params(colors="white", labelsize=7)
    bar.ax.axvline(threshold, color="white", lw=1)
    figure.suptitle(
        f"synthetic volume; score {said['anomaly_score']:.2f} (threshold {said['case_threshold']:.2f}), "
        f"slice {most['axis']} = {most['slice_from_0']}, S {most['position_mm']:+.1f} mm",
        color="white",
        fontsize=11,
    )
    figure.savefig(options.to, dpi=100, facecolor="black", bbox_inches="tight")
    print(f"{options.to}: score {said['anomaly_score']:.2f}, threshold {said['case_threshold']:.2f}")


if __name__ == "__main__":
    main()
