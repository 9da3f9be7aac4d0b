from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from aeflow_monai import Model
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.engine.inference.picture_warning import note_on_image, require_volumes, saw_pictures, saw_volumes
from aeflow_monai.geometry import Places
from aeflow_monai.score.calibration import calibrate_score
from aeflow_monai.score.normal_slices import NormalSlices
from aeflow_monai.score.position import PositionMoments, PositionNorm
from aeflow_monai.score.score import Score


@pytest.mark.parametrize("shape", [(64, 64, 1), (1, 64, 64)])
def test_a_slice_for_a_model_of_volumes_is_told_once(
    trained: Path, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    state = read_model(model_path(trained)).state
    assert not note_on_image(state, (64, 64, 4), 1)  # of which one slice is not empty
    assert note_on_image(state, shape, 1).startswith("A single slice was given, but the model was trained on volumes.")
    model = Model(trained)
    for _ in range(2):
        model.infer(MetaTensor(torch.rand(1, 64, 64, 1)))
    assert caplog.text.count("A single slice was given") == 1


@pytest.mark.parametrize("of_volumes", [True, False])
def test_what_a_model_was_calibrated_on(trained: Path, of_volumes: bool) -> None:
    moments, generator = PositionMoments(grid=1), torch.Generator().manual_seed(0)
    for case in range(5):
        maps = torch.rand(4, 1, 8, 8, generator=generator) + torch.arange(4).view(4, 1, 1, 1)
        places = Places(["axial"] * 4, torch.linspace(0, 1, 4)) if of_volumes else None
        moments.add(maps, torch.ones_like(maps), places, f"patient {case}")
    norm = PositionNorm(grid=1)
    norm.fit([moments])
    state = norm.state_dict(prefix="score.dissimilarity_norm.")
    assert saw_volumes(state) == of_volumes
    assert saw_pictures(state) != of_volumes
    assert not saw_pictures({})
    assert saw_volumes(read_model(model_path(trained)).state)
    norm.set_unknown()  # of too few patients, which tell of neither
    assert not saw_volumes(state)
    assert not saw_pictures(state)


@pytest.mark.parametrize("published", [True, False])
def test_nothing_is_known_of_a_model_before_its_calibration(published: bool) -> None:
    state = Score(published=published).state_dict(prefix="score.")
    for each in (state, {name: value for name, value in state.items() if name != "score.saw_volumes"}):
        assert not saw_volumes(each)
        assert not saw_pictures(each)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("n", [1, 4])
def test_a_calibration_notes_whether_it_saw_volumes(published: bool, n: int) -> None:
    score, loaded = Score(published=published), Score(published=published)
    terms = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    places = Places(["axial"] * n, torch.linspace(0, 1, n) if n > 1 else torch.tensor([0.5]))
    calibrate_score(score, [NormalSlices(terms, terms > 0, ["a"] * n, ["a"] * n, places)], specificity=0.5)
    loaded.load_state_dict(score.state_dict())
    for state in (score.state_dict(prefix="score."), loaded.state_dict(prefix="score.")):
        assert saw_volumes(state) == (n > 1)
        assert saw_pictures(state) == (n == 1)
    old = {name: value for name, value in score.state_dict().items() if name != "saw_volumes"}
    loaded.load_state_dict(old)  # of an earlier version
    assert loaded.saw_volumes == -1
    assert "saw_volumes" not in old


def test_a_volume_for_a_model_of_pictures_is_told_once(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, volume = Model(trained), MetaTensor(torch.rand(1, 64, 64, 4))
    model.infer(volume)
    assert "2D images" not in caplog.text
    mean = model.detector.score.dissimilarity_norm.mean
    mean.copy_(mean[:, :1].expand_as(mean).clone())  # as of 2D images, whose relative position is one
    model.detector.score.saw_volumes.fill_(-1)
    for _ in range(2):
        model.infer(volume)
    model.infer(volume[..., :1])
    assert caplog.text.count("A volume was given, but the model was trained on 2D images") == 1


def test_pictures_do_not_calibrate_a_model_of_volumes(trained: Path) -> None:
    state = read_model(model_path(trained)).state
    require_volumes(state, [{"image": "a.nii.gz"}, {"image": ["b.nrrd", "c.nrrd"]}])
    with pytest.raises(
        ValueError, match=r"^2 of 3 images are 2D pictures, but .* volumes: b\.png, c\.jpg\. Give volumes"
    ):
        require_volumes(state, [{"image": "a.nii.gz"}, {"image": "b.png"}, {"image": "c.jpg"}])
    require_volumes({}, [{"image": "b.png"}])  # where it is not known


@pytest.mark.parametrize("n_pictures", [0, 2])
def test_volumes_and_single_slices_that_set_thresholds_are_reported(
    n_pictures: int, caplog: pytest.LogCaptureFixture
) -> None:
    files = [*"aaabbb", *(f"picture {number}" for number in range(n_pictures))]
    terms = torch.rand(len(files), 1, 32, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0.0, 0.5, 1.0] * 2 + [0.5] * n_pictures)
    slices = NormalSlices(terms, terms > 0, files, files, Places(["axial"] * len(files), positions))
    calibrate_score(Score(), [slices], specificity=0.5)
    said = "2 of 4 normals that thresholds are set on are volumes, and the others single slices."
    assert (said in caplog.text) == bool(n_pictures)
