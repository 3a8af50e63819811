"""The method, in the order of the paper: texts, features, noise prompts, layers, losses."""
