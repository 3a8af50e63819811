"""Publishing an adapter: what its author knows about it, its model card, and pushes to the Hub."""

from .facts import Metric, TrainingFacts
from .hub import CardCallback, push_folder

__all__ = ["CardCallback", "Metric", "TrainingFacts", "push_folder"]
