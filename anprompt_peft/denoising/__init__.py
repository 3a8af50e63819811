"""A text encoder that sees through phrasing, learnt once for a CLIP from the words of its tokenizer."""

from .loading import load_denoised, save_denoiser
from .train import Denoising, Similarity, similarity, train_denoiser

__all__ = ["Denoising", "Similarity", "load_denoised", "save_denoiser", "similarity", "train_denoiser"]
