"""What a run reports, as lines of JSON: first what it is, then each step and each evaluation.

    {"run": {"config": ..., "data": ..., "parameters": ..., ...}}
    {"step": 1, "loss": ..., "lr": ..., "grad_norm": ..., "tokens": ..., "seconds": ..., "memory": ...}
    {"step": 50, "validation_loss": ...}

loss, validation_loss: nats a token; a step's before its update, and rounded to the model's dtype. grad_norm: before
clipping. tokens: trained on so far, this step's included. seconds: that the step took, without evaluation and
checkpoint. memory: the most bytes that the run has held on the GPU at a time, null on the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from lab.core import CheckpointError
from lab.files import write_text

NAME = "metrics.jsonl"


def read(run: Path) -> list[dict]:
    """The lines of the run's metrics. One that a killed process left unfinished at the end is left out. Raises
    CheckpointError."""
    path = run / NAME
    try:
        lines = path.read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not (all(isinstance(entry, dict) for entry in entries) and entries and "run" in entries[0]):
        raise CheckpointError(f"{path}: expected lines of JSON objects, the first with the key 'run'")
    return entries


class Metrics:
    """A run's metrics, to be added to."""

    def __init__(self, run: Path, entries: list[dict]) -> None:
        """Put `entries` in the place of what is there."""
        write_text(run / NAME, "".join(map(_line, entries)))
        self.file = (run / NAME).open("a", buffering=1)  # each line is with the system, and so outlives a kill

    def add(self, **entry) -> None:
        self.file.write(_line(entry))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


def _line(entry: dict) -> str:
    return json.dumps(entry) + "\n"
