"""Adapters that others made: their files are checked before a model changes, and a refusal changes none."""
