"""Data sets of a benchmark: a catalog, layouts of folders, sources by name, and a check of what is there."""

from ..protocols import Shots, draw_shots
from ..record import BenchmarkData
from .catalog import CatalogEntry, catalog, find_entry, read_entry
from .sources import load_benchmark_data

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
