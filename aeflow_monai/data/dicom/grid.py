"""The voxel grid of a stack of slices, or the reason why the slices do not form one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aeflow_monai.data.dicom.complete import AS_NIFTI, GridError, require_all
from aeflow_monai.data.dicom.frames import Frame
from aeflow_monai.data.dicom.headers import DicomFile

__all__ = ["Grid", "grid_of"]

_SAME_PLACE = 1e-2  # mm
_TOLERANCE = 0.1  # fraction of the median slice distance: rounded positions pass, a missing slice does not
_SAME_DIRECTION = 2e-3
_SAME_SPACING = 1e-3  # relative
_SHOWN = 3
# Elements with a single value in a volume. Identifiers are not enough, since they may be missing or reused.
_ONE_OF_EACH = {
    "patients": "PatientID",
    "studies": "StudyInstanceUID",
    "series": "SeriesNumber",
    "modalities": "Modality",
    "frames of reference": "FrameOfReferenceUID",
}
# Elements that show that some slices are of another echo or time, although each position occurs once; and the relative
# tolerance of their values, since inversion times follow the heart rate from slice to slice.
_OF_PARTS = (
    ("echoes", "EchoNumbers", 0.0),
    ("echo times", "EchoTime", 0.3),
    ("inversion times", "InversionTime", 0.3),
    ("times", "TemporalPositionIdentifier", 0.0),
    ("b-values", "DiffusionBValue", 0.1),
)


class Grid(NamedTuple):
    """The positions of the voxels of a volume.

    Attributes:
        frames: the slices, in the order of their positions along the normal.
        affine: indices of column, row and slice to mm, RAS, (4, 4); sheared for a tilted gantry.
    """

    frames: tuple[Frame, ...]
    affine: npt.NDArray[np.float64]


def grid_of(frames: Sequence[Frame], others: Iterable[DicomFile] = ()) -> Grid:
    """Sort slices by position, and require that they form one complete, evenly spaced volume.

    Args:
        frames: slices of one series, or of one file.
        others: other files of the series, such as localizers, whose instance numbers are not missing.

    Returns:
        The grid.

    Raises:
        GridError: a slice is missing, repeated, of another size, orientation or resolution, or has no position.
    """
    _require_one_kind(frames)
    orientation = np.mean([frame.orientation or () for frame in frames], axis=0)
    spacing = frames[0].spacing
    assert spacing is not None
    row, column = (vector / np.linalg.norm(vector) for vector in (orientation[:3], orientation[3:]))
    normal = np.cross(row, column)
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    frames, positions = [frames[i] for i in order], positions[order]
    if len(frames) == 1:
        step = normal * (frames[0].distance or frames[0].thickness or 1.0)
    else:
        _require_even(frames, positions, normal)
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        _require_line(frames, positions, step)
        require_all(frames, list(others), float(np.dot(step, normal)))
    lps = np.eye(4)
    lps[:3, :] = np.stack([row * spacing[1], column * spacing[0], step, positions[0]], axis=1)
    return Grid(tuple(frames), np.diag([-1.0, -1, 1, 1]) @ lps)


def _require_one_kind(frames: Sequence[Frame]) -> None:
    """Require one size, orientation and resolution, and a position for each slice."""
    if any(frame.file.in_colour for frame in frames):
        raise GridError(
            f"slices in colour ({_names(frame for frame in frames if frame.file.in_colour)}), as of a map or a "
            "screenshot. Give the series of intensities that it was made of"
        )
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        values = [
            {
                "ImagePositionPatient": frame.position,
                "ImageOrientationPatient": frame.orientation,
                "PixelSpacing": frame.spacing,
            }[keyword]
            for frame in frames
        ]
        if lacking := [frame for frame, value in zip(frames, values, strict=True) if value is None]:
            raise GridError(
                f"{len(lacking)} of {len(frames)} slices without {keyword} ({_names(lacking)}), so that nobody knows "
                f"where they lie. Export the series again, or {AS_NIFTI}"
            )
    _require_same(frames, "sizes", lambda frame: (frame.file.whole("Rows"), frame.file.whole("Columns")))
    _require_same(frames, "orientations", lambda frame: frame.orientation, _SAME_DIRECTION)
    _require_same(frames, "sizes of pixels", lambda frame: frame.spacing, _SAME_SPACING, relative=True)
    _require_same(frames, "stacks", lambda frame: frame.stack)
    for what, keyword in _ONE_OF_EACH.items():
        _require_same(frames, what, partial(_text_of, keyword))
    if len({frame.position for frame in frames}) == len(frames):  # else `_require_even` reports the repeated position
        for what, keyword, tolerance in _OF_PARTS:
            _require_one_part(frames, what, keyword, tolerance)
    row, column = np.reshape(frames[0].orientation or (), (2, 3))
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(np.dot(row, column)) > 1e-2:
        raise GridError(
            f"an ImageOrientationPatient that is none, {[round(float(x), 4) for x in (*row, *column)]} in "
            f"{frames[0].name}. Export the series again"
        )
    if min(frames[0].spacing or (0,)) <= 0:
        raise GridError(
            f"a PixelSpacing of {list(frames[0].spacing or ())} in {frames[0].name}. Export the series again"
        )


def _kind_of(keyword: str, frame: Frame) -> float | str:
    """Return the value as a number where it is one, since 10 and 10.0 are equal."""
    value = frame.kinds[keyword]
    try:
        return float(value)
    except ValueError:
        return value


def _text_of(keyword: str, frame: Frame) -> str:
    return frame.file.text(keyword)


def _require_same(
    frames: Sequence[Frame],
    what: str,
    value_of: Callable[[Frame], Any],
    tolerance: float = 0.0,
    relative: bool = False,
) -> None:
    _refuse(_groups(frames, value_of, tolerance, relative), what)


def _require_one_part(frames: Sequence[Frame], what: str, keyword: str, tolerance: float) -> None:
    """Refuse a few values shared by several slices each; a different value in each slice is allowed."""
    known = [frame for frame in frames if keyword in frame.kinds]
    groups = _groups(known, partial(_kind_of, keyword), tolerance, relative=True)
    if len(groups) <= len(known) // 2:
        _refuse(groups, what)


def _groups(
    frames: Sequence[Frame], value_of: Callable[[Frame], Any], tolerance: float, relative: bool
) -> list[list[Frame]]:
    """Group slices whose values are equal, or close to that of the first slice of a group."""
    groups: dict[Hashable, list[Frame]] = {}
    for frame in frames:
        value = value_of(frame)
        for known, group in groups.items():
            if known == value or (tolerance and _near(known, value, tolerance, relative)):
                group.append(frame)
                break
        else:
            groups[value] = [frame]
    return [*groups.values()]


def _refuse(groups: Sequence[Sequence[Frame]], what: str) -> None:
    if len(groups) > 1:
        fewest = min(groups, key=len)
        n_others = sum(map(len, groups)) - len(fewest)
        raise GridError(
            f"slices of {len(groups)} {what}: {_names(fewest)} differ from the other {n_others}, as "
            "of a localizer or of several series in one. Move them to a folder of their own"
        )


def _near(one: Any, other: Any, tolerance: float, relative: bool) -> bool:
    if not all(isinstance(value, (float, tuple)) for value in (one, other)):
        return False
    return bool(np.allclose(one, other, rtol=tolerance if relative else 0, atol=0 if relative else tolerance))


def _require_even(frames: Sequence[Frame], positions: npt.NDArray[Any], normal: npt.NDArray[Any]) -> None:
    gaps = np.diff(positions @ normal)
    if (repeated := gaps < _SAME_PLACE).any():
        first = int(np.flatnonzero(repeated)[0])
        raise GridError(
            f"several slices at one position: {len(frames)} slices at {len(frames) - int(repeated.sum())} positions, "
            f"for example {frames[first].name} and {frames[first + 1].name}"
            f"{_told_apart(frames[first], frames[first + 1])}. Keep one of each position, or move each time, echo or "
            "phase into a folder of its own"
        )
    median = float(np.median(gaps))
    if (uneven := np.abs(gaps - median) > _TOLERANCE * median).any():
        found = [
            f"{gaps[i]:.4g} mm between {frames[i].name} and {frames[i + 1].name}"
            for i in np.flatnonzero(uneven)[:_SHOWN]
        ]
        more = int(uneven.sum()) - len(found)
        raise GridError(
            f"uneven distances of its {len(frames)} slices: {median:.4g} mm mostly, but {', '.join(found)}"
            f"{f' and {more} more' if more else ''}. Slices are missing there: add them, or resample the series to "
            "even distances and save it as NIfTI"
        )


def _require_line(frames: Sequence[Frame], positions: npt.NDArray[Any], step: npt.NDArray[Any]) -> None:
    """Require slices on one line, not necessarily perpendicular to them, as with a tilted gantry."""
    away = np.linalg.norm(positions - positions[0] - np.arange(len(frames))[:, None] * step, axis=1)
    worst = int(away.argmax())
    if away[worst] > max(2 * _TOLERANCE * float(np.linalg.norm(step)), 0.05):
        raise GridError(
            f"slices that do not lie on one line: {frames[worst].name} is {away[worst]:.3g} mm away from where even "
            "distances put it. Resample the series to even distances and save it as NIfTI"
        )


def _told_apart(one: Frame, other: Frame) -> str:
    differ = [keyword for keyword, value in one.kinds.items() if other.kinds.get(keyword, value) != value]
    return f", which differ in {', '.join(differ)}" if differ else ""


def _names(frames: Iterable[Frame]) -> str:
    names = [frame.name for frame in frames]
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
