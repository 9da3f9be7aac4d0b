"""A reply in 3D Slicer's own libraries, by the steps of MONAI Label's plugin: import, correct, export, submit.

The package slicer-core has these libraries without the application, so the plugin's buttons are not pressed here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("slicer") is None, reason="3D Slicer's libraries are needed: pip install slicer-core"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of its wrapping
]

CASE = "test_abnormal_000"


class Scene:
    """A scene with a volume and an empty segment, as the plugin makes it of the next sample."""

    def __init__(self, volume: Path) -> None:
        import slicer

        self.slicer = slicer
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerSegmentationsModuleLogic()
        self.logic.SetMRMLScene(self.scene)
        self.volume = self.load(volume, "vtkMRMLScalarVolumeNode")
        self.segments = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        self.segments.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        self.segments.GetSegmentation().AddEmptySegment("anomaly", "anomaly", (1.0, 0.0, 0.0))

    def storage(self, path: Path) -> Any:
        node = self.slicer.vtkMRMLVolumeArchetypeStorageNode()
        self.scene.AddNode(node)
        node.SetFileName(str(path))
        return node

    def load(self, path: Path, kind: str) -> Any:
        node = self.scene.AddNewNodeByClass(kind)
        assert self.storage(path).ReadData(node)
        return node

    def names(self) -> Any:
        import vtk

        names = vtk.vtkStringArray()
        names.InsertNextValue("anomaly")
        return names

    def show(self, reply: Path) -> None:
        label = self.load(reply, "vtkMRMLLabelMapVolumeNode")
        assert label.GetImageData().GetDimensions() == self.volume.GetImageData().GetDimensions()
        assert self.logic.ImportLabelmapToSegmentationNode(label, self.segments, self.names())

    def export(self, path: Path) -> None:
        label = self.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        assert self.logic.ExportSegmentsToLabelmapNode(self.segments, self.names(), label, self.volume)
        assert self.storage(path).WriteData(label)


@pytest.mark.parametrize("shown", [True, False], ids=["the mask", "an empty label"])
def test_what_slicer_submits_lies_where_the_image_does(
    guarded: Any, guarded_studies: Path, tmp_path: Path, shown: bool
) -> None:
    server, studies = guarded, guarded_studies
    source = nib.load(studies / f"{CASE}.nii.gz")
    scene, expected = Scene(studies / f"{CASE}.nii.gz"), np.zeros(source.shape)
    if shown:
        options = {"threshold": "calibrated", "device": "cpu", "result_extension": ".nrrd", "result_dtype": "uint8"}
        reply, said = server.client.infer("anomaly_mask", CASE, options)
        assert list(said["label_names"]) == ["anomaly"]
        scene.show(Path(reply))
        expected = nib.load(server.client.infer("anomaly_mask", CASE, {})[0]).get_fdata()
        assert expected.any()
    scene.export(tmp_path / f"{CASE}.nii.gz")
    label = nib.load(tmp_path / f"{CASE}.nii.gz")
    np.testing.assert_allclose(label.affine, source.affine, atol=1e-4)
    np.testing.assert_array_equal(label.get_fdata(), expected)
    server.client.save_label(CASE, str(tmp_path / f"{CASE}.nii.gz"), tag="final")
    report = server.evaluation()
    assert report["failed"] == {}
    assert ("metrics" in report) == shown  # a report needs a lesion
    assert server.ask(f"/datastore/label?id={CASE}&tag=final", "DELETE")[0] == 200
