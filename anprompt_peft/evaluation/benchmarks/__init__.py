"""Data sets of a benchmark: a catalog, readers of folders and of the Hub, few shots, and a check of what is there."""

from .data import BenchmarkData, load_benchmark_data
from .shots import Shots, draw_shots

__all__ = ["BenchmarkData", "Shots", "draw_shots", "load_benchmark_data"]
