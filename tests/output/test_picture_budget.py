from report_results import block

from aeflow_monai.output.report import PictureBudget


def filled(limit: int, n_slices: int, cases: dict[str, tuple[float, int]]) -> PictureBudget:
    budget = PictureBudget(limit)
    for case, (score, label) in cases.items():
        budget.add(case, score, 2.0, block(n_slices), label)
    return budget


# one of each kind that is looked at first, among others that are dull
CASES = {
    **{f"dull{number}": (-1.0 - number / 100, 0) for number in range(30)},
    "missed": (-3.0, 1),
    "false": (2.9, 0),
    "borderline": (2.01, 1),
    "highest": (9.0, 1),
}


def test_all_pictures_are_kept_while_they_fit() -> None:
    pictures = filled(10**7, 6, CASES).pictures()
    assert pictures.keys() == CASES.keys()
    assert all(kept.keys() == {"single", "block"} for kept in pictures.values())


def test_the_interesting_cases_are_kept() -> None:
    size = len(str(filled(10**7, 1, {"a": (1.0, 0)}).pictures()))
    kept = filled(8 * size, 1, CASES).pictures()
    assert {"missed", "false", "borderline", "highest"} <= kept.keys()
    assert len(kept) < 9


def test_slices_of_volumes_go_before_the_pictures_of_cases() -> None:
    everything = filled(10**7, 20, CASES)
    size = len(str(everything.pictures()))
    kept = filled(size * 2 // 3, 20, CASES).pictures()
    assert kept.keys() == CASES.keys()
    with_slices = {case for case, pictures in kept.items() if "block" in pictures}
    assert {"missed", "false", "borderline", "highest"} <= with_slices < CASES.keys()


def test_no_more_than_the_limit_is_kept() -> None:
    for limit in (0, 5_000, 100_000):
        kept = filled(limit, 6, CASES).pictures()
        assert sum(len(str(pictures)) for pictures in kept.values()) <= limit * 1.1
