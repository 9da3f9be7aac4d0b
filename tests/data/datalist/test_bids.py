"""Which lesion mask belongs to which image of BIDS; the names are of published data sets, or follow the standard."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import write_image, write_images

from aeflow_monai.data.datalist import find_images, load_datalist
from aeflow_monai.output.nifti_files import write_nifti


def listed(root: Path, images: Sequence[str], masks: Sequence[str], **options: Any) -> dict[str, Any]:
    """For each case: the name of its mask, "normal", or "problem"."""
    write_images(root, [*images, *masks])
    items = load_datalist(root, "all", layout="bids", **options)
    return {item["case"]: said_of(item) for item in items}


def said_of(item: dict[str, Any]) -> str:
    if "problem" in item:
        assert item["label"] == 1  # never among the normals
        return "problem"
    assert item["label"] == int("lesion" in item)
    return Path(item["lesion"]).name if "lesion" in item else "normal"


NORMAL = "sub-9/anat/sub-9_T1w.nii.gz"  # so that the list has a normal case in any case


def anat(name: str, suffix: str = "T1w") -> str:
    return f"{'/'.join(part for part in name.split('_') if part[:3] in ('sub', 'ses'))}/anat/{name}_{suffix}.nii.gz"


@pytest.mark.parametrize(
    "mask",
    [
        "derivatives/seg/sub-1/anat/sub-1_label-WMH_mask.nii.gz",
        "derivatives/seg/sub-1/anat/sub-1_desc-segmentation_mask.nii.gz",
        "derivatives/seg/sub-1/anat/sub-1_label-braintumor_mask.nii.gz",
        "derivatives/seg/sub-1/anat/sub-1_desc-manualsegmentation_dseg.nii.gz",
        "derivatives/a/b/c/sub-1_label-lesion.nii.gz",
        "derivatives/manual/sub-1/anat/sub-1_desc-T1lesion_mask.nii",
        "derivatives/sub-1_dseg.nii.gz",
        "derivatives/fmriprep/sub-1/anat/sub-1_label-lesion_roi.nii.gz",
        "sub-1/anat/sub-1_T1w_label-lesion_roi.nii.gz",
        "sub-1/anat/sub-1_roi.nii.gz",
        "sub-1/anat/sub-1_T1w_lesionmask.nii.gz",
        "sub-1/lesions/sub-1_space-orig_desc-brainlesion_mask.nii.gz",
        "lesions/sub-1.nii.gz",
        "derivatives/manual/sub-1/anat/sub-1_T1w_lesion-manual.nii.gz",
        "derivatives/labels/sub-1/anat/sub-1_T1w_lesion-manual.nii.gz",
        "derivatives/lesions/sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/masks/sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/labels/sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/wmh_manual/sub-1_FLAIR.nii.gz",
        "sub-1/anat/sub-1_T1w_lesion-manual.nii.gz",
        "sub-1/anat/sub-1_T1w_wmh-manual.nii.gz",
        "sub-1/anat/sub-1_T1w-lesion.nii.gz",
        "sub-1/anat/sub-1_mask-lesion.nii.gz",
        "derivatives/masks/tumor_sub-1.nii.gz",
        "derivatives/x/sub-1_desc-infarct.nii.gz",
        "derivatives/x/sub-1/anat/label-lesion_mask.nii.gz",  # the subject is in the folder
        "elsewhere/sub-1_space-T1w_label-L_desc-T1lesion_mask.nii.gz",
    ],
)
def test_lesion_masks_of_a_subject(tmp_path: Path, mask: str) -> None:
    found = listed(tmp_path, [anat("sub-1"), NORMAL], [mask])
    assert found == {"sub-1": Path(mask).name, "sub-9": "normal"}
    assert {item["case"] for item in find_images(tmp_path, layout="bids")} == {"sub-1", "sub-9"}


@pytest.mark.parametrize(
    "mask",
    [
        "derivatives/fmriprep/sub-1/anat/sub-1_desc-brain_mask.nii.gz",
        "derivatives/fmriprep-23.1.0/sub-1/anat/sub-1_dseg.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_label-GM_probseg.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_label-brain_desc-manual_mask.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_desc-aparcaseg_dseg.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_atlas-Schaefer_dseg.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_space-MNI152_label-CSF_mask.nii.gz",
        "sub-1/anat/sub-1_mod-T1w_defacemask.nii.gz",
    ],
)
def test_masks_of_brain_and_tissue_are_no_lesions(tmp_path: Path, mask: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert listed(tmp_path, [anat("sub-1")], [mask]) == {"sub-1": "normal"}
    assert f"1 masks of organs or tissue ({mask})" in caplog.text


SESSIONS = [anat("sub-1_ses-a"), anat("sub-1_ses-b"), NORMAL]
RUNS = [anat("sub-1_run-1"), anat("sub-1_run-2"), NORMAL]


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (SESSIONS, ["d/sub-1_ses-a_roi.nii"], {"sub-1_ses-a": "sub-1_ses-a_roi.nii", "sub-1_ses-b": "normal"}),
        (SESSIONS, ["d/sub-1_roi.nii"], {"sub-1_ses-a": "problem", "sub-1_ses-b": "problem"}),  # of which session?
        (SESSIONS, ["d/sub-1_ses-c_roi.nii"], {"sub-1_ses-a": "problem", "sub-1_ses-b": "problem"}),
        ([anat("sub-1_ses-a"), NORMAL], ["d/sub-1_roi.nii"], {"sub-1_ses-a": "sub-1_roi.nii"}),
        ([anat("sub-1"), NORMAL], ["d/sub-1_ses-a_roi.nii"], {"sub-1": "problem"}),
        (RUNS, ["d/sub-1_run-02_roi.nii"], {"sub-1_run-1": "problem", "sub-1_run-2": "sub-1_run-02_roi.nii"}),
        (RUNS, ["d/sub-1_roi.nii"], {"sub-1_run-1": "problem", "sub-1_run-2": "problem"}),  # of which run?
        (
            RUNS,
            ["d/sub-1_run-1_roi.nii", "d/sub-1_run-2_roi.nii"],
            {"sub-1_run-1": "sub-1_run-1_roi.nii", "sub-1_run-2": "sub-1_run-2_roi.nii"},
        ),
        (
            [anat("sub-1"), NORMAL],
            ["d/sub-1_run-1_roi.nii", "d/sub-1_run-2_roi.nii"],
            {"sub-1": "problem"},
        ),
        ([anat("sub-1"), NORMAL], ["d/sub-1_space-MNI_roi.nii"], {"sub-1": "problem"}),  # on another grid
        (
            [anat("sub-1_space-MNI"), NORMAL],
            ["d/sub-1_space-MNI_roi.nii", "d/sub-1_space-orig_roi.nii"],
            {"sub-1_space-MNI": "sub-1_space-MNI_roi.nii"},
        ),
        (
            [anat("sub-1_acq-a"), anat("sub-1_acq-b"), NORMAL],
            ["d/sub-1_acq-b_roi.nii"],
            {"sub-1_acq-a": "problem", "sub-1_acq-b": "sub-1_acq-b_roi.nii"},
        ),
        ([anat("sub-1"), NORMAL], ["d/a/sub-1_roi.nii", "d/b/sub-1_roi.nii"], {"sub-1": "problem"}),  # two raters
        ([anat("sub-1"), NORMAL], ["d/sub-1_roi.nii", "d/sub-1_desc-wmh_roi.nii"], {"sub-1": "sub-1_desc-wmh_roi.nii"}),
        # drawn on the FLAIR, which is not asked for
        ([anat("sub-1_acq-iso"), NORMAL], ["sub-1/anat/sub-1_acq-tse_FLAIR_roi.nii"], {"sub-1_acq-iso": "problem"}),
        ([anat("sub-1"), NORMAL], ["d/sub-11_roi.nii", "d/roi.nii"], {"sub-1": "normal"}),
    ],
)  # fmt: skip
def test_masks_of_sessions_runs_and_spaces(
    tmp_path: Path, images: Sequence[str], masks: Sequence[str], expected: dict[str, str]
) -> None:
    assert listed(tmp_path, images, masks) == {**expected, "sub-9": "normal"}


def test_a_mask_belongs_to_all_modalities_of_a_run(tmp_path: Path) -> None:
    images = [anat("sub-1", suffix) for suffix in ("T1w", "FLAIR")] + [
        anat("sub-9", suffix) for suffix in ("T1w", "FLAIR")
    ]
    found = listed(tmp_path, images, ["sub-1/anat/sub-1_FLAIR_roi.nii"], modalities=("T1w", "FLAIR"))  # fmt: skip
    assert found == {"sub-1": "sub-1_FLAIR_roi.nii", "sub-9": "normal"}


def test_what_is_not_clear_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, [*SESSIONS, "d/sub-1_ses-a_roi.nii", "d/sub-7_roi.nii"])
    write_image(tmp_path / "sub-2/anat/sub-2_T1w.nii.gz")
    write_image(tmp_path / "d/sub-2_ses-x_roi.nii")
    items = {item["case"]: item for item in load_datalist(tmp_path, "all")}
    assert "sub-2_T1w.nii.gz has no lesion mask that fits its name, but its subject has" in items["sub-2"]["problem"]
    assert "sub-2_ses-x_roi.nii. It is not taken for normal" in items["sub-2"]["problem"]
    assert "1 images count as normal, although other sessions of their subjects have lesion masks: " in caplog.text
    assert "2 masks that are not used (d/sub-2_ses-x_roi.nii, d/sub-7_roi.nii)" in caplog.text
    assert "1 of these cases cannot be used. The first: " in caplog.text


def test_an_empty_mask_is_of_a_normal_image(tmp_path: Path) -> None:
    write_images(tmp_path, [anat("sub-1"), anat("sub-2"), anat("sub-3"), "d/sub-1_roi.nii"])
    write_image(tmp_path / "d/sub-2_roi.nii", 0)
    (tmp_path / "d/sub-3_roi.nii").write_bytes(b"no volume")
    items = load_datalist(tmp_path, "all")
    assert [item.get("label") for item in items] == [1, 0, None]
    assert "sub-3_roi.nii tells the label of its image, but cannot be read" in items[2]["problem"]


def test_linked_folders_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = tmp_path / "bids"
    write_images(tmp_path, ["elsewhere/seg/sub-2/anat/sub-2_label-lesion_mask.nii.gz"])
    write_images(root, [anat("sub-1"), anat("sub-2")])
    (root / "derivatives").symlink_to("../elsewhere", target_is_directory=True)
    (root / "again").symlink_to("../elsewhere/seg", target_is_directory=True)
    (tmp_path / "elsewhere/seg/up").symlink_to(root, target_is_directory=True)  # a cycle
    (root / "sub-3").symlink_to("nowhere", target_is_directory=True)
    items = load_datalist(root, "all")
    assert [(item["case"], item["label"]) for item in items] == [("sub-1", 0), ("sub-2", 1)]
    assert "1 links to nothing (sub-3)" in caplog.text
    assert "2 links to folders that are read already" in caplog.text


def test_masks_of_our_own_are_no_lesions(tmp_path: Path) -> None:
    write_images(tmp_path, [anat("sub-1")])
    mask = np.ones((1, 2, 3, 2), np.uint8)
    write_nifti(tmp_path / "derivatives/maps/sub-1_anomaly_mask.nii.gz", mask, np.eye(4), None)
    assert load_datalist(tmp_path, "all")[0]["label"] == 0


def test_raw_data_beside_derivatives(tmp_path: Path) -> None:
    names = [f"rawdata/{anat('sub-1')}", f"rawdata/{anat('sub-2')}", "derivatives/lesions/sub-2/anat/sub-2_roi.nii.gz"]
    write_images(tmp_path, names)
    items = load_datalist(tmp_path, "all")
    assert [(item["case"], item["patient"], item["label"]) for item in items] == [
        ("sub-1", "sub-1", 0),
        ("sub-2", "sub-2", 1),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_without_permission_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, [anat("sub-1"), "derivatives/sub-1_roi.nii.gz"])
    (tmp_path / "derivatives").chmod(0)
    load_datalist(tmp_path, "all")
    (tmp_path / "derivatives").chmod(0o700)
    assert "1 folders that cannot be read (derivatives)" in caplog.text


def test_masks_beside_a_given_rawdata(tmp_path: Path) -> None:
    write_images(tmp_path / "rawdata", [anat("sub-1"), NORMAL])
    mask = "derivatives/lesions/sub-1/anat/sub-1_label-lesion_mask.nii.gz"
    write_images(tmp_path, [mask, "derivatives/lesions/sub-7/anat/sub-7_label-lesion_mask.nii.gz"])
    with pytest.raises(ValueError, match=rf"got 1 of its subjects beside it: .*{mask}\. Give {tmp_path}, which holds"):
        load_datalist(tmp_path / "rawdata", "all")
    assert len(find_images(tmp_path / "rawdata")) == 2
    assert {item["label"] for item in load_datalist(tmp_path, "all")} == {0, 1}


def test_parts_of_a_complex_image_but_its_magnitude_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images = [anat(f"sub-{subject}_part-{part}") for subject in (1, 2) for part in ("mag", "phase", "real", "imag")]
    assert listed(tmp_path, images, []) == {"sub-1_part-mag": "normal", "sub-2_part-mag": "normal"}
    assert "6 images that the layout does not read" in caplog.text


@pytest.mark.parametrize(
    "derived",
    [
        "derivatives/lesion_filled/sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/lesions/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
        "derivatives/wmh/sub-1/anat/sub-1_space-orig_T1w.nii.gz",
    ],
)
def test_an_image_that_a_program_derived_is_no_mask(tmp_path: Path, derived: str) -> None:
    assert set(listed(tmp_path, [anat("sub-1"), NORMAL], [derived]).values()) == {"normal"}


def test_an_image_beside_its_mask_is_no_second_mask(tmp_path: Path) -> None:
    beside = [f"derivatives/stroke/sub-1/anat/sub-1_{suffix}.nii.gz" for suffix in ("T1w", "mask")]
    assert listed(tmp_path, [anat("sub-1"), NORMAL], beside) == {"sub-1": "sub-1_mask.nii.gz", "sub-9": "normal"}
