"""Another site: nobody whose normals a model is calibrated on is tested."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from aeflow_monai import load_datalist


def test_no_patient_of_the_site_is_tested(tmp_path: Path, imported: Callable[[str], ModuleType]) -> None:
    site_calibration = imported("site_calibration")
    items: list[dict[str, Any]] = [
        {"image": str(tmp_path / f"{n}.png"), "case": f"case_{n}", "patient": f"p{n % 20}", "label": int(n >= 20)}
        for n in range(32)
    ]
    site, tested = site_calibration.split_site(items, seed=0)
    patients = {item["patient"] for item in site}
    assert (len(site), {item["label"] for item in site}) == (10, {0})
    assert tested == [item for item in items if item["patient"] not in patients]
    assert {item["label"] for item in tested} == {0, 1}
    assert any(item["label"] and item["patient"] in patients for item in items)  # who are left out
    for item in items:
        Path(item["image"]).touch()
    site_calibration.write_manifest(tmp_path / "site", train=site, test=tested)
    for split, of_split in (("train", site), ("test", tested)):
        read = load_datalist(str(tmp_path / "site"), split)
        assert {item["case"] for item in read} == {item["case"] for item in of_split}
