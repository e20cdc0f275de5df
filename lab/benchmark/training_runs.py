"""Experiments that train: their folder has a train.yaml, a config for `lab train`. Beside it there may be a runs.yaml:

    - {backend: torch, seeds: [0, 1, 2, 3, 4]}
    - {backend: triton, seeds: [0]}

Each line is trained with each of its seeds in place of the config's, on a backend's operators and, where it has none,
PyTorch's. Without a runs.yaml the config is trained as it is, and its model goes into lab/models.
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lab.backends import registry
from lab.backends.implementation import BackendUnavailable, trace
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.environment import Environment, slug
from lab.benchmark.instruments import Instruments, gpu_instruments
from lab.benchmark.records import (
    RecordError,
    decoded,
    environments,
    experiments_folder,
    published_path,
    raw_record,
    rounded,
)
from lab.benchmark.tables import NOTHING, Table
from lab.benchmark.timing import first_line
from lab.config import ConfigError, integer, mapping, read, require, sequence
from lab.core import LLM
from lab.core.checkpoint import SHIPPED
from lab.core.cost import training_calls
from lab.files import write_text
from lab.training import Config, checkpoint, load, metrics, train

SCHEMA = 1
RUNS = "runs.yaml"
METHOD = (
    "A step's time is by the clock on the wall, from tokens on the CPU to the loss there; the median over all steps. "
    "MFU is the step's FLOPs, those of all operators' contracts, forward and backward, at that time, as a fraction of "
    "the rate of the matrix product. Losses are in nats a token."
)


@dataclass(frozen=True)
class TrainingRun:
    """One run. backend: a choice string. error: why it did not come to its end, else None; what follows is of runs
    without one.

    implementations: {operator: "backend:rung"}, what ran; under torch.compile PyTorch's own functions are not seen.
    losses: of each step. evaluated: the steps after which the validation losses were taken. seconds: of a step.
    tokens_per_s, tflops, mfu: at that time. peak_memory: bytes of the run, everything included.
    """

    backend: str
    seed: int
    error: str | None = None
    implementations: dict[str, str] | None = None
    losses: tuple[float, ...] = ()
    evaluated: tuple[int, ...] = ()
    validation_losses: tuple[float, ...] = ()
    seconds: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    peak_memory: int | None = None

    @property
    def runs_on(self) -> str:
        """The backends that the choice names, PyTorch left out where it is one of several: "torch" or "triton"."""
        named = {rung.partition(":")[0] for rung in registry.parse_choice(self.backend).values()}
        return ", ".join(sorted(named - {"torch"})) or "torch"


@dataclass(frozen=True)
class TrainingRecord:
    """schema: version of this layout. config: the train.yaml. data: sha256 of text and tokenizer. parameters: of the
    model. flops: of a step. bigram_loss: that of a bigram model on the same validation text; None where tokens are not
    bytes."""

    schema: int
    experiment: str
    config: dict
    method: str
    environment: Environment
    ceilings: Ceilings
    data: str
    parameters: int
    flops: int
    bigram_loss: float | None
    runs: tuple[TrainingRun, ...]


def names() -> list[str]:
    """The experiments that train."""
    return sorted(path.parent.name for path in experiments_folder().glob("*/train.yaml"))


def configs(name: str) -> list[Config]:
    """One for each run of the experiment of that name. Raises ConfigError."""
    folder = experiments_folder() / name
    config = load(folder / "train.yaml")
    if isinstance(config.model, Path):
        raise ConfigError(
            f"{folder / 'train.yaml'}: model.init has no place in an experiment; expected a name or sizes"
        )
    if not (folder / RUNS).exists():
        return [config]
    return read(folder / RUNS, partial(_runs, config))


def _runs(config: Config, raw: object) -> list[Config]:
    found: list[Config] = []
    for index, entry in enumerate(sequence(raw, "runs")):
        where = f"runs[{index}]"
        fields = mapping(entry, where, {"backend", "seeds"})
        known = registry.backends()
        require(fields["backend"] in known, f"{where}.backend", fields["backend"], f"one of {', '.join(known)}")
        backend = registry.choice_of(fields["backend"], _operators(config))
        for place, value in enumerate(sequence(fields["seeds"], f"{where}.seeds")):
            seed = integer(value, f"{where}.seeds[{place}]", 0)
            found.append(
                replace(config, seed=seed, backend=backend, raw=config.raw | {"seed": seed, "backend": backend})
            )
    return found


def _operators(config: Config) -> list[str]:
    assert not isinstance(config.model, Path)
    calls = training_calls(config.model, config.batch.sequences, config.batch.length)
    return sorted({call.operator for call in calls})


def record(name: str, output: Path | None = None, instruments: Instruments | None = None) -> Path:
    """Train what experiment `name` says, and write the record, env.txt and the model if it is shipped; return the
    record's path.

    output: a folder that takes results/<gpu>.json, env.txt and model/; None means their places in this checkout.
    Raises CannotTime without a GPU, ConfigError for a bad config, ValueError if no run comes to its end.
    """
    runs = configs(name)
    instruments = instruments or gpu_instruments()
    folder = output or experiments_folder() / name
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch) / str(index) for index in range(len(runs))]
        done = [_run(config, place, instruments) for config, place in zip(runs, places)]
        entries = [metrics.read(place)[0]["run"] for place, run in zip(places, done) if run.error is None]
        if not entries:
            raise ValueError(f"{name}: no run came to its end; the first: {done[0].error}")
        about = entries[0]
        path = folder / "results" / f"{slug(instruments.environment.gpu)}.json"
        found = TrainingRecord(
            SCHEMA, name, runs[0].raw, METHOD, instruments.environment, instruments.ceilings,
            about["data"], about["parameters"], about["flops"], about["bigram_loss"], tuple(done),
        )  # fmt: skip
        write_text(path, json.dumps(rounded(asdict(found)), indent=1) + "\n")
        write_text(folder / "env.txt", environments(folder))
        if not (experiments_folder() / name / RUNS).exists():
            last = checkpoint.steps(places[0])[runs[0].steps]
            model = LLM.from_pretrained(last, dtype=runs[0].dtype, device="cpu", backend="torch")
            model.save_pretrained(SHIPPED / name if output is None else output / "model")
    return path


def _run(config: Config, folder: Path, instruments: Instruments) -> TrainingRun:
    blank = TrainingRun(config.backend, config.seed)
    try:
        with trace() as calls:
            train(config, folder, peak_flops=instruments.ceilings.matmul_tflops * 1e12)
    except BackendUnavailable as unavailable:
        return replace(blank, error=f"cannot run: {unavailable}")
    except Exception as error:  # whatever a kernel raises is this run's result
        instruments.synchronize()  # but a GPU that has broken down raises here, and ends the experiment
        return replace(blank, error=first_line(error))
    finally:
        gc.collect()
        if instruments.device.type == "cuda":
            torch.cuda.empty_cache()
    first, *entries = metrics.read(folder)
    steps = [entry for entry in entries if "loss" in entry]
    evaluations = [entry for entry in entries if "validation_loss" in entry]
    seconds = statistics.median(entry["seconds"] for entry in steps)
    flops = first["run"]["flops"]
    return replace(
        blank,
        implementations=dict(sorted({(call.operator, f"{call.backend}:{call.rung}") for call in calls})),
        losses=tuple(entry["loss"] for entry in steps),
        evaluated=tuple(entry["step"] for entry in evaluations),
        validation_losses=tuple(entry["validation_loss"] for entry in evaluations),
        seconds=seconds,
        tokens_per_s=steps[0]["tokens"] / seconds,
        tflops=flops / seconds / 1e12,
        mfu=flops / seconds / instruments.ceilings.matmul_tflops / 1e12,
        peak_memory=steps[-1]["memory"],
    )


def read_record(path: Path) -> TrainingRecord:
    """The record in a JSON file. Raises RecordError if the file is not a valid record of this schema, OSError if it
    cannot be read."""
    raw = raw_record(path, SCHEMA)
    try:
        found = decoded(TrainingRecord, raw, "record")
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    for index, run in enumerate(found.runs):
        if (run.error is None) != (len(run.losses) == found.config["steps"]):
            losses = f"{len(run.losses)} losses, its error is {run.error!r}"
            raise RecordError(f"{path}: record.runs[{index}] has {losses}; expected one a step, or an error")
    return found


def published(name: str, gpu: str | None = None) -> TrainingRecord:
    """The record of experiment `name` at `records.published_path`, which raises FileNotFoundError; RecordError if it is
    not valid."""
    return read_record(published_path(name, gpu))


@dataclass(frozen=True)
class Spread:
    """How far runs on other backends lie from those on PyTorch, and these from each other.

    seeds: the runs on PyTorch, one for each seed. backends: {backend: its runs that have the seed of one of these}.
    (Of both, those that came to their end.)
    """

    seeds: tuple[TrainingRun, ...]
    backends: dict[str, tuple[TrainingRun, ...]]

    def twin(self, run: TrainingRun) -> TrainingRun:
        """The run on PyTorch with the seed of `run`: the same weights to begin with, and the same text."""
        return next(each for each in self.seeds if each.seed == run.seed)

    def off_twins(self, backend: str) -> list[float]:
        """The most that a validation loss of each run is off its twin's, in nats, in ascending order."""
        return sorted(_most_apart(run, self.twin(run)) for run in self.backends[backend])

    def seeds_apart(self) -> list[float]:
        """The same of every two seeds on PyTorch."""
        return sorted(_most_apart(*pair) for pair in itertools.combinations(self.seeds, 2))

    def outside(self, backend: str) -> list[int]:
        """The steps after which the mean of the backend's validation losses is less than every seed's on PyTorch, or
        greater."""
        ours, seeds = (zip(*(run.validation_losses for run in runs)) for runs in (self.backends[backend], self.seeds))
        return [
            step
            for step, losses, column in zip(self.seeds[0].evaluated, ours, seeds)
            if not min(column) <= statistics.fmean(losses) <= max(column)
        ]


def spread(record: TrainingRecord) -> Spread:
    """Raises ValueError unless the record has two runs on PyTorch or more."""
    ended = [run for run in record.runs if run.error is None]
    seeds = tuple(run for run in ended if run.runs_on == "torch")
    if len(seeds) < 2:
        raise ValueError(f"the record has {len(seeds)} runs on PyTorch; expected at least 2, with different seeds")
    known = {run.seed for run in seeds}
    backends: dict[str, tuple[TrainingRun, ...]] = {}
    for run in ended:
        if run.runs_on != "torch" and run.seed in known:
            backends[run.runs_on] = (*backends.get(run.runs_on, ()), run)
    return Spread(seeds, backends)


def _most_apart(run: TrainingRun, other: TrainingRun) -> float:
    return max(abs(a - b) for a, b in zip(run.validation_losses, other.validation_losses, strict=True))


def table(record: TrainingRecord) -> Table:
    """Every run: its last validation loss, and what a step takes."""
    rows = [[f"{run.backend}, seed {run.seed}", *_cells(run)] for run in record.runs]
    return Table([record.experiment, "validation loss", "ms", "tokens/s", "MFU %", "MiB"], rows, long_names=True)


def _cells(run: TrainingRun) -> list[str]:
    if run.error is not None:
        return [NOTHING] * 5
    numbers = [
        (run.validation_losses[-1], ".4f"),
        (1e3 * (run.seconds or 0), ".2f"),
        (run.tokens_per_s, ".0f"),
        (100 * (run.mfu or 0), ".1f"),
        (None if run.peak_memory is None else run.peak_memory / 2**20, ".0f"),
    ]
    return [NOTHING if number is None else format(number, written) for number, written in numbers]
