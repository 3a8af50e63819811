"""Grids of data sets, methods and seeds: run cell by cell, continued, collected, and tabulated."""

from .cells import Cell, Setup, choose_shard, make_cells
from .ranking import Ranking, rank_all, rank_average, sentence
from .runner import Failed, Place, RunEnvironment, run_cell, run_grid
from .store import collect, is_done, read_predictions, read_results
from .summary import Difference, Mean, Summary, paired, summarise
from .tables import Table, make_tables, title_of

__all__ = [
    "Cell",
    "Difference",
    "Failed",
    "Mean",
    "Place",
    "Ranking",
    "RunEnvironment",
    "Setup",
    "Summary",
    "Table",
    "choose_shard",
    "collect",
    "is_done",
    "make_cells",
    "make_tables",
    "paired",
    "rank_all",
    "rank_average",
    "read_predictions",
    "read_results",
    "run_cell",
    "run_grid",
    "sentence",
    "summarise",
    "title_of",
]
