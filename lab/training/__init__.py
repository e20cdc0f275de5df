"""Training a language model: `lab train`."""

from lab.training.config import Config, load
from lab.training.trainer import Trainer, train

__all__ = ["Config", "Trainer", "load", "train"]
