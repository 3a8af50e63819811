"""The report: one self-contained HTML page about a training run or an evaluation."""

from ..evaluation.predictions import Predictions
from ..evaluation.predictions import predict_labelled as predict
from .collect import describe_adapter, read_geometry
from .data import Geometry, ReportData
from .page import render_report, write_report

__all__ = [
    "Geometry",
    "Predictions",
    "ReportData",
    "describe_adapter",
    "predict",
    "read_geometry",
    "render_report",
    "write_report",
]
