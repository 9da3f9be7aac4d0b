"""The layouts that the pages show: such files are made, and read as what the page says."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from code_blocks import PAGES, Block, all_blocks
from dicom_writer import write_series
from inputs import write_image

from aeflow_monai import load_datalist

BLOCKS = [block for block in all_blocks() if block.language == "text" and "DATA" in block.first_line]
IMAGE = r"[\w./*-]+\.(?:nii\.gz|png|npz|dcm)"


class DataSet(NamedTuple):
    """What one line of a block, and those that continue it, say: paths of files, a table or list, and options."""

    paths: list[str]
    texts: dict[str, list[str]]
    options: dict[str, Any]


def layout_of(block: Block) -> str:
    """The layout that the heading above a block names; a tutorial's is a manifest."""
    above = PAGES[block.page].read_text(encoding="utf-8").splitlines()[: block.line]
    headings = re.findall(r"^## (\w+):", "\n".join(above), flags=re.MULTILINE)
    return headings[-1] if headings else "manifest"


def data_sets(block: Block) -> list[DataSet]:
    """The data sets that a block shows; each beginning of a line with DATA is one."""
    found: list[DataSet] = []
    for line in block.code.splitlines():
        if listed := re.match(r"DATA/(\S+\.(?:csv|json))\s+(.*)", line):
            found.append(DataSet([], {listed[1]: [listed[2]]}, {}))
        elif line.startswith("DATA"):
            paths, _, options = line.partition(" with ")
            names = re.findall(rf"DATA/({IMAGE}|[\w/]+/\*)", paths)
            if others := re.search(r"_flair\.nii\.gz \((.+?)\)", line):
                names += [names[0].replace("_flair", f"_{other}") for other in others[1].split(", ")]
            if names:
                found.append(DataSet(names, {}, options_of(options)))
        elif line.startswith("--"):
            if "medmnist:" not in line:  # is downloaded
                found[-1].options.update(options_of(line))
        else:
            next(iter(found[-1].texts.values())).append(line.strip())
    return found


def options_of(text: str) -> dict[str, Any]:
    words = [word.removeprefix("--") for word in shlex.split(text)]
    pairs = zip(words[::2], words[1::2], strict=True)
    return {name: ast.literal_eval(value) if value.startswith("[") else value for name, value in pairs}


def make(data: DataSet, folder: Path) -> None:
    """Write the files."""
    folder.mkdir()
    paths = list(data.paths)
    for name, lines in data.texts.items():
        (folder / name).write_text("\n".join([*lines, ""]), encoding="utf-8")
        paths += re.findall(IMAGE, "\n".join(lines))
    for path in paths:
        if path.endswith(".npz"):
            pairs = {
                f"{split}_{kind}": values for split in ("train", "val", "test") for kind, values in _MEDMNIST.items()
            }
            np.savez(folder / path, **pairs)
        elif "*" in path:
            patient = Path(path).parts[0]
            for number in (2, 3) if patient == "export" else (1,):
                write_series((folder / path).parent, number=number, PatientID=patient, series=f"1.2.{len(patient)}")
        else:
            write_image(folder / path)


_MEDMNIST = {
    "images": np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28),
    "labels": np.array([[0], [1], [0], [1]]),
}


@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_layouts_are_recognised(block: Block, tmp_path: Path) -> None:
    layout = layout_of(block)
    for i, data in enumerate(data_sets(block)):
        folder = tmp_path / str(i)
        make(data, folder)
        options = {"layout": "auto", **data.options}
        place = str(options.pop("dataset_dir", folder)).replace("DATA", str(folder))
        found = load_datalist(place, "all", **options)
        assert found
        assert not [item["problem"] for item in found if "problem" in item]
        assert found == load_datalist(place, "all", **{**options, "layout": layout})


def test_every_layout_is_shown() -> None:
    text = PAGES["README.md"].read_text(encoding="utf-8").partition("| layout |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)) == {layout_of(block) for block in BLOCKS}
