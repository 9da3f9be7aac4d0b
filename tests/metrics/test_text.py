import json
from typing import Any

import numpy as np
import pytest
from metrics.drawn import MM, draw_set, filled

from aeflow_monai.metrics import LesionMetrics, format_localisation, slice_report


def all_reports() -> list[dict[str, Any]]:
    lesions = LesionMetrics(radius_mm=2)
    for anomaly_map, mask in draw_set():
        lesions.update(anomaly_map, mask, MM)
    slices = slice_report([0, 1, 0, 0, 1, 1], [0.1, 0.4, 0.3, 0.2, 0.9, 0.2], list("aabbcc"), n_bootstrap=20)
    return [filled(draw_set()).compute(np.float32(1)), lesions.compute(), slices]


def test_reports_are_json_of_plain_numbers() -> None:
    def plain(value: Any) -> bool:
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return type(value) in (int, float) if values is None else all(map(plain, values))

    for report in all_reports():
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert plain(report)


def test_text_says_what_is_an_oracle() -> None:
    voxels, lesions, slices = all_reports()
    merged = voxels | lesions | slices
    assert len(merged) == len(voxels) + len(lesions) + len(slices) - 2  # the numbers of volumes are shared
    lines = format_localisation(merged).splitlines()
    assert (
        sum("(oracle: chosen on test labels)" in line for line in lines) == sum("oracle" in key for key in merged) == 4
    )
    assert any(line.startswith("AUPRO") and f"{voxels['aupro']:.3f}" in line for line in lines)
    assert any(line.startswith("found at 0.25 FP") for line in lines)
    assert "over cases" in lines[-1]
    for report in (voxels, lesions, slices):
        assert len(format_localisation(report).splitlines()) < len(lines)
    with pytest.raises(ValueError, match=r"has to come from .* got the keys \['f1'\]"):
        format_localisation({"f1": 1})


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has to come from VoxelMetrics\.compute, .*got the keys \['auroc'\]"):
        format_localisation({"auroc": 0.5})
