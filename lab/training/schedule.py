"""The learning rate, a function of the step alone."""

import math

from lab.training.config import Optimizer


def learning_rate(step: int, steps: int, settings: Optimizer) -> float:
    """Of step 1, 2, ... `steps`: a line from 0 to lr, which step `warmup` has, then half a wave of the cosine down to
    min_lr, which the last step has (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983)."""
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    done = (step - settings.warmup) / (steps - settings.warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * done)) / 2
