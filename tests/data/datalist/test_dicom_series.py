import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_writer import SHAPE, pixels, slice_of, write, write_series
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from aeflow_monai.data import LoadCased, find_images, load_datalist, prepare_data
from aeflow_monai.data.datalist.item import files_of
from aeflow_monai.data.dicom.series import contents_of

LOAD = LoadCased("image")
# `pixels(0)` as a High-Throughput JPEG 2000 codestream, which no package here writes; encoded by OpenJPH, in base 85
HTJ2K = (
    rb"|4;u>04YEK0000`0001B000000000000062000620000000000009pH0sl|{2mk^A000dCQUDA90ssL31q1{@0smY86CjY7n4p-LpqQA"
    rb"Tn3$N5keL5u02crOPjF>!N>E53R%LP^FfK7PE-)_tkN^q*00000<^TczlfVEL(EoqG|3CkK{rCPm|2qFQ{_*}OOU(!X`M3bU00`g!1xO"
    rb"R)0HP@VzyJaMwgA8Y3a9`9QV;+F{M!9~%XR<|0O0mV$?UcOzyJ#P00CS80002+@A#*ur>CbvdH@Ij0D%8dJ(7F&N$k1+zyJ$Q003Gb00"
    rb"02|f7JB!^z`)f^z`)f@^AqH0O0?9m+#;2-|ye=-|W5szyKE900C_P000000093l|9%3Lr722Ml%*+3Qk11BOXUFo00000|9}5i1FpL3u"
    rb"Da{4y6djG>#n+$0sq+m"
)


@pytest.mark.parametrize("extension", [".dcm", ".IMA", "", ".7"])
def test_series_is_read_as_a_volume(tmp_path: Path, extension: str) -> None:
    for case in ("a.1", "b"):
        write_series(tmp_path / case, extension=extension)
    (tmp_path / "b/notes.txt").write_text("of the scan")
    items = load_datalist(tmp_path, "train")
    assert items == [
        {"image": str(tmp_path / case), "case": case, "patient": case, "label": 0} for case in ("a.1", "b")
    ]
    assert [item["image"] for item in find_images(tmp_path)] == [item["image"] for item in items]
    image = LOAD(items[1])["image"]
    assert image.shape == (1, SHAPE[1], SHAPE[0], 6)
    assert np.array_equal(image[0, ..., 2].numpy(), pixels(2).T)
    assert np.allclose(np.abs(image.affine.numpy()).diagonal(), [1.5, 2, 3, 1])


def test_series_below_patients_and_in_class_folders(tmp_path: Path) -> None:
    for name in ("cohort/p1/T1", "cohort/p1/T2", "cohort/p2/T1", "sets/train/NORMAL/x", "sets/test/LESION/y"):
        write_series(tmp_path / name)
    items = load_datalist(tmp_path / "cohort", "all", layout="dicom")
    assert [(item["case"], item["patient"]) for item in items] == [("p1_T1", "p1"), ("T2", "p1"), ("p2_T1", "p2")]
    (test,) = load_datalist(tmp_path / "sets", "test")
    assert test == {"image": str(tmp_path / "sets/test/LESION/y"), "case": "y", "patient": "y", "label": 1}


def test_folder_that_is_a_series_itself(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan")
    assert find_images(folder) == [{"image": str(folder), "case": "scan", "patient": "scan"}]
    assert len(load_datalist(folder, "all")) == 1
    assert find_images(folder / "1001.dcm")[0]["case"] == "1001"


def test_series_in_a_table(tmp_path: Path) -> None:
    write_series(tmp_path / "a/T1")
    write_series(tmp_path / "a/T2")
    (tmp_path / "manifest.csv").write_text("path,split,abnormal,case\na/T1;a/T2,train,0,a\n")
    (item,) = load_datalist(tmp_path, "train")
    assert LOAD(item)["image"].shape == (2, SHAPE[1], SHAPE[0], 6)


def test_radiographs_in_class_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "train/NORMAL", range(3))
    write_series(tmp_path / "test/LESION", [0])
    assert [item["case"] for item in load_datalist(tmp_path, "train")] == ["train_NORMAL_1001", "1002", "1003"]


# What would be read wrongly


def test_two_series_in_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "export")
    write_series(tmp_path / "export", range(4), number=2)
    write_series(tmp_path / "well")
    items = load_datalist(tmp_path, "train", layout="dicom")
    assert [(Path(item["image"]).name, item["case"], item["patient"]) for item in items] == [
        ("export#1", "export_1", "export"),
        ("export#2", "export_2", "export"),
        ("well", "well", "well"),
    ]
    assert [LOAD(item)["image"].shape[-1] for item in items] == [6, 4, 6]
    assert [item["case"] for item in find_images(tmp_path)] == ["export_1", "export_2", "well"]
    with pytest.raises(ValueError, match=r"Expected one DICOM image in .*export; got 2: .*export#1 \(6 slices\), .*#2"):
        LOAD({"image": str(tmp_path / "export")})
    with pytest.raises(ValueError, match=r"Expected one DICOM image in .*export#3; got 2: "):
        LOAD({"image": str(tmp_path / "export#3")})


def test_a_folder_that_is_called_as_a_series_of_its_neighbour(tmp_path: Path) -> None:
    write_series(tmp_path / "export")
    write_series(tmp_path / "export", range(4), number=2)
    write_series(tmp_path / "export#2")
    problems = {item["case"]: item.get("problem", "") for item in find_images(tmp_path)}
    assert problems.keys() == {"export_1", "export_2", "export#2"}
    assert [case for case, problem in problems.items() if problem] == ["export_2"]
    assert problems["export_2"].endswith("Rename that folder.")


def test_the_files_of_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "export")
    write_series(tmp_path / "export", range(4), number=2)
    assert [file.name for file in files_of(find_images(tmp_path)[1])] == [
        "2001.dcm",
        "2002.dcm",
        "2003.dcm",
        "2004.dcm",
    ]
    (tmp_path / "manifest.csv").write_text("path,split,abnormal\nexport#2,train,0\nexport,test,0\n")
    (train,) = load_datalist(tmp_path, "train")
    assert LOAD(train)["image"].shape[-1] == 4
    with pytest.raises(ValueError, match=r"export; got 2: .*Name one of them"):
        load_datalist(tmp_path, "test")


@pytest.mark.parametrize(
    ("series", "cases"),
    [([2], ["export_2"]), ("2", ["export_2"]), (["mr"], ["export_1", "export_2"]), ("1.2.3.4.1", ["export_1", "well"])],
)
def test_an_option_chooses_series(tmp_path: Path, series: Any, cases: list[str]) -> None:
    write_series(tmp_path / "export")
    write_series(tmp_path / "export", range(4), number=2)
    write_series(tmp_path / "well")
    assert [item["case"] for item in find_images(tmp_path, series=series)][: len(cases)] == cases
    with pytest.raises(ValueError, match=r"None of the 3 DICOM images in .* is of the series CT\. .* --series"):
        find_images(tmp_path, series="CT")


def test_a_patient_in_several_folders_is_one(tmp_path: Path) -> None:
    for number, patient in enumerate(("a", "b", "a"), start=1):
        write_series(tmp_path / f"study{number}", PatientID=patient)
    items = load_datalist(tmp_path, "train")
    assert [item["patient"] for item in items] == ["study1", "study2", "study1"]
    assert "PatientID" not in str(items)


def test_folders_tell_patients_where_all_have_one_number(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / f"study{number}", PatientID="ANON")
    assert [item["patient"] for item in load_datalist(tmp_path, "train")] == ["study1", "study2"]


def test_radiographs_of_a_patient_in_class_folders(tmp_path: Path) -> None:
    for name, patient in (("NORMAL/x1", "a"), ("NORMAL/x2", "b"), ("NORMAL/x3", "a"), ("ILL/x4", "b")):
        path = tmp_path / f"train/{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        slice_of(0, PatientID=patient).save_as(path, enforce_file_format=True)
    items = load_datalist(tmp_path, "train")
    assert {item["case"]: item["patient"] for item in items} == {"x1": "x1", "x2": "x2", "x3": "x1", "x4": "x2"}


def test_patients_of_one_folder(tmp_path: Path) -> None:
    for number, patient in enumerate(("a", "a", "b"), start=1):
        write_series(tmp_path / "export", number=number, PatientID=patient)
    assert [item["patient"] for item in load_datalist(tmp_path, "train")] == ["export_1", "export_1", "export_2"]


def test_localizers_and_reports_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_series(tmp_path / "study/scan")
    write(slice_of(40, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], InstanceNumber=9), folder / "scout.dcm")
    for k, normal in enumerate(([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])):
        write(slice_of(k, number=7, ImageOrientationPatient=normal), folder / f"planes{k}.dcm")
    report = slice_of(0, number=8, SOPClassUID=uid.BasicTextSRStorage)
    del report.PixelData
    write(report, folder / "report.dcm")
    write(slice_of(0, number=9, SOPClassUID=uid.SegmentationStorage), folder / "mask.dcm")
    screenshot = slice_of(0, number=10, SOPClassUID=uid.SecondaryCaptureImageStorage)
    del screenshot.ImagePositionPatient
    write(screenshot, tmp_path / "study/other/shot.dcm")
    (item,) = find_images(tmp_path / "study")
    assert (item["case"], item.get("problem")) == ("scan", None)
    assert LOAD(item)["image"].shape[-1] == 6
    assert "6 DICOM files are in no image" in caplog.text
    for said in ("is a localizer", "mask.dcm is a segmentation", "basic text sr, not an image"):
        assert said in caplog.text
    assert "shot.dcm is a screenshot or the like of images in other folders" in caplog.text


def test_slices_of_a_series_in_two_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "export/a", range(6))
    write_series(tmp_path / "export/b", range(6, 12), SOPInstanceUID="1.2")
    with pytest.raises(ValueError, match=r"the slices of one spread over 2: .*export/a, .*export/b\. Move them"):
        load_datalist(tmp_path / "export", "all")


def test_echoes_in_folders_are_numbered_on(tmp_path: Path) -> None:
    for echo in range(2):
        for k in range(6):
            slice_ = slice_of(k, EchoNumbers=echo + 1, InstanceNumber=6 * echo + k + 1)
            write(slice_, tmp_path / f"echo{echo}/{k}.dcm")
    assert [item.get("problem", "") for item in find_images(tmp_path)] == ["", ""]


def test_half_of_a_series_beside_a_copy_of_all_of_it(tmp_path: Path) -> None:
    write_series(tmp_path / "all", range(6))
    write_series(tmp_path / "copy", range(6))
    write_series(tmp_path / "half", range(3))
    problems = {item["case"]: item.get("problem", "") for item in find_images(tmp_path)}
    assert not problems["all"]
    assert not problems["copy"]
    assert problems["half"].startswith("Expected one series in a folder; got the slices of one spread over 3: ")


def test_half_of_a_series_beside_a_copy_that_lacks_a_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", [0, 1, 2, 4, 5])
    write_series(tmp_path / "half", range(3))
    write_series(tmp_path / "other", number=2)
    problems = {item["case"]: item.get("problem", "") for item in find_images(tmp_path)}
    assert problems["gap"].startswith("Expected one volume in ")
    assert problems["half"].startswith("Expected one series in a folder; got the slices of one spread over 2: ")
    assert not problems["other"]


def test_a_bad_file_does_not_end_the_listing(tmp_path: Path) -> None:
    write_series(tmp_path / "well")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    items = find_images(tmp_path)
    assert [item["case"] for item in items] == ["bad", "well"]
    assert items[0]["problem"].startswith(f"Expected whole DICOM files in {tmp_path / 'bad'}; got 1 damaged: a.dcm")
    assert "problem" not in items[1]


def test_a_prepared_list_names_series(tmp_path: Path) -> None:
    write_series(tmp_path / "data/export")
    write_series(tmp_path / "data/export", range(4), number=2)

    class Nothing:
        def axes_of(self, volume: Any) -> list[str]:
            return []

        def policy(self) -> dict[str, Any]:
            return {}

    prepare_data(tmp_path / "data", LOAD, Nothing(), tmp_path / "list/dataset.json", series=["MR"])  # type: ignore[arg-type]
    items = load_datalist(tmp_path / "list", "train")
    assert [item["case"] for item in items] == ["export_1", "export_2"]
    assert [len(item["sha256"]) for item in items] == [6, 4]
    assert LOAD(items[1])["image"].shape[-1] == 4
    (tmp_path / "data/export/2001.dcm").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"2001\.dcm changed since"):
        LOAD(items[1])


# Compressed files


def compress_with_pydicom(image: Dataset, path: Path, syntax: str) -> None:
    image.compress(syntax)
    image.save_as(path, enforce_file_format=True)


def deflate(image: Dataset, path: Path, syntax: str) -> None:
    image.file_meta.TransferSyntaxUID = uid.UID(syntax)
    image.save_as(path, enforce_file_format=True)


def compress_with_itk(image: Dataset, path: Path, syntax: str) -> None:
    """By ITK's GDCM, which has the lossless JPEG that pydicom does not write."""
    import itk

    plain = path.with_suffix(".plain")
    image.save_as(plain, enforce_file_format=True)
    kind = itk.Image[itk.US, 3]
    read = itk.ImageFileReader[kind].New(FileName=str(plain), ImageIO=itk.GDCMImageIO.New())
    read.Update()
    header = itk.GDCMImageIO.New(KeepOriginalUID=True)
    header.SetCompressionType(itk.GDCMImageIOEnums.Compression_JPEG)
    header.SetMetaDataDictionary(read.GetImageIO().GetMetaDataDictionary())
    write = itk.ImageFileWriter[kind].New(Input=read.GetOutput(), FileName=str(path), ImageIO=header)
    write.UseInputMetaDataDictionaryOff()
    write.UseCompressionOn()
    write.Update()
    plain.unlink()


@pytest.mark.parametrize(
    ("syntax", "compress"),
    [
        (uid.DeflatedExplicitVRLittleEndian, deflate),
        (uid.RLELossless, compress_with_pydicom),
        (uid.JPEGLosslessSV1, compress_with_itk),
        (uid.JPEGLSLossless, compress_with_pydicom),
        (uid.JPEG2000Lossless, compress_with_pydicom),
    ],
    ids=["deflated", "rle", "jpeg-lossless", "jpeg-ls", "jpeg-2000"],
)
def test_compressed_series_are_read(
    tmp_path: Path, syntax: str, compress: Callable[[Dataset, Path, str], None]
) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for k in range(4):
        compress(slice_of(k), folder / f"{k}.dcm", syntax)
    assert pydicom.dcmread(folder / "0.dcm").file_meta.TransferSyntaxUID == syntax
    (item,) = find_images(folder)
    assert "problem" not in item
    image = LOAD(item)["image"][0].numpy()
    assert np.array_equal(image, np.stack([pixels(k).T for k in range(4)], -1))


def test_high_throughput_jpeg_2000_is_read(tmp_path: Path) -> None:
    image = slice_of(0, BitsStored=16, HighBit=15)
    image.file_meta.TransferSyntaxUID = uid.HTJ2KLossless
    image.PixelData = encapsulate([base64.b85decode(HTJ2K)])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.save_as(tmp_path / "0.dcm", enforce_file_format=True)
    (item,) = find_images(tmp_path)
    assert np.array_equal(LOAD(item)["image"].numpy().squeeze(), pixels(0).T)


def test_a_class_without_the_chosen_series_leaves_the_others(tmp_path: Path) -> None:
    for name, number in (("NORMAL/a", 1), ("NORMAL/b", 2), ("LESION/c", 1), ("OTHER/d", 2)):
        write_series(tmp_path / name, number=number)
    assert [item["case"] for item in load_datalist(tmp_path, "all", series=[1])] == ["c", "a"]
    with pytest.raises(ValueError, match=r"None of the 4 DICOM images in .* is of the series 9\. .*LESION/c.*NORMAL/a"):
        load_datalist(tmp_path, "all", series=[9])


def test_a_listed_folder_with_several_series_is_not_told_of_an_option_without_effect(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / "export", number=number)
    (tmp_path / "manifest.csv").write_text("path,split,abnormal\nexport,test,0\nexport#2,test,0\n")
    said = {item["case"]: item.get("problem", "") for item in load_datalist(tmp_path, "test", series=[2])}
    (problem,) = filter(None, said.values())
    assert "export#1 (6 slices)" in problem
    assert "Name one of them" in problem
    assert "--series" not in problem


def test_a_folder_is_looked_at_again_only_if_it_has_changed(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "export")
    before = contents_of(folder)
    assert contents_of(folder) is before
    file = folder / "1003.dcm"
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(content[:-1000] + bytes(1000))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times, of the same size
    assert contents_of(folder) is not before
    file.write_bytes(content[:1000])
    assert "1 damaged: 1003.dcm" in contents_of(folder).images[0].problem
    file.unlink()
    assert "Slices are missing" in contents_of(folder).images[0].problem


@pytest.mark.parametrize("listed", [False, True])
def test_a_patient_both_trained_and_tested_on_is_reported(
    tmp_path: Path, listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for name, patient in (("train/NORMAL/1", "A"), ("test/NORMAL/1", "B"), ("test/SICK/2", "A")):
        write_series(tmp_path / name, SeriesInstanceUID=f"1.2.{len(name)}", PatientID=patient)
    rows = [
        "path,split,abnormal,patient",
        "train/NORMAL/1,train,0,{}",
        "test/NORMAL/1,test,0,{}",
        "test/SICK/2,test,1,{}",
    ]
    data = tmp_path / "manifest.csv" if listed else tmp_path
    if listed:
        data.write_text("\n".join(rows).format("", "", ""))
    items = load_datalist(data, "test")
    trained, tested = load_datalist(data, "train")[0]["case"], items[1]["case"]
    said = f"Both in train and in test, by PatientID: 1 patient of {data}, as cases {trained} and {tested}. Of these"
    assert caplog.text.count(said) == 2
    caplog.clear()
    find_images(data)  # of which none is tested
    if listed:  # which may name them otherwise
        data.write_text("\n".join(rows).format("p", "q", "r"))
        load_datalist(data, "test")
    assert "PatientID" not in caplog.text


@pytest.mark.parametrize("patients", ["ABC", "AAA"], ids=["others", "de-identified"])
def test_folders_of_other_patients_may_have_the_same_name(
    tmp_path: Path, patients: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name, patient in zip(("train/NORMAL/1", "test/NORMAL/1", "test/SICK/1"), patients, strict=True):
        write_series(tmp_path / name, SeriesInstanceUID=f"1.2.{len(name)}", PatientID=patient)
    assert len(load_datalist(tmp_path, "test")) == 2
    assert "Both in train and in test" not in caplog.text
