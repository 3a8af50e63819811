"""Using an adapter: classifying any number of images, exporting to ONNX, and serving over HTTP."""

from .classify import Prediction, predict
from .graph import Graph
from .onnx import export_onnx

__all__ = ["Graph", "Prediction", "export_onnx", "predict"]
