"""The checkpoints of a run: folders that a model can be loaded from, with what training needs to go on.

    step-000050/config.json  model.safetensors  tokenizer.json     the model, its weights in float32
    step-000050/optimizer.safetensors                              the optimizer's state
    step-000050/training.json                                      the step, the config, the data's digest

A folder of that name is complete: it is filled under another, and has it before it goes.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lab.core import LLM, CheckpointError
from lab.core import checkpoint as model_files
from lab.files import new_folder, replacing, write_text
from lab.training.optimizer import Optimizer

OPTIMIZER, STATE = "optimizer.safetensors", "training.json"


def steps(run: Path) -> dict[int, Path]:
    """The checkpoints in the folder of a run by their step, in order."""
    found = ((re.fullmatch(r"step-(\d{6,})", path.name), path) for path in run.glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def save(run: Path, step: int, model: LLM, optimizer: Optimizer, state: dict, keep: int) -> Path:
    """Write the checkpoint of `step`, and remove those before the last `keep`. `state` must fit JSON."""
    path = run / f"step-{step:06d}"
    with new_folder(path) as folder:
        model_files.write(folder, model.config, optimizer.weights, model.tokenizer)
        with replacing(folder / OPTIMIZER) as temporary:  # for its mode: the library's own is for the owner alone
            save_file(optimizer.state(), temporary)
        write_text(folder / STATE, json.dumps({"step": step, **state}, indent=1) + "\n")
    for old in list(steps(run).values())[:-keep]:
        shutil.rmtree(old.rename(run / f".{old.name}.old"))  # lest a part of it keep the name
    return path


def remove_remains(run: Path) -> None:
    """Remove what killed processes left half-written or half-removed."""
    for path in run.glob(".step-*"):
        shutil.rmtree(path)


def read_state(folder: Path) -> dict:
    """The state that was saved, with the step. Raises CheckpointError."""
    try:
        state = json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / STATE}: cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE}: is a {type(state).__name__}; expected a JSON object")
    return state


def read_optimizer(folder: Path, optimizer: Optimizer, device: torch.device) -> None:
    """Take up the optimizer's state. Raises CheckpointError."""
    try:
        optimizer.restore(load_file(folder / OPTIMIZER, device=str(device)))
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{folder / OPTIMIZER}: cannot be read: {error}") from error
