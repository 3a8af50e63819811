"""Using an adapter: classifying any number of images, and exporting to ONNX."""

from .classify import Prediction, predict
from .onnx import export_onnx

__all__ = ["Prediction", "export_onnx", "predict"]
