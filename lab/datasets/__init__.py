"""Texts to train on, as tokens: what comes with Python, and files."""

from lab.datasets.bigram import bigram_loss
from lab.datasets.text import DataError
from lab.datasets.tokenizer import byte_level
from lab.datasets.tokens import Dataset, load, random_windows, spaced_windows

__all__ = ["DataError", "Dataset", "bigram_loss", "byte_level", "load", "random_windows", "spaced_windows"]
