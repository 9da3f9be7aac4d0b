"""Test images as other acquisitions might show them: which are changed, by how much, and always in the same way."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

N_IMAGES = 40


@pytest.fixture
def acquisitions(imported: Callable[[str], ModuleType]) -> ModuleType:
    return imported("acquisitions")


@pytest.fixture
def test_list(acquisitions: ModuleType, tmp_path: Path) -> Path:
    """Smooth images of 300 x 200 pixels, grey and in colour, every third abnormal."""
    rows = []
    for number in range(N_IMAGES):
        channels = 3 if number % 2 else 1
        coarse = np.random.default_rng(number).uniform(0.2, 0.8, (channels, 12, 8)).astype(np.float32)
        path = tmp_path / f"image{number}.png"
        acquisitions.picture(acquisitions.resized(coarse, 25)).save(path)
        rows.append([path, "", f"case{number}", f"patient{number}", "test", int(number % 3 == 0)])
    acquisitions.write_rows(tmp_path / "manifest.csv", ["path", "mask", "case", "patient", "split", "abnormal"], rows)
    return tmp_path


@pytest.mark.parametrize("kind", ["known", "unknown"])
def test_about_half_of_the_images_are_changed_a_little_and_always_alike(
    acquisitions: ModuleType, test_list: Path, kind: str
) -> None:
    rows, again = [
        (acquisitions.write_changed(test_list, folder, kind), acquisitions.read_rows(folder / "manifest.csv"))[1]
        for folder in (test_list / "one", test_list / "two")
    ]
    given = acquisitions.read_rows(test_list / "manifest.csv")
    for name in ("case", "patient", "split", "abnormal"):
        assert [row[name] for row in rows] == [row[name] for row in given]

    differences = []
    for row, same, original in zip(rows, again, given, strict=True):
        assert Path(row["path"]).read_bytes() == Path(same["path"]).read_bytes()
        written, plain = (acquisitions.pixels(Image.open(one["path"])) for one in (row, original))
        expected = acquisitions.resized(plain, 128 / 200)
        if written.shape == expected.shape:
            differences.append(float(np.abs(written - expected).mean()))
        else:  # fewer samples
            assert kind == "unknown"
            differences.append(0.1)
    is_changed = np.array(differences) > 1 / 255
    assert 0.3 * N_IMAGES < is_changed.sum() < 0.7 * N_IMAGES
    assert max(differences) < 0.4


def test_images_of_more_than_eight_bits_are_refused(acquisitions: ModuleType) -> None:
    with pytest.raises(SystemExit, match="Expected images of 8 bits; got one of PIL's mode I;16"):
        acquisitions.pixels(Image.fromarray(np.zeros((4, 4), np.uint16)))
