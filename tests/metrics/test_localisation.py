import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from aeflow_monai.metrics import LesionMetrics, VoxelMetrics, format_localisation, slice_report
from aeflow_monai.metrics.candidates import find_candidates
from aeflow_monai.metrics.voxels import _below, _keys

Array = npt.NDArray[Any]
MM = (1.0, 1.0, 1.0)


def draw_volume(seed: int, shape: tuple[int, ...] = (20, 18, 16), n_lesions: int = 2) -> tuple[Array, Array]:
    """A smooth map around 0 and boxes that it is a little larger in."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for _ in range(n_lesions):
        corner = [int(generator.integers(0, size - 4)) for size in shape]
        mask[tuple(slice(low, low + int(generator.integers(2, 5))) for low in corner)] = 1
    noise = ndimage.gaussian_filter(generator.normal(size=shape), 1)
    return (noise / noise.std() + 1.5 * mask).astype(np.float32), mask


def draw_set(n: int = 5) -> list[tuple[Array, Array]]:
    """Volumes of which every third is normal."""
    return [draw_volume(seed, n_lesions=seed % 3) for seed in range(n)]


def filled(volumes: list[tuple[Array, Array]], **settings: Any) -> VoxelMetrics:
    metrics = VoxelMetrics(**settings)
    for anomaly_map, mask in volumes:
        metrics.update(anomaly_map, mask)
    return metrics


def pooled(volumes: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([mask.ravel() for _, mask in volumes]), np.concatenate([x.ravel() for x, _ in volumes])


def plain_aupro(volumes: list[tuple[Array, Array]], limit: float) -> float:
    """AUPRO as defined: at each threshold, the mean over regions of the share that is called."""
    labels, values = pooled(volumes)
    regions = []
    for anomaly_map, mask in volumes:
        components, n = ndimage.label(mask, np.ones((3,) * mask.ndim))
        regions += [anomaly_map[components == i] for i in range(1, n + 1)]
    false_rate, _, thresholds = roc_curve(labels, values, drop_intermediate=False)
    overlap = np.mean([(region >= thresholds[:, None]).mean(1) for region in regions], axis=0)
    grid = np.linspace(0, limit, 200001)
    return float(np.interp(grid, false_rate, overlap).mean())


def test_binned_areas_equal_sklearn() -> None:
    volumes = draw_set()
    report = filled(volumes).compute(1)
    labels, values = pooled(volumes)
    auroc = roc_auc_score(labels, values)
    assert report["voxel_auroc"] == pytest.approx(auroc, abs=1e-4)
    assert abs(report["voxel_auroc"] - auroc) <= report["voxel_auroc_error"] < 1e-3
    assert report["voxel_average_precision"] == pytest.approx(average_precision_score(labels, values), abs=1e-3)
    assert report["lesion_share"] == labels.mean()
    assert (report["n_volumes"], report["n_abnormal_volumes"]) == (5, 3)
    assert (report["n_voxels"], report["n_lesion_voxels"]) == (labels.size, labels.sum())
    assert report["n_regions"] == sum(ndimage.label(mask, np.ones((3, 3, 3)))[1] for _, mask in volumes)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_aupro_equals_its_definition(limit: float, step: float) -> None:
    volumes = draw_set()
    if step:
        volumes = [((np.round(x / step) * step).astype(np.float32), mask) for x, mask in volumes]
    report = filled(volumes, fpr_limit=limit).compute(1)
    assert report["aupro"] == pytest.approx(plain_aupro(volumes, limit), abs=1e-3)
    assert report["aupro_fpr_limit"] == limit


def test_aupro_weighs_regions_alike_however_large() -> None:
    mask, anomaly_map = np.zeros((20, 20)), np.zeros((20, 20))
    mask[:10, :10] = mask[15, 15] = 1
    anomaly_map[:10, :10] = 1  # 100 voxels are found, and the region of one voxel is not
    anomaly_map[15, 15] = -1
    metrics = VoxelMetrics()
    metrics.update(anomaly_map, mask)
    # half at once, then a straight line from (0, 1/2) to (1, 1/2)
    assert metrics.compute(0.5)["aupro"] == pytest.approx(0.5)
    assert metrics.compute(0.5)["dice"] == pytest.approx(200 / 201)


@pytest.mark.parametrize(("shape", "expected"), [((6, 6), 1), ((6, 6, 6), 1)])
def test_diagonal_neighbours_are_one_region(shape: tuple[int, ...], expected: int) -> None:
    mask = np.zeros(shape)
    mask[(1,) * len(shape)] = mask[(2,) * len(shape)] = 1
    metrics = VoxelMetrics()
    metrics.update(mask, mask)
    assert metrics.compute(0)["n_regions"] == expected


def test_dice_at_the_stored_threshold() -> None:
    volumes = draw_set()
    labels, values = pooled(volumes)
    for threshold in (-10.0, -0.3, 0.0, 1.0, 2.5, 1e6):
        report = filled(volumes).compute(threshold)
        assert report["map_threshold"] == threshold
        assert report["dice"] == pytest.approx(f1_score(labels, values > threshold, zero_division=0), abs=1e-3)
        each = [f1_score(m.ravel(), x.ravel() > threshold, zero_division=0) for x, m in volumes if m.any()]
        assert report["mean_volume_dice"] == pytest.approx(np.mean(each), abs=1e-3)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 0.3, 1e-40, -1e30])
def test_a_value_equal_to_the_threshold_is_not_called(value: float) -> None:
    metrics = VoxelMetrics()
    metrics.update([[value, value]], [[0, 1]])
    assert metrics.compute(value)["dice"] == 0
    assert metrics.compute(value - max(abs(value), 1e-30))["dice"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("step", [0.0, 1.0])
def test_no_threshold_beats_the_oracle_and_the_oracle_reaches_itself(step: float) -> None:
    volumes = draw_set()
    if step:
        volumes = [((np.round(x / step) * step).astype(np.float32), mask) for x, mask in volumes]
    metrics = filled(volumes)
    best = metrics.compute(0)
    for threshold in np.linspace(-4, 6, 60):
        report = metrics.compute(threshold)
        assert report["dice"] <= best["oracle_best_dice"]
        assert report["mean_volume_dice"] <= best["oracle_best_mean_volume_dice"]
    assert metrics.compute(best["oracle_map_threshold"])["dice"] == best["oracle_best_dice"]
    again = metrics.compute(best["oracle_mean_volume_threshold"])
    assert again["mean_volume_dice"] == best["oracle_best_mean_volume_dice"]
    labels, values = pooled(volumes)
    assert f1_score(labels, values > best["oracle_map_threshold"]) == pytest.approx(best["oracle_best_dice"])


def test_lesions_at_zero_have_an_oracle_threshold_below_zero() -> None:
    metrics = VoxelMetrics()
    metrics.update([[-1, -0.0, 0.0]], [[0, 1, 1]])
    report = metrics.compute(-0.5)
    assert report["oracle_best_dice"] == report["dice"] == report["voxel_auroc"] == 1
    assert -1 < report["oracle_map_threshold"] < 0
    assert metrics.compute(report["oracle_map_threshold"])["dice"] == 1


@pytest.mark.parametrize("n_bits", [9, 18, 20, 24])
def test_bins_keep_the_order_at_any_scale(n_bits: int) -> None:
    generator = np.random.default_rng(0)
    scales = 10.0 ** generator.uniform(-44, 38, 20000)
    values = np.sort((scales * generator.choice([-1, 1], 20000)).astype(np.float32))
    keys = _keys(values, n_bits).astype(np.int64)
    assert (np.diff(keys) >= 0).all()
    assert keys.max() < 2**n_bits
    normal = abs(values) > 1e-37
    same = (np.diff(keys) == 0) & normal[1:] & normal[:-1]
    pairs = np.stack([values[1:], values[:-1]])[:, same]
    assert (abs(pairs).max(0) / abs(pairs).min(0) <= 1 + 2.0 ** (9 - n_bits)).all()
    for key in np.unique(keys[abs(values) < 1e38])[::50].tolist():
        edge = _below(key, n_bits)
        assert int(_keys(np.array([edge], np.float32), n_bits)[0]) == key - 1


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0), (1e6, 0), (1, 3)])
def test_no_range_has_to_be_known(scale: float, shift: float) -> None:
    volumes = draw_set()
    moved = [(x * np.float32(scale) + np.float32(shift), mask) for x, mask in volumes]
    plain, other = filled(volumes).compute(1), filled(moved).compute(scale + shift)
    for name in ("voxel_auroc", "voxel_average_precision", "aupro", "dice", "mean_volume_dice", "oracle_best_dice"):
        assert other[name] == pytest.approx(plain[name], abs=2e-3)


def test_error_bound_tells_when_bins_are_too_wide() -> None:
    volumes = [(x * np.float32(1e-3) + 1000, mask) for x, mask in draw_set()]
    report = filled(volumes).compute(1000)
    assert report["voxel_auroc_error"] > 0.1
    assert abs(report["voxel_auroc"] - roc_auc_score(*pooled(volumes))) <= report["voxel_auroc_error"]


def test_region_restricts_the_voxels_without_lesion_alone() -> None:
    anomaly_map, mask = draw_volume(2)
    region = np.zeros(mask.shape, bool)
    region[4:12] = True
    counts = region | (mask > 0)
    assert (mask[~region] > 0).any()
    metrics = VoxelMetrics()
    metrics.update(anomaly_map, mask, region=region)
    report = metrics.compute(1)
    assert report["voxel_auroc"] == pytest.approx(roc_auc_score(mask[counts], anomaly_map[counts]), abs=1e-3)
    assert report["dice"] == pytest.approx(f1_score(mask[counts], anomaly_map[counts] > 1), abs=1e-3)
    assert report["mean_volume_dice"] == pytest.approx(report["dice"])
    assert (report["n_voxels"], report["n_lesion_voxels"]) == (counts.sum(), mask.sum())


def test_perfect_and_constant_maps() -> None:
    _, mask = draw_volume(1)
    metrics = VoxelMetrics()
    metrics.update(mask, mask)
    report = metrics.compute(0.5)
    for name in ("voxel_auroc", "voxel_average_precision", "aupro", "dice", "mean_volume_dice", "oracle_best_dice"):
        assert report[name] == pytest.approx(1)
    metrics.reset()
    metrics.update(np.ones(mask.shape), mask)
    report = metrics.compute(0.5)
    assert report["voxel_auroc"] == 0.5
    assert report["voxel_average_precision"] == pytest.approx(mask.mean())
    assert report["aupro"] == pytest.approx(0.15)  # the mean of the diagonal to 0.3
    assert report["n_volumes"] == 1


def test_merged_parts_equal_the_whole() -> None:
    volumes = draw_set(6)
    first, second = filled(volumes[:2]), filled(volumes[2:])
    kept = second.compute(1)
    first.merge(second)
    assert first.compute(1) == pytest.approx(filled(volumes).compute(1))
    assert second.compute(1) == kept
    with pytest.raises(ValueError, match=r"n_bits has to be equal in both to merge them, got 20 and 18"):
        first.merge(VoxelMetrics(n_bits=18))


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, np.asfortranarray, torch.as_tensor, MetaTensor, np.float64, "half"])
def test_arrays_and_tensors_count_alike(kind: Any, channel: bool) -> None:
    anomaly_map, mask = draw_volume(1)
    anomaly_map = np.round(anomaly_map, 1)
    metrics, lesions = VoxelMetrics(), LesionMetrics()
    metrics.update(anomaly_map, mask)
    lesions.update(anomaly_map, mask, MM)
    if kind == "half":
        anomaly_map = anomaly_map.astype(np.float16).astype(np.float32)
        metrics.reset()
        metrics.update(anomaly_map, mask)

        def kind(array: Array) -> Any:
            return torch.as_tensor(array, dtype=torch.float16).requires_grad_()

    given = [kind(x[None] if channel else x) for x in (anomaly_map, mask)]
    other, other_lesions = VoxelMetrics(), LesionMetrics()
    other.update(*given, region=given[1] + 1)
    other_lesions.update(*given, MM)
    assert other.compute(1) == metrics.compute(1)
    assert other_lesions.compute() == lesions.compute()


def test_update_leaves_its_input_alone() -> None:
    anomaly_map, mask = draw_volume(1)
    kept = anomaly_map.copy(), mask.copy()
    VoxelMetrics().update(anomaly_map, mask)
    LesionMetrics().update(anomaly_map, mask, MM, region=mask + 1)
    np.testing.assert_array_equal(anomaly_map, kept[0])
    np.testing.assert_array_equal(mask, kept[1])


def test_images_and_any_nonzero_count() -> None:
    anomaly_map, mask = draw_volume(1, shape=(30, 30))
    metrics = VoxelMetrics()
    metrics.update(anomaly_map, mask * 255)
    assert metrics.compute(1)["voxel_auroc"] == pytest.approx(
        roc_auc_score(mask.ravel(), anomaly_map.ravel()), abs=1e-3
    )


def test_a_large_volume_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    anomaly_map = generator.normal(size=(240, 240, 155)).astype(np.float32)
    mask = np.zeros(anomaly_map.shape, bool)
    mask[100:140, 90:120, 60:90] = True
    start = time.perf_counter()
    VoxelMetrics().update(anomaly_map, mask)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("metrics", [VoxelMetrics(), LesionMetrics()])
def test_wrong_input_is_named(metrics: Any) -> None:
    anomaly_map, mask = draw_volume(1)
    more = (MM,) if isinstance(metrics, LesionMetrics) else ()
    bad = anomaly_map.copy()
    bad[0, 1, 2] = bad[3, 3, 3] = np.nan
    for values, lesion, message in (
        (anomaly_map, mask[1:], r"mask has to be of the anomaly_map's shape \(20, 18, 16\), got \(19, 18, 16\)"),
        (np.stack([anomaly_map] * 2), mask, r"anomaly_map has to be of shape .*, got \(2, 20, 18, 16\): give one"),
        (anomaly_map, np.ones(3), r"mask has to be of shape .*, got \(3,\)"),
        (bad, mask, r"finite in float32, got 2 of 5760 voxels .* the first \(nan\) at \(0, 1, 2\)"),
        (anomaly_map.astype(float) * 1e300, mask, "finite in float32, got"),
        (anomaly_map, bad, "mask has to be zero or nonzero everywhere, got 2 voxels that are NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.update(values, lesion, *more)
    with pytest.raises(ValueError, match=r"region has to be of the anomaly_map's shape"):
        metrics.update(anomaly_map, mask, *more, region=mask[1:])
    # nothing of a refused volume is counted
    metrics.update(anomaly_map, mask * 0, *more)
    with pytest.raises(ValueError, match="a lesion is needed, but of 1 volumes so far each mask is empty"):
        metrics.compute(*(() if more else (1.0,)))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"n_bits has to be in \[9, 24\] .*, got 32"):
        VoxelMetrics(n_bits=32)
    with pytest.raises(ValueError, match=r"fpr_limit .* in \(0, 1\], got 0"):
        VoxelMetrics(fpr_limit=0)
    with pytest.raises(ValueError, match="radius_mm has to be positive and finite, got 0"):
        LesionMetrics(radius_mm=0)
    with pytest.raises(ValueError, match="tolerance_mm has to be finite and at least 0, got -1"):
        LesionMetrics(tolerance_mm=-1)
    with pytest.raises(ValueError, match="max_candidates has to be at least 1, got 0"):
        LesionMetrics(max_candidates=0)
    anomaly_map, mask = draw_volume(1)
    with pytest.raises(ValueError, match=r"spacing_mm has to be 3 positive numbers, .* got \[1.0, 1.0\]"):
        LesionMetrics().update(anomaly_map, mask, (1, 1))
    with pytest.raises(ValueError, match=r"spacing_mm has to be 3 positive numbers, .* got \[1.0, 0.0, 1.0\]"):
        LesionMetrics().update(anomaly_map, mask, (1, 0, 1))
    with pytest.raises(ValueError, match=r"radius_mm has to reach .* but 5.0 is less than each .* raise radius_mm"):
        LesionMetrics().update(anomaly_map, mask, (6, 6, 6))
    with pytest.raises(ValueError, match="region has to be nonzero somewhere"):
        LesionMetrics().update(anomaly_map, mask, MM, region=mask * 0)
    metrics = filled(draw_set())
    for threshold in (np.inf, np.nan):
        with pytest.raises(ValueError, match=f"threshold has to be finite, got {threshold}: calibrate"):
            metrics.compute(threshold)
    metrics.reset()
    metrics.update(anomaly_map, np.ones_like(mask))
    with pytest.raises(ValueError, match=r"without lesion are needed, but all 5760"):
        metrics.compute(0)


def plain_candidates(values: Array, spacing: tuple[float, ...], radius: float) -> set[tuple[int, ...]]:
    half = [int(radius / s) for s in spacing]
    grid = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1)
    ball = np.linalg.norm(grid * spacing, axis=-1) <= radius
    peaks = values == ndimage.maximum_filter(values, footprint=ball, mode="nearest")
    return set(map(tuple, np.argwhere(peaks & (values > np.median(values))).tolist()))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 3), (2, 0.7, 6), (1, 1)])
@pytest.mark.parametrize("radius", [2.0, 5.0])
def test_candidates_are_the_maxima_of_a_ball(spacing: tuple[float, ...], radius: float) -> None:
    values = draw_volume(0, shape=(24, 22, 20)[: len(spacing)])[0]
    found = find_candidates(values, None, np.asarray(spacing, float), radius)
    assert set(map(tuple, found.tolist())) == plain_candidates(values, spacing, radius)
    assert (np.diff(values[tuple(found.T)]) <= 0).all()
    # as NIfTI volumes lie in memory
    np.testing.assert_array_equal(
        find_candidates(np.asfortranarray(values), None, np.asarray(spacing, float), radius), found
    )


def test_each_plateau_has_one_candidate() -> None:
    values = np.round(draw_volume(0)[0])
    peaks = np.zeros(values.shape, bool)
    peaks[tuple(np.array(sorted(plain_candidates(values, MM, 2.0))).T)] = True
    plateaus, n = ndimage.label(peaks, np.ones((3, 3, 3)))
    found = find_candidates(values, None, np.ones(3), 2.0)
    assert sorted(plateaus[tuple(found.T)]) == list(range(1, n + 1))
    assert n < peaks.sum()


def test_a_plateau_is_one_candidate_at_its_centre() -> None:
    values = np.zeros((30, 30, 30), np.float32)
    values[5:10, 5:10, 5:10] = 2
    values[20, 20:22, 20] = 1
    found = find_candidates(values, None, np.ones(3), 5.0).tolist()
    assert found == [[7, 7, 7], [20, 20, 20]]
    assert len(find_candidates(np.ones((9, 9, 9), np.float32), None, np.ones(3), 5.0)) == 0


def test_candidates_stay_in_the_region() -> None:
    values = draw_volume(0)[0]
    inside = np.zeros(values.shape, bool)
    inside[5:15, 5:15] = True
    found = find_candidates(values, inside, np.ones(3), 3.0)
    assert len(found)
    assert inside[tuple(found.T)].all()
    assert (values[tuple(found.T)] > np.median(values[inside])).all()
    outside_moved = np.where(inside, values, values + 100)
    np.testing.assert_array_equal(find_candidates(outside_moved, inside, np.ones(3), 3.0), found)


def point_map(points: dict[tuple[int, int, int], float], low: float = 0.0) -> Array:
    values = np.full((40, 40, 40), low)
    for point, height in points.items():
        values[point] = height
    return values


@pytest.mark.parametrize("low", [0.0, -10.0])  # confidences of a standardised map may be negative
def test_froc_by_hand(low: float) -> None:
    mask = np.zeros((40, 40, 40))
    mask[5:8, 5:8, 5:8] = mask[20, 20, 20] = mask[30:33, 5, 5] = 1
    # the first lesion is hit twice, the second from 2 mm away, the third is missed; two false positives
    heights = {(5, 5, 5): 9, (7, 7, 13): 3, (7, 7, 7): 6, (20, 20, 22): 4, (35, 35, 35): 5, (35, 35, 5): 2}
    metrics = LesionMetrics(radius_mm=3)
    metrics.update(point_map({p: h + low for p, h in heights.items()}, low), mask, MM)
    metrics.update(point_map({(5, 5, 5): 7 + low}, low), mask * 0, MM)  # a normal volume with one false positive
    report = metrics.compute()
    assert (report["n_volumes"], report["n_abnormal_volumes"], report["n_lesions"]) == (2, 1, 3)
    assert report["n_candidates"] == 7
    # from the top: hit 9 (1/3 at 0), FP 7 (0.5 per volume), FP 5 (1), hit 4 (2/3 at 1), FP 3 (1.5), FP 2 (2)
    expected = {"0.25": 1 / 3, "0.5": 1 / 3, "1": 2 / 3, "2": 2 / 3, "4": 2 / 3, "8": 2 / 3}
    assert report["lesion_sensitivity"] == pytest.approx(expected)
    assert report["froc_score"] == pytest.approx(np.mean(list(expected.values())))


def test_the_lowest_candidate_counts_too() -> None:
    mask = np.zeros((40, 40, 40))
    mask[5, 5, 5] = 1
    metrics = LesionMetrics()
    metrics.update(point_map({(5, 5, 5): 1}), mask, MM)
    assert metrics.compute()["froc_score"] == 1
    metrics.reset()
    metrics.update(point_map({(5, 5, 5): 1, (30, 30, 30): 2}), mask, MM)
    # the false positive comes first, so nothing is found with less than one
    assert metrics.compute()["lesion_sensitivity"] == {"0.25": 0, "0.5": 0, "1": 1, "2": 1, "4": 1, "8": 1}


def test_tolerance_is_in_mm() -> None:
    mask = np.zeros((40, 40, 40))
    mask[10, 10, 10] = 1
    values = point_map({(10, 10, 12): 1})
    for spacing, tolerance, expected in (((1, 1, 1), 2, 1), ((1, 1, 1), 1.9, 0), ((1, 1, 3), 2, 0), ((1, 1, 3), 6, 1)):
        metrics = LesionMetrics(tolerance_mm=tolerance)
        metrics.update(values, mask, spacing)
        assert metrics.compute()["froc_score"] == expected


def test_no_candidate_finds_nothing_and_their_number_is_limited() -> None:
    anomaly_map, mask = draw_volume(1)
    metrics = LesionMetrics(radius_mm=1, max_candidates=4)
    metrics.update(np.zeros(mask.shape), mask, MM)
    assert metrics.compute()["froc_score"] == metrics.compute()["n_candidates"] == 0
    metrics.update(anomaly_map, mask, MM)
    assert metrics.compute()["n_candidates"] == 4


def test_merged_lesions_equal_the_whole() -> None:
    volumes = draw_set(6)
    whole, parts = LesionMetrics(radius_mm=2), [LesionMetrics(radius_mm=2) for _ in range(2)]
    for i, (anomaly_map, mask) in enumerate(volumes):
        for metrics in (whole, parts[i % 2]):
            metrics.update(anomaly_map, mask, MM)
    parts[0].merge(parts[1])
    assert parts[0].compute() == whole.compute()
    with pytest.raises(ValueError, match=r"radius_mm has to be equal in both to merge them, got 2 and 5"):
        whole.merge(LesionMetrics())


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
