import csv
import warnings
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Resized
from scipy.spatial.transform import Rotation

from aeflow_monai.output.profile import WriteProfiled
from aeflow_monai.output.slice_place import SlicePlace

Array = npt.NDArray[Any]
NAN = float("nan")
FALLING = {"coronal": "A", "sagittal": "R"}
AXES = {"axial": 2, "coronal": 0, "sagittal": 1}
# Rows to posterior, 1 mm, from A 30; columns to the patient's left, 2 mm, from R 40; slices up, 5 mm, from S -10.
PLS = torch.tensor([[0.0, -2, 0, 40], [-1, 0, 0, 30], [0, 0, 5, -10], [0, 0, 0, 1]], dtype=torch.float64)


def profile_case(shape: tuple[int, ...] = (4, 5, 3), affine: Any = PLS, **more: Any) -> dict[str, Any]:
    image = MetaTensor(torch.rand(1, *shape), affine=affine)
    scores = {name: torch.arange(float(shape[axis])) for name, axis in AXES.items()}
    return {"case": "sub-01", "image": image, "slice_scores": scores, **more}


def profile_of_file(folder: Path, affine: Any, shape: tuple[int, ...], size: tuple[int, ...] = (-1, -1, -1)) -> Any:
    """Rows of the table of a file, as they come out of the bundle's preprocessing."""
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape, np.float32), np.asarray(affine)), folder / "a.nii")
    load = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="PLS", labels=None),
            Resized("image", size, mode="trilinear"),
        ]
    )
    image = load({"image": folder / "a.nii"})["image"]
    return image, table(folder, {**profile_case(tuple(image.shape[1:])), "image": image})


def table(folder: Path, data: dict[str, Any], threshold: Any = 1.5) -> dict[str, list[dict[str, str]]]:
    WriteProfiled("image", folder, threshold)(data)
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / f"{data['case']}_slices.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["plane"], []).append(row)
    return rows


def positions(rows: dict[str, list[dict[str, str]]], axis: str) -> list[float]:
    return [float(row["position_mm"]) for row in rows[axis]]


def numbers(rows: dict[str, list[dict[str, str]]], axis: str) -> list[str]:
    return [row["axis"] + row["slice_from_0"] for row in rows[axis]]


def places_at(positions: Any, plane: str, letter: str) -> list[SlicePlace]:
    """Slices at these positions, stored in the opposite order."""
    world, n = "RAS".index(letter), len(positions)
    centers = [tuple(position if axis == world else 0.0 for axis in range(3)) for position in positions]
    return [SlicePlace(plane, "j", n - 1 - index, n, center) for index, center in enumerate(centers)]  # type: ignore[arg-type]


def test_table_reads_as_documented(tmp_path: Path) -> None:
    scores = {"axial": torch.tensor([NAN, 1.5, 1.75]), "sagittal": [0.0, -1.0, NAN, 9.0, 2.0]}
    data = profile_case(slice_scores=scores, global_terms={"axial": torch.tensor([NAN, 0.25, -3.0])})
    assert WriteProfiled("image", tmp_path / "new", torch.tensor(1.5))(data) == data
    assert (tmp_path / "new" / "sub-01_slices.csv").read_text() == (
        "plane,axis,slice_from_0,position_mm,anomaly_score,prediction,skipped,global_term\n"
        "axial,k,0,-10.0,,0,1,\n"
        "axial,k,1,-5.0,1.5,0,0,0.25\n"
        "axial,k,2,0.0,1.75,1,0,-3.0\n"
        "sagittal,j,0,40.0,0.0,0,0,\n"
        "sagittal,j,1,38.0,-1.0,0,0,\n"
        "sagittal,j,2,36.0,,0,1,\n"
        "sagittal,j,3,34.0,9.0,1,0,\n"
        "sagittal,j,4,32.0,2.0,1,0,\n"
    )
    picture = matplotlib.image.imread(tmp_path / "new" / "sub-01_slices.png")
    assert 400 < picture.shape[0] < picture.shape[1] < 1500


def test_positions_of_an_anisotropic_file(tmp_path: Path) -> None:
    """By eye: voxels of 2, 3 and 4 mm whose first lies at R -10, A -20, S -30, all axes towards RAS."""
    affine = [[2, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, -30], [0, 0, 0, 1]]
    _, rows = profile_of_file(tmp_path, affine, (5, 6, 4))
    assert positions(rows, "axial") == [-30, -26, -22, -18]
    assert positions(rows, "coronal") == [-5, -8, -11, -14, -17, -20]  # the first is the most anterior
    assert positions(rows, "sagittal") == [-2, -4, -6, -8, -10]  # the first is the most right
    assert numbers(rows, "axial") == ["k0", "k1", "k2", "k3"]
    assert numbers(rows, "coronal") == ["j5", "j4", "j3", "j2", "j1", "j0"]
    assert numbers(rows, "sagittal") == ["i4", "i3", "i2", "i1", "i0"]


def test_positions_of_a_flipped_and_permuted_file(tmp_path: Path) -> None:
    """By eye: stored from S 50 downwards in steps of 5, then to the left from R 8 by 2, then to A from -6 by 3."""
    affine = [[0, -2, 0, 8], [0, 0, 3, -6], [-5, 0, 0, 50], [0, 0, 0, 1]]
    _, rows = profile_of_file(tmp_path, affine, (4, 5, 3))
    assert positions(rows, "axial") == [35, 40, 45, 50]
    assert positions(rows, "sagittal") == [8, 6, 4, 2, 0]
    assert positions(rows, "coronal") == [0, -3, -6]
    assert numbers(rows, "axial") == ["i3", "i2", "i1", "i0"]
    assert numbers(rows, "sagittal") == ["j0", "j1", "j2", "j3", "j4"]
    assert numbers(rows, "coronal") == ["k2", "k1", "k0"]


def test_position_of_an_oblique_slice_is_that_of_its_centre(tmp_path: Path) -> None:
    """Tilted by 30 degrees about R; by eye: 10 mm along the slices is 10 cos 30 = 8.660 mm up."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", 30, degrees=True).as_matrix() @ np.diag([1, 2, 10])
    affine[:3, 3] = -5, 7, 9
    image, rows = profile_of_file(tmp_path, affine, (6, 9, 3))
    # The centre of the first slice is 4 voxels of 2 mm along the tilted second axis: 9 + 8 sin 30.
    assert positions(rows, "axial") == [13.0, 21.66, 30.321]
    for name, axis in AXES.items():
        letter = "RAS".index({"axial": "S", "coronal": "A", "sagittal": "R"}[name])
        for k, position in enumerate(positions(rows, name)):
            index = [(n - 1) / 2 for n in image.shape[1:]]
            index[axis] = k
            world = image.affine.numpy() @ [*index, 1]
            assert position == pytest.approx(world[letter], abs=1e-3)


def test_between_two_anatomical_axes_either_will_do(tmp_path: Path) -> None:
    """Tilted by 45 degrees; by eye: 10 mm along the slices is 7.071 mm up, from 8 sin 45 = 5.657 below the first."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", 45, degrees=True).as_matrix() @ np.diag([1, 2, 10])
    _, rows = profile_of_file(tmp_path, affine, (6, 9, 9), size=(7, 5, -1))
    steps = np.diff(positions(rows, "axial"))
    # The file's own axes may be called either way round; then the slices are those of 2 mm.
    assert np.allclose(steps, 7.071, atol=2e-3) or np.allclose(steps, 1.414, atol=2e-3)


def test_resizing_keeps_the_field_of_view(tmp_path: Path) -> None:
    """By eye: 8 rows of 1 mm from A 0 to 7 become 4 rows of 2 mm, whose centres lie half a voxel further in."""
    image, rows = profile_of_file(tmp_path, np.eye(4), (8, 8, 3), size=(4, 4, -1))
    assert image.shape == (1, 4, 4, 3)
    assert positions(rows, "coronal") == [6.5, 4.5, 2.5, 0.5]
    assert positions(rows, "sagittal") == [6.5, 4.5, 2.5, 0.5]
    assert positions(rows, "axial") == [0, 1, 2]
    assert numbers(rows, "axial") == ["k0", "k1", "k2"]


def test_lps_readers_change_no_position(tmp_path: Path) -> None:
    lps = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)) @ PLS
    data = profile_case()
    data["image"] = MetaTensor(torch.rand(1, 4, 5, 3), affine=lps, meta={"space": "LPS"})
    rows = table(tmp_path, data)
    assert positions(rows, "coronal") == [30, 29, 28, 27]
    assert positions(rows, "sagittal") == [40, 38, 36, 34, 32]


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1)])
def test_2d_images_have_no_profile(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = {"case": "a", "image": torch.rand(1, *shape), "slice_scores": {"axial": torch.zeros(1)}}
    assert WriteProfiled("image", tmp_path, 1.0)(data) == data
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "scores", [[NAN, NAN, NAN], [NAN, 2.0, NAN], [0.0, 0.0, 0.0], [-3.0, -2.0, -5.0], [1e6, 0.0, NAN]]
)
def test_odd_scores_and_names_are_drawn_without_warning(tmp_path: Path, scores: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = table(tmp_path, profile_case(case="a $x_1$ $", slice_scores={"axial": scores}))
    assert [row["skipped"] for row in rows["axial"]] == [str(int(np.isnan(score))) for score in scores]
    assert matplotlib.image.imread(tmp_path / "a $x_1$ $_slices.png")[..., :3].std() > 0.02


def test_picture_shows_gap_threshold_and_most_anomalous_slice() -> None:
    from aeflow_monai.output.profile import _draw

    scores = np.array([1.0, NAN, 2.0, 7.0, NAN], dtype=np.float32)
    figure = _draw({"axial": (places_at(np.arange(-10.0, 15, 5).tolist(), "axial", "S"), scores)}, 3.0, "sub-01")
    (panel,) = figure.axes
    lines = {line.get_label(): line for line in panel.lines}
    np.testing.assert_array_equal(lines["score"].get_xydata(), np.stack([np.arange(-10, 15, 5), scores], 1))
    assert list(lines["threshold 3.00"].get_ydata()) == [3, 3]
    assert lines["most anomalous slice"].get_xydata().tolist() == [[5, 7]]
    assert panel.get_title(loc="right") == "most anomalous: j = 1 (0 to 4), S +5.0 mm, slice score 7.00"
    texts = [text.get_text() for text in panel.texts] + [figure._suptitle.get_text(), figure._supxlabel.get_text()]
    assert {"inferior", "superior", "Research use only. Not a medical device."} <= set(texts)
    assert panel.get_xlim() == (-12.5, 12.5)
    top = panel.child_axes[0]
    figure.canvas.draw()
    assert top.get_xlim() == pytest.approx((-0.5, 4.5))  # half a slice around slices 0 to 4, which run the other way


def test_slices_run_from_left_to_right_as_they_are_counted() -> None:
    from aeflow_monai.output.profile import _draw

    scores = np.zeros(3, np.float32)
    falling = {plane: (places_at([30.0, 29, 28], plane, letter), scores) for plane, letter in FALLING.items()}
    figure = _draw(falling, 3.0, "a")
    for panel, ends in zip(figure.axes, (["anterior", "posterior"], ["right", "left"]), strict=True):
        assert panel.get_xlim() == (30.5, 27.5)
        assert [text.get_text() for text in sorted(panel.texts, key=lambda text: text.xy[0])] == ends


def test_the_threshold_is_the_models_unless_it_is_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threshold has to be finite, got nan: use a calibrated model"):
        WriteProfiled("image", tmp_path)(profile_case(slice_threshold=NAN))
    for own, given, predictions in ((0.5, None, "011"), (1.5, None, "001"), (1.5, 0.5, "011")):
        WriteProfiled("image", tmp_path, given)(profile_case(slice_threshold=own))
        text = (tmp_path / "sub-01_slices.csv").read_text().splitlines()
        assert "".join(line.split(",")[5] for line in text if line.startswith("axial")) == predictions


def test_wrong_profiles_are_named(tmp_path: Path) -> None:
    write = WriteProfiled("image", tmp_path, 1.0)
    with pytest.raises(TypeError, match=r"has to be a dictionary such as \{'axial': scores\}, got Tensor"):
        write(profile_case(slice_scores=torch.zeros(3)))
    with pytest.raises(ValueError, match=r"has axes of \['axial', 'coronal', 'sagittal'\], got \['oblique'\]"):
        write(profile_case(slice_scores={"oblique": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"has to hold 3 finite numbers or NaN for 'axial', .* got shape \(4,\)"):
        write(profile_case(slice_scores={"axial": torch.zeros(4)}))
    with pytest.raises(ValueError, match=r"and 1 infinite"):
        write(profile_case(slice_scores={"axial": torch.tensor([0.0, float("inf"), 0])}))
    with pytest.raises(TypeError, match="has to be a MetaTensor, got Tensor, whose affine is unknown"):
        write(profile_case(image=torch.rand(1, 4, 5, 3)))
    for affine in (torch.eye(4), PLS @ torch.diag(torch.tensor([1.0, 1, -1, 1], dtype=torch.float64))):
        with pytest.raises(ValueError, match=r"in orientation PLS .* apply Orientationd with axcodes='PLS' first"):
            write(profile_case(affine=affine))
    with pytest.raises(ValueError, match="case has to be a file name without path separators"):
        write(profile_case(case="../a"))
    assert not list(tmp_path.iterdir())
