from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage

from aeflow_monai import Model, load_datalist, predict
from aeflow_monai.engine.bundles.given_image import loadable


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 5)])
def test_maps_have_the_shape_and_affine_of_the_image(trained: Path, shape: tuple[int, ...]) -> None:
    affine = torch.tensor([[0.0, -2.0, 0.0, 5.0], [1.5, 0.0, 0.0, -7.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    image = MetaTensor(torch.rand(shape, generator=torch.Generator().manual_seed(0)), affine=affine)
    found = predict(image, model=trained)
    for value in (found.anomaly_map, found.anomaly_mask, *found.maps.values()):
        assert tuple(value.shape) == (1, *shape)
        torch.testing.assert_close(value.affine, affine, check_dtype=False)
    assert found.maps.keys() == {"reconstruction", "residual", "log_likelihood"}
    threshold = found.thresholds["map_threshold"]
    assert torch.equal(found.anomaly_mask.as_tensor(), (found.anomaly_map > threshold).as_tensor().to(torch.uint8))
    assert found.is_abnormal == (found.anomaly_score > found.thresholds["case_threshold"])
    assert found.slice_scores["axial"].numel() == (shape[2] if len(shape) == 3 else 1)
    assert 1 / (1 + found.n_held_out) <= found.p_value <= 1
    assert [place.slice_from_0 for place in found.slice_places["axial"]] == list(
        range(shape[2] if len(shape) == 3 else 0)
    )


def test_a_prediction_prints_as_a_few_lines(trained: Path) -> None:
    affine = torch.diag(torch.tensor([1.0, 1, -4, 1]))  # from the top
    volume = MetaTensor(torch.rand(40, 30, 5, generator=torch.Generator().manual_seed(0)), affine=affine)
    found = predict(volume, model=trained)
    place = found.most_anomalous_slice
    assert place is not None
    index = int(found.slice_scores["axial"].argmax())
    assert place == found.slice_places["axial"][index]
    assert (place.axis, place.slice_from_0, place.position_mm) == ("k", 4 - index, -4.0 * (4 - index))
    lines = str(found).splitlines()
    threshold, verdict = found.thresholds["case_threshold"], "abnormal" if found.is_abnormal else "normal"
    assert lines == [
        f"case score {found.anomaly_score:.2f}, threshold {threshold:.2f}: {verdict}",
        f"p-value {found.p_value:.2g} among 1 held-out normal",
        f"most anomalous slice: {place}",
    ]
    assert repr(found) == str(found)
    flat = predict(volume[..., 0], model=trained)
    assert flat.most_anomalous_slice is None
    assert flat.slice_places == {"axial": []}
    assert len(str(flat).splitlines()) == 2


def test_an_opened_model_says_the_same_again(trained: Path) -> None:
    model = Model(trained)
    image = np.random.default_rng(0).random((32, 32, 3))
    first, second = model.predict(image), model.predict(torch.from_numpy(image))
    assert first.anomaly_score == second.anomaly_score == predict(image, trained).anomaly_score
    assert torch.equal(first.anomaly_map, second.anomaly_map)
    assert first.thresholds == model.detector.score.thresholds


def test_the_image_that_was_given_stays_as_it_was(trained: Path) -> None:
    image = torch.rand(32, 32, 3)
    before = image.clone()
    predict(image, trained)
    assert torch.equal(image, before)


@pytest.mark.parametrize("shape", [(8,), (1, 2, 8, 8)])
def test_an_array_of_other_dimensions_is_refused(trained: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected an image \(X, Y\) or a volume \(X, Y, Z\); got the shape"):
        predict(np.zeros(shape), trained)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_numbers_that_32_bits_cannot_hold_are_refused_as_in_a_file(trained: Path, kind: Callable[..., Any]) -> None:
    values = np.random.default_rng(0).uniform(size=(64, 64))
    with pytest.raises(ValueError, match=r"Expected numbers that 32 bits can hold in the (array|tensor)"):
        predict(kind(1e9 + values), trained)
    with pytest.raises(ValueError, match="Expected real numbers; got complex ones"):
        predict(kind(values * 1j), trained)


@pytest.mark.parametrize("options", [{"requires_grad": True}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}])
def test_tensors_of_other_kinds_are_images(trained: Path, options: dict[str, Any]) -> None:
    values = torch.linspace(0, 1, 64 * 64).view(64, 64).sin()
    found = predict(values.to(options.get("dtype")).requires_grad_(options.get("requires_grad", False)), trained)
    expected = predict(values, trained).anomaly_score
    assert found.anomaly_score == pytest.approx(expected, rel=0.02 if options.get("dtype") == torch.bfloat16 else 1e-4)


def test_arrays_that_are_no_grey_images_are_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match="is taken for a picture with colours: give its path"):
        predict(np.zeros((64, 64, 3), dtype=np.uint8), trained)
    for shape, of_pictures in (((3, 64, 64), False), ((4, 64, 64), True), ((64, 64, 3), True)):
        with pytest.raises(ValueError, match="is taken for a picture with colours: give its path"):
            loadable(torch.zeros(shape), of_pictures)
    assert loadable(torch.zeros(64, 64, 3), False).shape == (1, 64, 64, 3)
    assert loadable(MetaTensor(torch.zeros(3, 64, 64)), True).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"for a model of 2D images may be turned: .* Give the file's path"):
        loadable(np.zeros((64, 48)), True)
    with pytest.raises(ValueError, match="for a model of 2D images may be turned"):
        loadable(np.zeros((64, 48, 1)), True)
    read = MetaTensor(torch.zeros(1, 64, 48), meta={"filename_or_obj": "a.png"})  # as MONAI's own reader gives it
    with pytest.raises(ValueError, match="for a model of 2D images may be turned"):
        loadable(read, True)
    assert loadable(MetaTensor(torch.zeros(64, 48)), True).shape == (1, 64, 48)
    with pytest.raises(ValueError, match="Expected a path, an array or a tensor; got list"):
        predict([[0.0, 1.0]], trained)
    with pytest.raises(ValueError, match=r"got a masked array\. Fill it"):
        predict(np.ma.masked_equal(np.zeros((64, 64)), 0), trained)
    for image in (
        np.array([["a"]]),
        np.zeros((4, 4), "datetime64[s]"),
        np.zeros((4, 4), [("a", "f4")]),
        torch.zeros(4, 4).to_sparse(),
        torch.zeros(4, 4, device="meta"),
    ):
        with pytest.raises(ValueError, match="Expected an array of plain numbers; got one of "):
            predict(image, trained)
    with pytest.raises(ValueError, match="is a file: give the folder that the training wrote"):
        predict(np.zeros((8, 8)), trained / "models/model.pt")


def test_memory_order_of_an_array_does_not_matter(trained: Path, volumes: Path) -> None:
    file = volumes / "images/test_abnormal_000.nii.gz"
    array = np.asarray(nib.load(file).dataobj)
    expected = predict(array, trained).anomaly_score
    for same in (array[::-1].copy()[::-1], array.astype(">f4"), np.asfortranarray(array)):
        assert predict(same, trained).anomaly_score == expected


def test_an_image_of_monais_loader_is_the_file(trained: Path, volumes: Path) -> None:
    file = volumes / "images/test_abnormal_000.nii.gz"
    expected = predict(file, trained).anomaly_score
    for options in ({}, {"ensure_channel_first": True}):
        assert predict(LoadImage(image_only=True, **options)(file), trained).anomaly_score == expected


def test_a_missing_image_is_named(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.nii\.gz; there is no such file"):
        predict(tmp_path / "absent.nii.gz", trained)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((32, 32, 8)), "got the same value, 0, in all voxels"),
        (np.full((32, 32), np.nan), "Expected finite voxels in 'image'; got 1024 of 1024"),
        (np.zeros((0, 32)), r"Expected an image with voxels; got the shape \(0, 32\)"),
    ],
)
def test_a_bad_image_ends_with_the_error_itself(trained: Path, image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(image, trained)


def test_a_device_that_is_not_there_is_named(trained: Path) -> None:
    with pytest.raises(ValueError, match="device: expected a device that torch has here, as cpu or cuda:0; got 'gpu'"):
        predict(np.zeros((8, 8)), trained, device="gpu")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no trained model at {tmp_path / 'models/model.pt'}"):
        predict(np.zeros((8, 8)), tmp_path)


def test_an_image_that_the_model_was_trained_on_is_known_however_it_is_saved(
    trained: Path, volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said, model = "has the features of one that the model was trained or calibrated on", Model(trained)
    for item in load_datalist(volumes, "test"):
        model.predict(item["image"])
    assert said not in caplog.text
    image = nib.load(load_datalist(volumes, "train")[0]["image"])
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine), tmp_path / "saved anew.nii")
    for _ in range(2):
        model.predict(tmp_path / "saved anew.nii")
    assert caplog.text.count(said) == 1


def test_an_image_far_above_all_held_out_normals_is_noted_once(
    trained: Path, volumes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said, model = "far above the threshold of", Model(trained)
    image, *others = [item["image"] for item in load_datalist(volumes, "test")]
    for each in (image, *others):  # some with lesions
        model.predict(each)
    assert said not in caplog.text
    model.detector.score.slice_threshold -= 100  # as if the image had come from another scanner
    for _ in range(2):
        model.predict(image)
    assert caplog.text.count(said) == 1
    assert [said in note for note in model.inferer.notes] == [True]
