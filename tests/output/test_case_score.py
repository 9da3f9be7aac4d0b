from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from aeflow_monai.output.case_score import GatherScoresd, MaskMapd, scores_by_plane

AFFINE = torch.tensor([[0, -1.5, 0, 3], [2, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]], dtype=torch.float64)


def scored(**changes: Any) -> dict[str, Any]:
    """What `SlicedInferer` says of a case, behind the loader's collation and its undoing."""
    return {
        "case": "a",
        "image": MetaTensor(torch.zeros(1, 8, 8, 5), affine=AFFINE, meta={"filename_or_obj": "a.nii"}),
        "anomaly_map": MetaTensor(torch.zeros(1, 8, 8, 5), affine=AFFINE),
        "slice_scores_axial": MetaTensor(torch.tensor([0.0, 1, 2, 3, 4])),
        "slice_scores_sagittal": torch.tensor([torch.nan, 1.0, 2.0, torch.nan]),
        "ease_axial": torch.arange(5.0),
        "ease_sagittal": torch.tensor([torch.nan, 0.5, 0.5, torch.nan]),
        "global_terms_axial": torch.arange(5.0) - 2,
        "anomaly_score": torch.tensor(2.5),
        "map_score": torch.tensor(1.5),
        "global_term": torch.tensor(torch.nan),
        "case_threshold": torch.tensor([2.0]),
        "slice_threshold": torch.tensor([3.0]),
        "map_threshold": 4.0,
        "p_value": torch.tensor([0.2], dtype=torch.float64),
        "n_held_out": torch.tensor([4.0]),
        **changes,
    }


def test_scores_of_slices_are_gathered_by_plane() -> None:
    given = scored()
    found = GatherScoresd("image")(given)
    assert list(found["slice_scores"]) == list(found["ease"]) == ["axial", "sagittal"]
    assert list(found["global_terms"]) == ["axial"]
    for name in ("slice_scores", "ease", "global_terms"):
        for plane, values in found[name].items():
            expected = torch.as_tensor(given[f"{name}_{plane}"]).as_subclass(torch.Tensor)
            torch.testing.assert_close(torch.as_tensor(values), expected, equal_nan=True, rtol=0, atol=0)
    assert not [key for key in found if key.startswith(("slice_scores_", "ease_", "global_terms_"))]
    assert "slice_scores_axial" in given  # what went in is as it was
    assert found["case"] == "a"
    assert found["anomaly_map"] is given["anomaly_map"]


def test_the_score_and_the_thresholds_become_numbers() -> None:
    found = GatherScoresd()(scored())
    expected = {"anomaly_score": 2.5, "case_threshold": 2.0, "slice_threshold": 3.0, "map_threshold": 4.0}
    expected |= {"p_value": 0.2, "map_score": 1.5}
    assert {name: found[name] for name in expected} == expected
    assert {type(found[name]) for name in expected} == {float}
    assert (found["n_held_out"], type(found["n_held_out"])) == (4, int)


@pytest.mark.parametrize(("threshold", "prediction"), [(2.4, 1), (2.5, 0), (2.6, 0), (float("inf"), 0)])
def test_a_case_is_abnormal_above_its_threshold(threshold: float, prediction: int) -> None:
    found = GatherScoresd()(scored(case_threshold=torch.tensor([threshold])))
    assert found["prediction"] == prediction
    assert type(found["prediction"]) is int


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_names_its_case_and_file(value: float) -> None:
    message = rf"score of case a in a\.nii is {value}: the image holds NaN or infinite values; replace them first"
    with pytest.raises(ValueError, match=message):
        GatherScoresd()(scored(anomaly_score=torch.tensor([value])))
    with pytest.raises(ValueError, match=r"score of case a in the image is"):
        GatherScoresd("picture")(scored(anomaly_score=value, picture=torch.zeros(1, 8, 8)))


def test_only_the_scores_asked_for_are_found() -> None:
    output = {"slice_scores_axial": torch.ones(1, 3), "ease_axial": torch.zeros(1, 3), "slice_scores": 1, 7: 2}
    assert {plane: tuple(values.shape) for plane, values in scores_by_plane(output).items()} == {"axial": (1, 3)}
    assert scores_by_plane(output, "ease")["axial"].sum() == 0
    assert scores_by_plane({}) == {}


@pytest.mark.parametrize(("threshold", "expected"), [(2.0, [0, 0, 1, 0]), (-3.0, [1, 1, 1, 0]), (torch.inf, [0] * 4)])
def test_the_mask_is_where_the_map_exceeds_the_threshold(threshold: float, expected: list[int]) -> None:
    values = torch.tensor([1.0, 2.0, 2.5, -3.0]).view(1, 2, 2, 1)
    given = {"anomaly_map": MetaTensor(values, affine=AFFINE), "map_threshold": threshold}
    mask = MaskMapd()(given)["anomaly_mask"]
    assert mask.dtype == torch.uint8
    assert mask.flatten().tolist() == expected
    torch.testing.assert_close(mask.affine, AFFINE)
    assert set(given) == {"anomaly_map", "map_threshold"}
    other = MaskMapd("residual")({"residual": given["anomaly_map"], "map_threshold": threshold})
    assert torch.equal(other["anomaly_mask"], mask)
