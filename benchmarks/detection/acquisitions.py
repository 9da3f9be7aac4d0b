"""How methods hold where half of the test images are as another acquisition might show them, and at another source.

    python benchmarks/panel.py --data DATA --sets SETS --output OUT --seeds 0 1 2 --methods aeflow padim dfm knn
    python benchmarks/other_sources.py --source CLONES --output SOURCES
    python benchmarks/detection/acquisitions.py --panel OUT [--sources SOURCES] --seeds 0 1 2 --methods aeflow dfm knn

Of each set of images of the panel half of the test images, normal and abnormal ones alike, are changed; then each
method that is fitted scores all of them. Three tables: the images as they are; some changed in the ways in which
AE-Flow's acquisition copies are ("known", by RandAcquisitiond); and some in ways that no training has seen ("unknown"):
saved as coarse JPEG, sampled coarsely, cut to a narrower window, shaded. All images of the last two are written as PNG,
at about the size that the network sees. How an image is changed depends on its place in the list alone. A fourth table,
with --sources, is of images that all come from elsewhere ("another source"), for the sets of other_sources.py.
Development splits; no method is fitted or calibrated anew. What is done already is kept. Written to OUT:
acquisitions.md, and in the folder of each set the images, in that of each method the scores.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from monai.transforms import RandBiasField
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from aeflow_monai.data import RandAcquisitiond
from aeflow_monai.files import replacing

sys.path.append(str(Path(__file__).parent.parent))
from methods import label_of, resolve
from panel import HERE, IMAGES
from run import Runs
from shared import arguments, commit, processor, read_rows, table_of_sets, write_rows
from table import Scores

SHARE = 0.5  # of the images that are changed
NETWORK_SIZE = 128  # pixels, of the panel
Pixels = NDArray[np.float32]


def known(image: Pixels, rng: np.random.RandomState) -> Pixels:
    """Change an image in one of the ways in which acquisition copies are."""
    vary = RandAcquisitiond("image", image.shape[1:]).set_random_state(state=rng)
    changed: Pixels = vary({"image": torch.from_numpy(image)})["image"].numpy()
    return changed


def as_jpeg(image: Pixels, rng: np.random.RandomState) -> Pixels:
    """Save an image with a low quality."""
    file = io.BytesIO()
    picture(image).save(file, "JPEG", quality=int(rng.randint(15, 45)))
    return pixels(Image.open(file))


def coarse(image: Pixels, rng: np.random.RandomState) -> Pixels:
    """Take fewer samples."""
    return resized(image, rng.uniform(0.4, 0.7))


def windowed(image: Pixels, rng: np.random.RandomState) -> Pixels:
    """Cut off the darkest and the brightest intensities, and spread the others."""
    low, high = np.percentile(image, [rng.uniform(0, 5), rng.uniform(95, 99.5)])
    return np.clip((image - low) / max(high - low, 1e-3), 0, 1).astype(np.float32)


def shaded(image: Pixels, rng: np.random.RandomState) -> Pixels:
    """Make an image darker at some places than at others, as coils and fields do."""
    shade = RandBiasField(prob=1.0, degree=2, coeff_range=(-0.25, 0.25)).set_random_state(state=rng)
    changed = np.asarray(shade(image), np.float32)
    return changed / max(1.0, float(changed.max()))


UNKNOWN = (as_jpeg, coarse, windowed, shaded)
KINDS = ("known", "unknown")
SOURCE = "another source"


def resized(image: Pixels, factor: float) -> Pixels:
    """An image of another size, smoothed where it gets smaller."""
    size = [max(8, round(factor * length)) for length in image.shape[1:]]
    return F.interpolate(torch.from_numpy(image)[None], size, mode="bilinear", antialias=True)[0].numpy()


def pixels(image: Image.Image) -> Pixels:
    """A picture as an array (C, H, W) in [0, 1], of one channel or three."""
    if image.mode.startswith("I"):
        raise SystemExit(f"Expected images of 8 bits; got one of PIL's mode {image.mode}.")
    plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
    array = np.asarray(plain, np.float32) / 255
    return np.ascontiguousarray(np.moveaxis(array if array.ndim == 3 else array[..., None], -1, 0))


def picture(image: Pixels) -> Image.Image:
    """An array as a picture."""
    array = np.moveaxis(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), 0, -1)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def write_changed(test: Path, folder: Path, kind: str) -> None:
    """Write the images of a test list, half of them changed, with a manifest.csv; unless it is there."""
    if (folder / "manifest.csv").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, row in enumerate(read_rows(test / "manifest.csv")):
        rng = np.random.RandomState(np.random.SeedSequence([KINDS.index(kind), number]).generate_state(1)[0])
        with Image.open(row["path"]) as file:
            image = pixels(file)
        image = resized(image, NETWORK_SIZE / min(image.shape[1:]))
        if rng.uniform() < SHARE:
            image = (known if kind == "known" else UNKNOWN[rng.randint(len(UNKNOWN))])(image, rng)
        path = folder / f"{number:04d}_{Path(row['path']).stem}.png"
        picture(image).save(path)
        rows.append([str(path), row["case"], row["patient"], "test", row["abnormal"]])
    write_rows(folder / "manifest.csv", ["path", "case", "patient", "split", "abnormal"], rows)


def main() -> None:
    parser = arguments(__doc__, "panel")
    parser.add_argument("--only", nargs="+", default=IMAGES, help="names of sets; all of images by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sources", type=lambda path: Path(path).absolute(), help="of other_sources.py")
    parser.add_argument("--methods", nargs="+", default=["aeflow"], help="of the panel, or paths of variants")
    given = parser.parse_args()
    methods = {label_of(method): resolve(method) for method in given.methods}
    found: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in ("as they are", *KINDS, SOURCE)}
    for name in given.only:
        output = given.panel / name
        tests = {"as they are": output / "test", **{kind: output / kind for kind in KINDS}}
        for kind in KINDS:
            write_changed(output / "test", tests[kind], kind)
        if given.sources and (given.sources / name).exists():
            tests[SOURCE] = given.sources / name
        with Runs(output, HERE / "panel.yaml", None) as runs:
            for label, method in methods.items():
                of_kinds: dict[str, list[float]] = {kind: [] for kind in tests}
                for seed in given.seeds:
                    fitted = runs.folder(seed, method)
                    for kind, test in tests.items():
                        scored = fitted if kind == "as they are" else fitted / kind.replace(" ", "_")
                        runs.call("score", scored, test, seed, method, fitted)
                        of_kinds[kind].append(Scores.of_cases(scored / "results").auroc())
                for kind, values in of_kinds.items():
                    found[kind].setdefault(name, {})[label] = float(np.mean(values))
        head = f"Development splits, seeds {', '.join(map(str, given.seeds))}; commit {commit()}; {processor()}.\n\n"
        with replacing(given.panel / "acquisitions.md") as unfinished:
            tables = (table_of_sets(of_sets, kind) for kind, of_sets in found.items() if of_sets)
            text = head + "\n".join(tables)
            unfinished.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
