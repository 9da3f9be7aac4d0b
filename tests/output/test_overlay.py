import warnings
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor

from aeflow_monai.output.overlay import WriteOverlayd
from aeflow_monai.output.panels import Layers, Scales, block_maxima, block_means

Array = npt.NDArray[Any]


def overlay_case(**more: Any) -> dict[str, Any]:
    image, anomaly_map = torch.rand(1, 48, 40, 6), torch.zeros(1, 48, 40, 6)
    anomaly_map[0, 10:20, 10:20, 4] = 5
    return {"case": "sub-01", "image": image, "anomaly_map": anomaly_map, **more}


def write_overlay(folder: Path, data: dict[str, Any], threshold: Any = 3.0, **options: Any) -> Array:
    WriteOverlayd("image", "anomaly_map", folder, threshold, **options)(data)
    return matplotlib.image.imread(folder / f"{data['case']}_overlay.png")[..., :3]


def test_overlay_is_a_picture_with_three_panels(tmp_path: Path) -> None:
    truth = torch.zeros(1, 48, 40, 6, dtype=torch.bool)
    truth[0, 12:22, 12:22] = True
    data = overlay_case(lesion=truth, anomaly_score=torch.tensor([4.5]), slice_scores={"axial": torch.arange(6.0)})
    picture = write_overlay(tmp_path / "new", data)
    height, width, _ = picture.shape
    assert 300 < height < width < 2000
    for panel in np.array_split(picture[:, : int(0.9 * width)], 3, axis=1):
        assert panel.std() > 0.1
    plain = write_overlay(tmp_path, overlay_case(image=data["image"]))
    assert (plain != picture).any()


def test_same_value_has_the_same_colour_in_every_picture(tmp_path: Path) -> None:
    """Left half 4 SD in both; what stands in the right half must not matter there."""
    pictures = []
    for case, other in (("a", 0.0), ("b", 40.0)):
        anomaly_map = torch.full((1, 60, 60), 4.0)
        anomaly_map[..., 30:] = other
        data = {"case": case, "image": torch.full((1, 60, 60), 0.5), "anomaly_map": anomaly_map}
        pictures.append(write_overlay(tmp_path, data))
    one, two = pictures
    assert one.shape == two.shape
    row, width = one.shape[0] // 2, one.shape[1]
    columns = [int(width * share) for share in (0.38, 0.40, 0.42)]
    colours = one[row, columns]
    np.testing.assert_array_equal(colours, two[row, columns])
    assert (colours[:, 0] > colours[:, 2] + 0.2).all()  # warm, not the grey below
    assert (one[row] != two[row]).any()


# Rows to posterior, 1 mm; columns to the patient's left, 2 mm; slices up, 5 mm.
PLS = torch.tensor([[0.0, -2, 0, 40], [-1, 0, 0, 30], [0, 0, 5, -10], [0, 0, 0, 1]], dtype=torch.float64)
NAN = float("nan")


def title_and_picture(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Array]:
    from aeflow_monai.output import overlay

    draw, drawn = overlay.draw_panels, []

    def recorded(layers: Layers, scales: Scales, title: str) -> Figure:
        drawn.append((title, layers.image))
        return draw(layers, scales, title)

    with monkeypatch.context() as patch:
        patch.setattr(overlay, "draw_panels", recorded)
        write_overlay(folder, data)
    return drawn[0]


@pytest.mark.parametrize(
    ("scores", "axis", "title"),
    [
        (None, 2, "axial, k = 4 (0 to 5)"),
        ({"axial": torch.tensor([0.0, NAN, 9, 0, 0, 0])}, 2, "axial, k = 2 (0 to 5)"),
        ({"axial": [NAN, -2.0, -1.0, NAN, -3.0, -9.0]}, 2, "axial, k = 2 (0 to 5)"),
        ({"coronal": torch.arange(48.0), "axial": torch.arange(6.0)}, 0, "coronal, i = 47 (0 to 47)"),
        ({"sagittal": -torch.arange(40.0)}, 1, "sagittal, j = 0 (0 to 39)"),
        ({"axial": torch.full((6,), NAN)}, 2, "axial, k = 4 (0 to 5)"),
    ],
)
def test_most_anomalous_slice_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: Any, axis: int, title: str
) -> None:
    data = overlay_case(**({} if scores is None else {"slice_scores": scores}))
    shown, picture = title_and_picture(tmp_path, data, monkeypatch)
    assert shown == f"sub-01   |   {title}"
    expected = data["image"][0].select(axis, int(title.split()[3])).numpy()
    np.testing.assert_array_equal(picture, expected if axis == 2 else np.rot90(expected))  # the last slice on top


def test_position_stands_beside_the_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By eye: the third slice is 10 mm above -10; the first row is at 30, the last column 78 mm left of 40."""
    image = MetaTensor(torch.rand(1, 48, 40, 6), affine=PLS)
    expected = {
        "axial": (6, 2, "k = 2 (0 to 5), S +0.0 mm"),
        "coronal": (48, 0, "i = 0 (0 to 47), A +30.0 mm"),
        "sagittal": (40, 39, "j = 39 (0 to 39), R \N{MINUS SIGN}38.0 mm"),
    }
    for name, (n_slices, index, title) in expected.items():
        scores = torch.zeros(n_slices)
        scores[index] = 1
        data = overlay_case(image=image, slice_scores={name: scores})
        assert title_and_picture(tmp_path, data, monkeypatch)[0] == f"sub-01   |   {name}, {title}"


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ({"anomaly_score": torch.tensor(4.2), "case_threshold": 2.0}, "case score 4.20, threshold 2.00: abnormal"),
        ({"anomaly_score": 2.0, "case_threshold": 2.0}, "case score 2.00, threshold 2.00: normal"),
        ({"anomaly_score": 4.2}, "case score 4.20"),
        (
            {"anomaly_score": 4.2, "map_score": 2.0, "case_threshold": 2.0},
            "case score 4.20, threshold 2.00: abnormal as a whole, by its global term",
        ),
        (
            {"anomaly_score": 4.2, "map_score": 2.1, "case_threshold": 2.0},
            "case score 4.20, threshold 2.00: abnormal",
        ),
    ],
)
def test_the_title_says_whose_score_it_is_and_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], verdict: str
) -> None:
    image = torch.rand(1, 20, 30)
    data = {"case": "a", "image": image, "anomaly_map": torch.zeros_like(image), **told}
    assert title_and_picture(tmp_path, data, monkeypatch)[0] == f"a   |   {verdict}"


@pytest.mark.parametrize("depth", [(), (1,)])
def test_a_picture_has_no_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: tuple[int, ...]) -> None:
    image = MetaTensor(torch.rand(1, 20, 30, *depth), affine=PLS if depth else PLS[[0, 1, 3]][:, [0, 1, 3]])
    data = {"case": "a", "image": image, "anomaly_map": torch.zeros_like(image)}
    data["slice_scores"] = {"axial": torch.zeros(1)}
    assert title_and_picture(tmp_path, data, monkeypatch)[0] == "a"


def test_the_threshold_is_the_models_unless_it_is_given(tmp_path: Path) -> None:
    data = overlay_case()
    write = WriteOverlayd("image", "anomaly_map", tmp_path, vmax=6.0)
    with pytest.raises(ValueError, match="threshold has to be finite, got nan: use a calibrated model"):
        write({**data, "map_threshold": float("nan")})
    pictures = []
    for value in (3.0, 100.0):
        write({**data, "map_threshold": value})
        pictures.append(matplotlib.image.imread(tmp_path / "sub-01_overlay.png"))
    assert (pictures[0] != pictures[1]).any()
    WriteOverlayd("image", "anomaly_map", tmp_path, threshold=3.0, vmax=6.0)({**data, "map_threshold": 100.0})
    np.testing.assert_array_equal(matplotlib.image.imread(tmp_path / "sub-01_overlay.png"), pictures[0])


def test_pixels_keep_their_proportions_and_sides_their_letters() -> None:
    from aeflow_monai.output.overlay import _picture_geometry

    affine = PLS
    image = MetaTensor(torch.rand(1, 8, 8, 8), affine=affine)
    assert _picture_geometry(image, 2) == (0.5, "APRL")
    assert _picture_geometry(image, 1) == (5.0, "SIAP")
    assert _picture_geometry(image, 0) == (2.5, "SIRL")
    assert _picture_geometry(MetaTensor(torch.rand(1, 8, 8), affine=affine), 0) == (0.5, "")
    assert _picture_geometry(MetaTensor(torch.rand(1, 8, 8, 8)), 2) == (1.0, "")
    assert _picture_geometry(torch.rand(1, 8, 8), 2) == (1.0, "")
    # a picture in the bundle is a volume of one slice, whose sides nobody told
    assert _picture_geometry(MetaTensor(torch.rand(1, 8, 8, 1), affine=affine), 2) == (0.5, "")


def test_reconstruction_has_a_panel_of_its_own(tmp_path: Path) -> None:
    data = overlay_case(reconstruction=torch.rand(1, 48, 40, 6))
    plain = write_overlay(tmp_path, data)
    wide = write_overlay(tmp_path, data, reconstruction_key="reconstruction")
    assert wide.shape[1] > 1.2 * plain.shape[1]


@pytest.mark.parametrize("value", [0.0, 3.0, 50.0, -2.0])
def test_flat_maps_and_odd_names_are_drawn_without_warning(tmp_path: Path, value: float) -> None:
    flat = torch.full((1, 20, 30), value)
    data = {
        "case": "a $x_1$ $",
        "image": torch.zeros(1, 20, 30),
        "anomaly_map": flat,
        "lesion": flat > 99,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_overlay(tmp_path, data)


def test_wrong_overlays_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slice_axis has to be 0, 1 or 2, got 3"):
        WriteOverlayd("image", "anomaly_map", tmp_path, 3.0, slice_axis=3)
    with pytest.raises(ValueError, match="vmax has to be a positive number of standard deviations, got 0"):
        WriteOverlayd("image", "anomaly_map", tmp_path, 3.0, vmax=0)
    with pytest.raises(ValueError, match=r"'anomaly_map' of case 'sub-01' .* write overlays before Invertd"):
        write_overlay(tmp_path, overlay_case(anomaly_map=torch.zeros(1, 20, 20, 6)))
    with pytest.raises(ValueError, match=r"'slice_scores' of case 'sub-01' has to be of shape \(6,\) for 'axial'"):
        write_overlay(tmp_path, overlay_case(slice_scores={"axial": torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"has planes of \['axial', 'coronal', 'sagittal'\], got \['oblique'\]"):
        write_overlay(tmp_path, overlay_case(slice_scores={"oblique": torch.zeros(6)}))
    with pytest.raises(ValueError, match=r"got \[\]"):
        write_overlay(tmp_path, overlay_case(slice_scores={}))
    with pytest.raises(TypeError, match=r"has to be a dictionary such as \{'axial': scores\}, got Tensor"):
        write_overlay(tmp_path, overlay_case(slice_scores=torch.zeros(6)))


def test_case_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="case has to be a file name without path separators"):
        write_overlay(tmp_path / "out", overlay_case(case="../a"))
    assert not list(tmp_path.rglob("*.*"))


def test_a_large_picture_is_drawn_smaller_without_losing_a_find() -> None:
    image, anomaly_map = np.random.default_rng(0).random((2, 2501, 1100), np.float32)
    anomaly_map[2500, 1098] = 9
    means, maxima = block_means(image), block_maxima(anomaly_map)
    assert means.shape == maxima.shape == (626, 275)
    np.testing.assert_allclose(means[:625], image[:2500].reshape(625, 4, 275, 4).mean((1, 3)), 1e-5)
    np.testing.assert_allclose(means[625], image[2500].reshape(275, 4).mean(1), 1e-5)  # a block of one row
    assert maxima[625, 274] == 9
    assert (maxima > 5).sum() == 1
    for reduce in (block_means, block_maxima):
        assert np.shares_memory(reduce(image[:2048]), image)
