"""The report: one HTML page on a run that opens from disk, with pictures of the most interesting cases."""

from aeflow_monai.output.report.page import write_report
from aeflow_monai.output.report.picture_block import PictureBlock
from aeflow_monai.output.report.picture_budget import PictureBudget

__all__ = ["PictureBlock", "PictureBudget", "write_report"]
