"""The values that options choose from, named without PyTorch; a test compares them with the package's."""

from typing import Literal

Device = Literal["auto", "cpu"]
Precision = Literal["auto", "fp32", "bf16"]
TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]
OnCorrupt = Literal["raise", "skip"]
Protocol = Literal["base-to-new", "few-shot", "all-classes", "cross-data", "folds"]
Halves = Literal["order", "random", "paired"]
Sampling = Literal["coop", "seeded"]
Source = Literal["folder", "hub"]
Engine = Literal["auto", "onnx", "torch"]
