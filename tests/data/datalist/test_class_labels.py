from typing import Any

import pytest

from aeflow_monai.data.datalist import require_labels


def test_evaluation_needs_both_labels_or_masks() -> None:
    labelled = [{"image": "a", "label": 0}, {"image": "b", "label": 1}]
    assert require_labels(labelled) is labelled
    problem = {"image": "p", "case": "p", "problem": "no mask"}
    assert len(require_labels([*labelled, problem])) == 3
    masked = [{"image": "c", "label": 1, "lesion": "m"}, {"image": "d", "label": 1}, problem]
    assert require_labels(masked) is masked


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([{"image": "a", "label": 0}, {"image": "b", "label": 1}, {"image": "c"}], "1 of 3 test images have no label"),
        ([{"image": "b", "label": 1}], r"labels \{1\} and no masks"),
        (
            [{"image": "b", "label": 1}, {"image": "p", "lesion": "m", "problem": "no image"}],
            r"labels \{1\} and no masks",
        ),
        ([{"image": "c", "label": 1, "lesion": "m"}, {"image": "d"}], "1 of 2 test images have no label"),
        ([{"image": "a", "label": 0, "lesion": "m"}], r"labels \{0\}\."),
    ],
)
def test_what_cannot_be_evaluated_is_refused(items: list[dict[str, Any]], found: str) -> None:
    with pytest.raises(ValueError, match=rf"got {found}.*use inference\.yaml"):
        require_labels(items)
