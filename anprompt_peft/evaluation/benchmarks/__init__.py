"""Data sets of a benchmark: a catalog, readers of folders and of the Hub, few shots, and a check of what is there."""

from .catalog import CatalogEntry, catalog, find_entry, read_entry
from .data import BenchmarkData, load_benchmark_data
from .shots import Shots, draw_shots

__all__ = [
    "BenchmarkData",
    "CatalogEntry",
    "Shots",
    "catalog",
    "draw_shots",
    "find_entry",
    "load_benchmark_data",
    "read_entry",
]
