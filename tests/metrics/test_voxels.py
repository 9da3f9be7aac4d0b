from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from metrics.drawn import draw_set, draw_volume, filled
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from aeflow_monai.metrics import VoxelMetrics
from aeflow_monai.metrics.voxels import _below, _keys

Array = npt.NDArray[Any]


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
    assert report["lesion_fraction"] == labels.mean()
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


def test_images_and_any_nonzero_count() -> None:
    anomaly_map, mask = draw_volume(1, shape=(30, 30))
    metrics = VoxelMetrics()
    metrics.update(anomaly_map, mask * 255)
    assert metrics.compute(1)["voxel_auroc"] == pytest.approx(
        roc_auc_score(mask.ravel(), anomaly_map.ravel()), abs=1e-3
    )


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"n_bits has to be in \[9, 24\] .*, got 32"):
        VoxelMetrics(n_bits=32)
    with pytest.raises(ValueError, match=r"fpr_limit .* in \(0, 1\], got 0"):
        VoxelMetrics(fpr_limit=0)
    metrics = filled(draw_set())
    for threshold in (np.inf, np.nan):
        with pytest.raises(ValueError, match=f"threshold has to be finite, got {threshold}: calibrate"):
            metrics.compute(threshold)
    metrics.reset()
    anomaly_map, mask = draw_volume(1)
    metrics.update(anomaly_map, np.ones_like(mask))
    with pytest.raises(ValueError, match=r"without lesion are needed, but all 5760"):
        metrics.compute(0)
