"""A record: everything that one experiment measured on one GPU, as it is written to JSON and read back."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

from lab.backends import registry
from lab.benchmark.candidates import Workload
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.environment import Environment, slug
from lab.benchmark.fingerprint import fingerprint
from lab.benchmark.models import LEVELS, PHASES, ModelRow, ModelWorkload
from lab.benchmark.timing import FLOOR_TOLERANCE, Timing
from lab.benchmark.traps import Trap
from lab.files import write_text
from lab.ops.operator import is_finite

SCHEMA = 4
SHOWN = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")  # whose records the book shows: the first of them that has one
PEER = "peer"  # a row's backend, where the row is another project's
BASELINE = "torch eager"  # the peer that speedups are relative to


class RecordError(ValueError):
    """A record that is not what a record must be; the message names the file and the place."""


@dataclass(frozen=True)
class Row:
    """One candidate on one workload.

    backend, rung: of the registry; for another project's, "peer" and its name, with its version.
    direction: "forward", "backward" or "both". error: why there is no timing, else None.
    fingerprint: of what a rung of ours launched (`lab.benchmark.fingerprint`); launches: in words, each kernel with the
    grid and the constants that were chosen for it. (Empty in records from before it was noted.)
    timing: with a cold L2 cache. graph_us: microseconds a call inside a CUDA graph with a warm cache; launch_us: CPU
    microseconds a call. Both are taken where the floor is short, and `notes` says why where they are not there.
    peak_memory: bytes beyond the inputs. compile_s: seconds that the first call took.
    flops, bytes: of the operator's contract; floor_us: the least time that they take at the record's ceilings.
    gbps, tflops: achieved, at the median. fraction: floor over median.
    """

    operator: str
    backend: str
    rung: str
    version: str | None
    direction: str
    shape: tuple[int, ...]
    dtype: str
    seed: int
    flops: int
    bytes: int
    floor_us: float
    fingerprint: str | None = None
    launches: tuple[str, ...] = ()
    error: str | None = None
    timing: Timing | None = None
    graph_us: float | None = None
    launch_us: float | None = None
    peak_memory: int | None = None
    compile_s: float | None = None
    gbps: float | None = None
    tflops: float | None = None
    fraction: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How tables and figures name the candidate: "triton:naive" or "liger"."""
        return self.rung if self.backend == PEER else f"{self.backend}:{self.rung}"

    @property
    def workload(self) -> tuple[str, str, tuple[int, ...], str]:
        """(operator, direction, shape, dtype): the rows that share it were timed in turns."""
        return self.operator, self.direction, self.shape, self.dtype

    @property
    def task(self) -> str:
        """The workload in words."""
        return f"{self.operator} {self.direction} {'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return f"{self.task} {self.label}"


@dataclass(frozen=True)
class Record:
    """schema: version of this layout. method: how the candidates were called. rows: of operators; models: of models;
    traps: of ways to measure."""

    schema: int
    experiment: str
    config: dict
    method: str
    environment: Environment
    ceilings: Ceilings
    rows: tuple[Row, ...]
    models: tuple[ModelRow, ...] = ()
    traps: tuple[Trap, ...] = ()

    def operators(self) -> list[str]:
        """Names of the operators, in the order of the rows."""
        return list(dict.fromkeys(row.operator for row in self.rows))

    def directions(self, operator: str) -> list[str]:
        return list(dict.fromkeys(row.direction for row in self.rows if row.operator == operator))

    def dtypes(self, operator: str) -> list[str]:
        return list(dict.fromkeys(row.dtype for row in self.rows if row.operator == operator))

    def select(
        self, operator: str, direction: str | None = None, shape: Iterable[int] | None = None, label: str | None = None
    ) -> list[Row]:
        """The rows that match; an argument that is None matches all."""
        shape = None if shape is None else tuple(shape)
        return [
            row
            for row in self.rows
            if row.operator == operator
            and direction in (None, row.direction)
            and shape in (None, row.shape)
            and label in (None, row.label)
        ]

    def at(self, operator: str, direction: str, shape: Iterable[int], dtype: str | None = None) -> list[Row]:
        """The rows of one workload, which were timed in turns. Without a dtype, that of the first that was measured."""
        rows = self.select(operator, direction, shape)
        return [row for row in rows if row.dtype == (dtype or rows[0].dtype)]

    @property
    def all_rows(self) -> tuple[Row | ModelRow, ...]:
        return (*self.rows, *self.models)

    def model_workloads(self) -> list[ModelWorkload]:
        """The workloads of models, in the order of the rows."""
        return list(dict.fromkeys(row.workload for row in self.models))

    def model_workload(self, model: str, phase: str | None, part: str = "model") -> ModelWorkload:
        """The one of that part of that model. Raises ValueError where there is none, or more than one."""
        found = [w for w in self.model_workloads() if (w.model, w.phase, w.part) == (model, phase, part)]
        if len(found) != 1:
            raise ValueError(f"{self.experiment} has {len(found)} workloads {model}, {part}, {phase}; expected one")
        return found[0]

    def model_row(self, workload: ModelWorkload, label: str) -> ModelRow:
        """The row of a candidate, such as "torch eager". Raises ValueError where there is none."""
        rows = {row.label: row for row in self.models if row.workload == workload}
        if label not in rows:
            raise ValueError(
                f"{self.experiment} has no {label!r} of {workload}; expected one of {', '.join(rows) or 'none'}"
            )
        return rows[label]

    def stale(self) -> list[str]:
        """What a rung launches now but did not when it was measured, or an operator or a model whose cost was another
        then: the operators and candidates, and the models' workloads and candidates, concerned."""
        gpu = self.environment.launchers_gpu
        rows = [f"{row.operator} {row.label}" for row in self.rows if row.timing and self._stale(row)]
        return list(dict.fromkeys([*rows, *(str(row) for row in self.models if row.timing and row.stale(gpu))]))

    def _stale(self, row: Row) -> bool:
        workload = Workload(row.operator, row.shape, row.dtype, row.direction)
        cost = registry.operator(row.operator).cost(row.shape, workload.torch_dtype, row.direction)
        if (cost.flops, cost.bytes) != (row.flops, row.bytes):
            return True
        if row.backend == PEER:
            return False
        rung = next((each for each in registry.ladder(row.operator, row.backend) if each.rung == row.rung), None)
        return rung is None or fingerprint(rung, workload, self.environment.launchers_gpu) != row.fingerprint

    def write(self, path: Path) -> None:
        """To JSON; the file is complete or untouched."""
        write_text(path, as_json(self))


def as_json(record: Record) -> str:
    """What `read` reads."""
    return json.dumps(rounded(asdict(record)), indent=1) + "\n"


def raw_record(path: Path, schema: int) -> dict:
    """What a JSON file holds, of that schema. Raises RecordError if it is no JSON or of another, OSError if it cannot
    be read."""
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:  # or not even UTF-8
        raise RecordError(f"{path}: is not JSON: {error}") from error
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found != schema:
        raise RecordError(f"{path}: schema is {found!r}; expected {schema}")
    return raw


def read(path: Path) -> Record:
    """The record in a JSON file. Raises RecordError if the file is not a valid record of this schema, OSError if it
    cannot be read."""
    raw = raw_record(path, SCHEMA)
    try:
        record = decoded(Record, {"traps": [], **raw}, "record")  # those before there were traps do not say so
        for index, row in enumerate(record.rows):
            _check_row(row, f"record.rows[{index}]")
        for index, model_row in enumerate(record.models):
            _check_model_row(model_row, f"record.models[{index}]")
        for index, trap in enumerate(record.traps):
            _check_trap(trap, f"record.traps[{index}]")
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    return record


def experiments_folder() -> Path:
    """book/experiments of this checkout. Raises FileNotFoundError where `lab` is installed without it."""
    folder = Path(__file__).parents[2] / "book" / "experiments"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there; experiments need a checkout of the repository")
    return folder


def published_path(experiment: str, gpu: str | None = None) -> Path:
    """Of the published record of an experiment for the GPU of that name; without a name, for the one that the book
    shows: the first of SHOWN that has a record, else the first by file name. Raises FileNotFoundError if there is none.
    """
    folder = experiments_folder() / experiment / "results"
    there = {path.stem: path for path in sorted(folder.glob("*.json"))}
    wanted = [*map(slug, SHOWN), *there] if gpu is None else [slug(gpu)]
    if found := next((there[name] for name in wanted if name in there), None):
        return found
    others = f"; there is one of {', '.join(there)}" if there else ""
    raise FileNotFoundError(f"no record of experiment {experiment!r}{f' on {gpu}' if gpu else ''} in {folder}{others}")


def published(experiment: str, gpu: str | None = None) -> Record:
    """The record at `published_path`, which raises FileNotFoundError; RecordError if it is not valid."""
    return read(published_path(experiment, gpu))


def environments(folder: Path) -> str:
    """What the env.txt of an experiment's folder has to say: of each record in its results the environment, one below
    the other. Raises RecordError for a file that is no record."""
    found = []
    for path in sorted((folder / "results").glob("*.json")):
        try:
            found.append(decoded(Environment, json.loads(path.read_text())["environment"], "record.environment").text())
        except (json.JSONDecodeError, KeyError, TypeError, RecordError) as error:
            raise RecordError(f"{path}: has no environment: {error}") from None
    return "\n".join(found)


def rounded(value):
    """`value` with its floats to six significant digits: more would be noise. Raises RecordError for one that is not
    finite, which has no place in JSON."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(f"a record cannot hold {value}")
        return float(f"{value:.6g}")
    return value


def decoded(kind: typing.Any, value: typing.Any, where: str) -> typing.Any:
    """`value`, out of JSON, as the annotated type `kind`. Raises RecordError naming the place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return decoded(inner, value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        _require(isinstance(value, dict), where, value, "an object")
        known = {field.name for field in fields(kind)}
        _require(set(value) == known, where, sorted(set(value) ^ known), "every field of the schema and no other")
        hints = typing.get_type_hints(kind)
        return kind(**{name: decoded(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is tuple:
        _require(isinstance(value, list), where, value, "a list")
        return tuple(decoded(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _require(isinstance(value, dict), where, value, "an object")
        return {key: decoded(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        _require(isinstance(value, (int, float)) and not isinstance(value, bool), where, value, "a number")
        _require(is_finite(value), where, value, "a finite number")
        return float(value)
    _require(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), where, value, kind.__name__)
    return value


def _check_row(row: Row, where: str) -> None:
    _require(row.direction in ("forward", "backward", "both"), f"{where}.direction", row.direction, "a known direction")
    _check_timing(row, where)


def _check_model_row(row: ModelRow, where: str) -> None:
    workload = row.workload
    _require(workload.level in LEVELS, f"{where}.workload.level", workload.level, "a known level")
    phases = (None,) if workload.level == "training" else PHASES
    _require(workload.phase in phases, f"{where}.workload.phase", workload.phase, "a known phase, in training none")
    of_layer = workload.level == "layer"
    _require(of_layer == (workload.module is not None), f"{where}.workload.module", workload.module, "that of a layer")
    _check_timing(row, where)


def _check_trap(trap: Trap, where: str) -> None:
    for index, way in enumerate(trap.ways):
        place = f"{where}.ways[{index}]"
        times = (way.us, *way.samples_us)
        _require(bool(way.samples_us) and min(times) > 0, f"{place}.samples_us", times, "times, all above 0")
        _require(len(way.power_w) == len(way.sm_clock_mhz), f"{place}.power_w", way.power_w, "one for each clock")


def _check_timing(row: Row | ModelRow, where: str) -> None:
    _require((row.timing is None) == (row.error is not None), where, row.error, "either a timing or an error")
    if row.timing is None:
        return
    t = row.timing
    ordered = 0 < t.p20_us <= t.median_us <= t.p80_us and t.ci_low_us <= t.median_us <= t.ci_high_us
    _require(ordered, f"{where}.timing", t, "0 < p20 <= median <= p80, and the median inside its interval")
    least = FLOOR_TOLERANCE * row.floor_us
    possible = t.median_us >= least * (1 - 1e-4)
    _require(possible, f"{where}.timing", t, f"no time below the physical floor, {least:.6g} us")
    fraction = row.floor_us / t.median_us
    consistent = row.fraction is not None and math.isclose(row.fraction, fraction, rel_tol=1e-4)
    _require(consistent, f"{where}.fraction", row.fraction, f"floor over median, {fraction:.6g}")


def _require(true: bool, where: str, value, expected: str) -> None:
    if not true:
        raise RecordError(f"{where} is {value!r}; expected {expected}")
