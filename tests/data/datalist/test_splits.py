import random
from typing import Any

import pytest

from aeflow_monai.data.datalist import choose_abnormal, split_normals


def patients(n: int, images: int = 3) -> list[dict[str, Any]]:
    return [
        {"image": f"/{case}_{i}.png", "case": f"p{case:03d}", "label": 0} for case in range(n) for i in range(images)
    ]


@pytest.mark.parametrize(
    ("n", "fraction", "expected"),
    [(2, 0.01, 1), (2, 0.99, 1), (10, 0.1, 1), (10, 0.3, 3), (10, 0.99, 9), (200, 0.1, 20)],
)
def test_split_is_by_case(n: int, fraction: float, expected: int) -> None:
    items = patients(n)
    fit, calibration = split_normals(items, fraction)
    fit_cases, calibration_cases = ({item["case"] for item in part} for part in (fit, calibration))
    assert len(calibration_cases) == expected
    assert len(fit_cases) == n - expected
    assert not fit_cases & calibration_cases
    assert sorted(fit + calibration, key=lambda x: x["image"]) == sorted(items, key=lambda x: x["image"])


def test_split_depends_on_the_seed_and_not_on_the_order() -> None:
    items = patients(30)
    shuffled = random.Random(1).sample(items, len(items))
    assert split_normals(shuffled, 0.2, seed=3) == split_normals(items, 0.2, seed=3)
    assert split_normals(items, 0.2, seed=4) != split_normals(items, 0.2, seed=3)


def test_split_keeps_only_normals() -> None:
    abnormal = {"image": "/a.png", "case": "a", "label": 1}
    unknown = {"image": "/u.png", "case": "u"}
    fit, calibration = split_normals([abnormal, unknown, *patients(4)], 0.5)
    assert {item["case"] for item in fit + calibration} == {"p000", "p001", "p002", "p003"}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"calibration_fraction has to lie between 0 and 1, ends excluded; got"):
        split_normals(patients(4), fraction)


def test_split_needs_two_normal_cases() -> None:
    with pytest.raises(ValueError, match=r"a datalist without normals: none of 1 items .*--normal_classes"):
        split_normals([{"image": "/a.png", "case": "a", "label": 1}])
    with pytest.raises(ValueError, match=r"at least 2 normal cases, .*got \['p000'\] \(3 images\)\. Add normal images"):
        split_normals(patients(1))


# --- labelled abnormal images -----------------------------------------------------------------------------------------


def labelled_patients() -> list[dict[str, Any]]:
    abnormal = [
        {"image": f"/abnormal/{p}_{i}.png", "case": f"{p}_{i}", "patient": f"p{p:03d}", "label": 1}
        for p in range(6)
        for i in range(2)
    ]
    return [*patients(6), *abnormal]


def test_labelled_abnormal_images_are_never_calibrated_on_nor_their_patients() -> None:
    items = labelled_patients()
    fit, calibration = split_normals(items, 0.5)
    assert {item["label"] for item in fit + calibration} == {0}
    chosen = choose_abnormal(items, None, calibration)
    assert {item["label"] for item in chosen} == {1}
    assert {item["patient"] for item in chosen} == {item["case"] for item in fit}
    with pytest.raises(ValueError, match=r"lists 6 usable .*\(6 more are of patients held out for calibration\)"):
        choose_abnormal(items, 7, calibration)


def test_a_larger_choice_of_abnormal_images_holds_a_smaller_one() -> None:
    items = labelled_patients()
    chosen = [choose_abnormal(items, count, seed=2) for count in (0, 3, 12)]
    assert chosen[0] == []
    assert chosen[1] == chosen[2][:3]
    assert choose_abnormal(items[::-1], 3, seed=2) == chosen[1]
    assert choose_abnormal(items, 12, seed=3) != chosen[2]
    assert choose_abnormal(items, None, seed=2) == chosen[2]


@pytest.mark.parametrize("count", [-1, 13])
def test_abnormal_images_that_are_not_there_cannot_be_chosen(count: int) -> None:
    with pytest.raises(ValueError, match=rf"labelled_abnormal is {count}.* lists 12 usable.* 0 to 12, or null"):
        choose_abnormal(labelled_patients(), count)


def test_all_abnormal_images_where_there_are_none() -> None:
    items = labelled_patients()
    with pytest.raises(ValueError, match=r"lists no usable image with label 1\. Add some, or train without the preset"):
        choose_abnormal(patients(6), None)
    with pytest.raises(ValueError, match=r"no usable image with label 1 \(12 more are of patients held out"):
        choose_abnormal(items, None, items)
    assert choose_abnormal(patients(6), 0) == []


def test_items_that_may_be_normal_but_cannot_be_read_are_reported() -> None:
    problem = {"image": "/x.png", "case": "x", "problem": "The mask cannot be read."}
    fit, calibration = split_normals([problem, *patients(4)], 0.5)
    assert problem in fit + calibration
