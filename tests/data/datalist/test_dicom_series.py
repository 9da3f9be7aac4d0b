import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImaged

from aeflow_monai.data.datalist import dicom_series as dicom
from aeflow_monai.data.datalist import find_images, load_datalist

pydicom = pytest.importorskip("pydicom", reason="writes the DICOM files; pip install pydicom")
from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

LOAD = LoadImaged("image", reader=["ITKReader", "NibabelReader"], image_only=True)
SHAPE = (96, 80)  # rows and columns
# `pixels(0)` as a High-Throughput JPEG 2000 codestream, which no package here writes; encoded by OpenJPH, in base 85
HTJ2K = (
    rb"|4;u>04YEK0000`0001B000000000000062000620000000000009pH0sl|{2mk^A000dCQUDA90ssL31q1{@0smY86CjY7n4p-LpqQA"
    rb"Tn3$N5keL5u02crOPjF>!N>E53R%LP^FfK7PE-)_tkN^q*00000<^TczlfVEL(EoqG|3CkK{rCPm|2qFQ{_*}OOU(!X`M3bU00`g!1xO"
    rb"R)0HP@VzyJaMwgA8Y3a9`9QV;+F{M!9~%XR<|0O0mV$?UcOzyJ#P00CS80002+@A#*ur>CbvdH@Ij0D%8dJ(7F&N$k1+zyJ$Q003Gb00"
    rb"02|f7JB!^z`)f^z`)f@^AqH0O0?9m+#;2-|ye=-|W5szyKE900C_P000000093l|9%3Lr722Ml%*+3Qk11BOXUFo00000|9}5i1FpL3u"
    rb"Da{4y6djG>#n+$0sq+m"
)


def slice_of(k: int, series: str = "1.2.3.4", number: int = 1, **tags: Any) -> Dataset:
    """One slice of 2 mm by 1.5 mm pixels, 3 mm from the next; pixel (row, column) holds 100 k + row + column."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"{series}.{number}.{k + 1}"
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SeriesNumber = "1.2.3", f"{series}.{number}", number
    image.SeriesDescription, image.Modality, image.InstanceNumber = f"T{number}", "MR", k + 1
    image.PatientID, image.PatientName = "17", "nobody"
    image.Rows, image.Columns = SHAPE
    image.PixelSpacing, image.SliceThickness = [2, 1.5], 3
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -12, 3 * k]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    for tag, value in tags.items():
        setattr(image, tag, value)
    image.PixelData = pixels(k).tobytes()
    return image


def pixels(k: int) -> np.ndarray[Any, Any]:
    return (100 * k + np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1]))).astype(np.uint16)


def write_series(folder: Path, slices: Sequence[int] = range(6), extension: str = ".dcm", **tags: Any) -> Path:
    """Slices in an order of names that is not that of their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, k in enumerate(slices):
        name = f"{tags.get('number', 1)}{len(slices) - i:03d}{extension}"
        slice_of(k, **tags).save_as(folder / name, enforce_file_format=True)
    return folder


def problem_of(folder: Path) -> str:
    """Of the folder in a datalist beside one that is well."""
    write_series(folder.parent / "well")
    problems = {item["image"]: item.get("problem", "") for item in load_datalist(folder.parent, "train")}
    assert problems[str(folder.parent / "well")] == ""
    return str(problems[str(folder)])


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
    assert image.shape == (SHAPE[1], SHAPE[0], 6)
    assert np.array_equal(image[..., 2].numpy(), pixels(2).T)
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
    write_series(tmp_path / "ill")
    write_series(tmp_path / "ill", range(4), number=2)
    problem = problem_of(tmp_path / "ill")
    assert problem.startswith(f"{tmp_path / 'ill'} holds 2 DICOM series, where only the first would be read: ")
    assert "'T1' with 6 files" in problem
    assert "'T2' with 4 files" in problem
    assert "Move each into a folder of its own" in problem


def test_missing_slices(tmp_path: Path) -> None:
    problem = problem_of(write_series(tmp_path / "ill", [0, 1, 2, 5, 6, 7, 9]))
    assert problem == (
        f"{tmp_path / 'ill'} has uneven distances of slices: 3 mm mostly, but 9 mm after position 6 mm, 6 mm after "
        "position 21 mm. Add the missing slices to the 7 files, or resample the series to even distances and save it "
        "as NIfTI."
    )


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for k in range(6):
        position = [-10, -12, round(10 * k / 3, 1)]
        slice_of(k, ImagePositionPatient=position).save_as(folder / f"{k}", enforce_file_format=True)
    assert problem_of(folder) == ""


def test_several_times_at_one_position(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ill")
    for k in range(6):
        slice_of(k, InstanceNumber=k + 7).save_as(folder / f"later{k}.dcm", enforce_file_format=True)
    problem = problem_of(folder)
    assert "holds several slices at one position, as of several times or echoes: 12 files at 6 positions." in problem


def test_files_that_are_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "ill").mkdir()
    (tmp_path / "ill/a.dcm").write_bytes(b"")
    assert problem_of(tmp_path / "ill").startswith(f"{tmp_path / 'ill'} holds no DICOM slices. ")


def test_file_that_ends_too_early(tmp_path: Path) -> None:
    file = write_series(tmp_path / "ill") / "1003.dcm"
    file.write_bytes(file.read_bytes()[:5000])
    assert "has uneven distances of slices: 3 mm mostly, but 6 mm after position 6 mm" in problem_of(tmp_path / "ill")


def test_header_that_itk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: str) -> None:
        if "ill" in file:
            raise RuntimeError("no rows")
        return header(file)

    header = dicom._header
    monkeypatch.setattr(dicom, "_header", refuse)
    problem = problem_of(write_series(tmp_path / "ill"))
    assert problem.startswith(f"{tmp_path / 'ill'} holds DICOM files that cannot be read: no rows. Get them again")


def test_folder_of_all_series_mixed(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_series(tmp_path / "export", number=number)
    with pytest.raises(ValueError, match=r"None of the 1 cases .* The first: .*export holds 3 DICOM series"):
        find_images(tmp_path / "export")


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
def test_itk_reads_compressed_series_by_itself(
    tmp_path: Path, syntax: str, compress: Callable[[Dataset, Path, str], None]
) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for k in range(4):
        compress(slice_of(k), folder / f"{k}.dcm", syntax)
    assert pydicom.dcmread(folder / "0.dcm").file_meta.TransferSyntaxUID == syntax
    (item,) = find_images(folder)
    assert "problem" not in item
    image = LOAD(item)["image"].numpy()
    assert np.array_equal(image, np.stack([pixels(k).T for k in range(4)], -1))


def test_itk_reads_high_throughput_jpeg_2000(tmp_path: Path) -> None:
    image = slice_of(0, BitsStored=16, HighBit=15)
    image.file_meta.TransferSyntaxUID = uid.HTJ2KLossless
    image.PixelData = encapsulate([base64.b85decode(HTJ2K)])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.save_as(tmp_path / "0.dcm", enforce_file_format=True)
    (item,) = find_images(tmp_path)
    assert np.array_equal(LOAD(item)["image"].numpy().squeeze(), pixels(0).T)
