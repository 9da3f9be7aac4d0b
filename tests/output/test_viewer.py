import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from aeflow_monai.output.viewer import ViewerResultd, parse_threshold

# a file whose array runs to S, A and L, by 3, 1 and 2 mm, from the point (10, -20, 30)
FILE_AFFINE = torch.tensor([[0.0, 0, -2, 10], [0, 1, 0, -20], [3, 0, 0, 30], [0, 0, 0, 1]], dtype=torch.float64)
SHAPE = (4, 6, 8)  # S, A, L
FILE = {"original_affine": FILE_AFFINE, "spatial_shape": SHAPE}
# the same grid in orientation PLS: 6 rows to posterior, 8 columns to left, 4 slices to superior
PLS_AFFINE = torch.tensor([[0.0, -2, 0, 10], [-1, 0, 0, -15], [0, 0, 3, 30], [0, 0, 0, 1]], dtype=torch.float64)


def case(**changes: Any) -> dict[str, Any]:
    anomaly_map = torch.zeros(1, *SHAPE)
    anomaly_map[0, 2, 1:3, 5] = 4.0
    anomaly_map[0, 2, 3, 5] = 6.0
    return {
        "image": MetaTensor(torch.rand(1, 6, 8, 4), affine=PLS_AFFINE, meta=dict(FILE)),
        "anomaly_map": MetaTensor(anomaly_map, affine=FILE_AFFINE),
        "slice_scores": {"axial": torch.tensor([0.5, math.nan, 3.0, 1.0])},
        "ease": {},
        "anomaly_score": 2.5,
        "map_score": 1.5,
        "global_term": math.nan,
        "prediction": 1,
        "p_value": 0.05,
        "n_held_out": 19,
        "case_threshold": 2.0,
        "slice_threshold": 2.5,
        "map_threshold": 3.0,
        **changes,
    }


def test_the_mask_is_what_exceeds_the_threshold() -> None:
    for threshold, count in (("calibrated", 3), (5.0, 1), ("4", 1), (10, 0)):
        shown = ViewerResultd(threshold=threshold)(case())
        assert shown["pred"].dtype == torch.uint8
        assert shown["pred"].shape == (1, *SHAPE)
        assert int(shown["pred"].sum()) == shown["result"]["anomalous_voxels"] == count
        assert shown["result"]["anomalous_ml"] == pytest.approx(count * 6 / 1000)
        assert shown["result"]["map_threshold"] == (3.0 if threshold == "calibrated" else float(threshold))
        assert shown["result"]["prediction"] == 1  # of the case, whatever is shown


def test_the_scaled_map_has_one_scale_for_all_images() -> None:
    shown = ViewerResultd(output="scaled_map")(case())
    assert shown["result"]["scale"] == {"low": 0.0, "high": 6.0}
    assert shown["pred"].unique().tolist() == [0, 170, 255]  # 4 of 6, and 6
    shown = ViewerResultd(output="scaled_map")(case(map_threshold=-2.0))  # of a score without a unit
    assert shown["result"]["scale"] == {"low": -4.0, "high": 0.0}


def test_the_map_is_given_as_it_is() -> None:
    given = case()
    shown = ViewerResultd(output="map")(given)
    torch.testing.assert_close(shown["pred"].as_tensor(), given["anomaly_map"].as_tensor())
    torch.testing.assert_close(shown["pred"].affine, FILE_AFFINE)


def test_the_most_anomalous_slice_is_named_in_the_terms_of_the_file() -> None:
    result = ViewerResultd()(case())["result"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["profile"] == {
        "axial": {
            "scores": [0.5, None, 3.0, 1.0],
            "axis": "i",
            "slices_from_0": [0, 1, 2, 3],
            "positions_mm": [30.0, 33.0, 36.0, 39.0],
        },
    }
    assert result["most_anomalous_slice"] == {
        "plane": "axial",
        "axis": "i",
        "slice_from_0": 2,
        "position_mm": 36.0,
        "center_ras_mm": [3.0, -17.5, 36.0],
        "anomaly_score": 3.0,
    }
    assert (result["p_value"], result["n_held_out"]) == (0.05, 19)
    sagittal = torch.tensor([0.0, 0, 0, 0, 0, 9, 0, 0])
    given = case(slice_scores={"sagittal": sagittal}, ease={"sagittal": torch.arange(8.0)})
    most = ViewerResultd()(given)["result"]["most_anomalous_slice"]
    assert (most["plane"], most["axis"], most["slice_from_0"]) == ("sagittal", "k", 5)
    assert most["position_mm"] == 0.0  # to the right of the origin
    assert most["ease"] == 5.0


def test_a_2d_image_becomes_a_slice_in_its_place() -> None:
    affine = torch.tensor([[-0.5, 0, 7], [0, -0.5, 9], [0, 0, 1]], dtype=torch.float64)
    given = case(
        image=MetaTensor(torch.rand(1, 6, 8, 1), affine=PLS_AFFINE),
        anomaly_map=MetaTensor(torch.full((1, 8, 6), 5.0), affine=affine),
        slice_scores={"axial": torch.tensor([5.0])},
    )
    shown = ViewerResultd()(given)
    assert shown["pred"].shape == (1, 8, 6, 1)
    np.testing.assert_array_equal(shown["pred"].affine[:2, [0, 1, 3]], affine[:2])
    assert tuple(given["image"].meta["spatial_shape"]) == (8, 6, 1)
    assert shown["result"]["most_anomalous_slice"] is None
    assert shown["result"]["profile"] == {"axial": {"scores": [5.0]}}
    shown = ViewerResultd()(case(p_value=math.nan, n_held_out=0))
    assert shown["result"]["p_value"] is None


@pytest.mark.parametrize("wrong", ["much", "nan", float("inf"), True, [3], {}])
def test_a_wrong_threshold_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Expected a threshold of 'calibrated'"):
        ViewerResultd(threshold=wrong)


def test_the_models_own_threshold_has_several_names() -> None:
    assert [parse_threshold(value) for value in (None, "", " ", "calibrated", "Calibrated")] == [None] * 5


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown output 'heat': choose one of"):
        ViewerResultd(output="heat")
