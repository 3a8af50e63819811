"""How well confidence matches accuracy; the functions are those of `metrics`."""

from .metrics import adaptive_calibration_error, expected_calibration_error

__all__ = ["adaptive_calibration_error", "expected_calibration_error"]
