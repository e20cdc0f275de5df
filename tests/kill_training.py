"""`lab train` in children that are killed with SIGKILL, and resumed.

    python kill_training.py CONFIG WHOLE KILLED SEED

The run in the folder WHOLE is left alone. That in KILLED is killed eight times: in turns before some operation on its
files, and at some moment. Prints what each kill left, as JSON. The children are forks of a process that has imported
everything and computed nothing, so that each starts at once.

    python kill_training.py CONFIG FOLDER

Writes a checkpoint beside two others, of which one goes, and dies before the first operation on its files, before the
second, and so on, until it comes to its end. Prints what each left.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import safetensors.numpy
import torch

from lab import cli, training
from lab.core import LLM
from lab.datasets import byte_level

KILLS = 8
FILES = {"config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json", "training.json"}


def start(config: str, run: Path, event: int = 0) -> int:
    """The id of a child that trains. event: the operation on the run's files that it dies before; 0 for none."""
    if child := os.fork():
        return child
    die_before(event, run)
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        os._exit(cli.main(["train", config, "--output", str(run), *(["--resume"] if run.exists() else [])]))


def die_before(event: int, run: Path) -> None:
    def hook(name: str, arguments: tuple) -> None:
        nonlocal event
        # What rmtree removes goes by its bare name.
        if name in ("os.remove", "os.rmdir") or (name.startswith(("os.", "open")) and str(run) in str(arguments)):
            event -= 1
            if event == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def left(run: Path) -> dict:
    """The last step in the metrics and the last checkpoint's, after every checkpoint has been read."""
    checkpoints = training.checkpoint.steps(run)
    for step, folder in checkpoints.items():
        assert {path.name for path in folder.iterdir()} == FILES, folder
        assert json.loads((folder / "training.json").read_text())["step"] == step
        for path in folder.glob("*.safetensors"):
            safetensors.numpy.load_file(path)
    entries = training.metrics.read(run) if (run / "metrics.jsonl").exists() else []
    return {"checkpoint": max(checkpoints, default=0), "step": max((e.get("step", 0) for e in entries), default=0)}


def main(config: str, whole: Path, killed: Path, seed: int) -> None:
    random.seed(seed)
    began = time.perf_counter()
    assert os.waitpid(start(config, whole), 0)[1] == 0
    duration = time.perf_counter() - began
    kills: list[dict] = []
    while True:
        by_event = len(kills) % 2 == 0 and len(kills) < KILLS
        child = start(config, killed, random.randint(1, 100) if by_event else 0)
        if not by_event and len(kills) < KILLS:
            time.sleep(random.uniform(0, duration / 2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert status == 0
            break
        kills.append(left(killed) | {"by": "event" if by_event else "time"})
    print(json.dumps(kills))


def planted(config: str, folder: Path) -> None:
    torch.set_num_threads(1)  # a fork has no other threads
    parsed = training.load(Path(config))
    trainer = training.Trainer(parsed, LLM(parsed.model))
    trainer.step(torch.zeros(parsed.batch.sequences, parsed.batch.length + 1, dtype=torch.int64), 0.1)
    trainer.model.tokenizer = byte_level()

    def save(run: Path, step: int) -> None:
        training.checkpoint.save(run, step, trainer.model, trainer.optimizer, {}, keep=2)

    os.fsync = lambda handle: None  # which a kill does not ask for
    save(folder / "before", 1), save(folder / "before", 2)
    found: list[dict] = []
    while True:
        run = shutil.copytree(folder / "before", folder / str(len(found)))
        if not (child := os.fork()):
            die_before(len(found) + 1, run)
            save(run, 3)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert status == 0
            break
        found.append(left(run))
        training.checkpoint.remove_remains(run)
        found[-1]["files"] = sorted(path.name for path in run.iterdir())
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        planted(sys.argv[1], Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
