"""An experiment's config.yaml: what to measure, strictly checked.

    seed: 0
    samples: {min: 20, max: 60}            how many each candidate gets (`timing.measure`)
    operators:
      rmsnorm:
        - {shape: [16384, 4096], dtype: bfloat16, directions: [forward]}
    implementations: ["triton:*", cuda]
    peers: [torch eager, liger]
    models:
      llama3.2-1b:
        - {level: model, phase: decode, batch: 8, tokens: 2047, dtype: bfloat16}
        - {level: layer, module: mlp, phase: prefill, batch: 1, tokens: 2048, dtype: bfloat16}
        - {level: training, batch: 1, tokens: 2048, dtype: bfloat16}
    backends: [torch, "torch,rmsnorm=triton"]
    compile: [false, true]
    traps: [first_call, warm_cache]

Of the implementations, "triton:*" is every rung, "triton" the best, and "triton:naive" that one. Each of the backends
is a choice string (`lab.backends.registry`), or a peer's name (`lab.benchmark.peers.MODEL_PEERS`), run without
torch.compile (false), with it (true) or both ways. Phase and tokens are as in `lab.benchmark.models.ModelWorkload`.
Traps are ways to measure (`lab.benchmark.traps`), each of which takes `max` samples. Operators may be absent, or
models, with the two keys after them, or traps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from lab.backends import registry
from lab.backends.implementation import Implementation
from lab.benchmark.candidates import Workload
from lab.benchmark.models import LEVELS, PHASES, ModelWorkload
from lab.benchmark.peers import MODEL_PEERS
from lab.benchmark.peers import peers as known_peers
from lab.benchmark.records import experiments_folder
from lab.benchmark.traps import TRAPS
from lab.config import ConfigError, boolean, integer, mapping, read, require, seed, sequence
from lab.core.config import MODELS
from lab.core.cost import LAYERS
from lab.ops.operator import DTYPE_NAMES

DIRECTIONS = ("forward", "backward", "both")
OF_OPERATORS = {"operators", "implementations", "peers"}
OF_MODELS = {"models", "backends", "compile"}
TRAINING_DTYPES = ("float16", "bfloat16", "float32")
OF_TRAPS = {"traps"}

AnyWorkload = TypeVar("AnyWorkload", Workload, ModelWorkload)


@dataclass(frozen=True)
class Experiment:
    """What `experiments.run` measures: `workloads` with `implementations` (choices as in this module's text) and with
    `peers` (names); `models` with `backends` (choice strings), each as `compile` says; `traps` (names)."""

    name: str
    seed: int
    min_samples: int
    max_samples: int
    workloads: tuple[Workload, ...] = ()
    implementations: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    models: tuple[ModelWorkload, ...] = ()
    backends: tuple[str, ...] = ()
    compile: tuple[bool, ...] = ()
    traps: tuple[str, ...] = ()

    @property
    def operators(self) -> list[str]:
        return list(dict.fromkeys(workload.operator for workload in self.workloads))


def names() -> list[str]:
    """The experiments that have a config.yaml."""
    return sorted(path.parent.name for path in experiments_folder().glob("*/config.yaml"))


def load(name: str) -> Experiment:
    """The experiment of that name. Raises ValueError for an unknown name, ConfigError for a bad config."""
    if name not in names():
        raise ValueError(f"unknown experiment {name!r}; expected one of {', '.join(names())}")
    return read(experiments_folder() / name / "config.yaml", partial(parse, name))


def parse(name: str, config: object) -> Experiment:
    """An Experiment out of what YAML gave. Raises ConfigError naming the key."""
    top = mapping(config, "config", {"seed", "samples"}, OF_OPERATORS | OF_MODELS | OF_TRAPS)
    samples = mapping(top["samples"], "samples", {"min", "max"})
    least, most = (integer(samples[key], f"samples.{key}", 2) for key in ("min", "max"))
    require(least <= most, "samples.max", most, f"at least samples.min, {least}")
    sections: dict[str, tuple] = {}
    for keys, parsed in ((OF_OPERATORS, _of_operators), (OF_MODELS, _of_models), (OF_TRAPS, _of_traps)):
        if section := {key: value for key, value in top.items() if key in keys}:
            sections |= parsed(mapping(section, "config", keys))
    if not sections:
        raise ConfigError("config.operators, config.models and config.traps are missing; expected one of them at least")
    return Experiment(name, seed(top["seed"], "seed"), least, most, **sections)


def _of_operators(section: dict) -> dict[str, tuple]:
    """The fields of an Experiment that the section about operators gives."""
    operators = section["operators"]
    require(isinstance(operators, dict) and bool(operators), "operators", operators, "workloads by operator")
    workloads = [
        workload
        for op, entries in operators.items()
        for index, entry in enumerate(sequence(entries, f"operators.{op}"))
        for workload in _workloads(op, entry, f"operators.{op}[{index}]")
    ]
    _distinct(workloads, "operators", "workload")
    for index, choice in enumerate(sequence(section["implementations"], "implementations")):
        key = f"implementations[{index}]"
        require(isinstance(choice, str), key, choice, 'a string such as "triton:naive"')
        if not any(rungs(op, choice, key) for op in operators):
            raise ConfigError(f"{key} is {choice!r}, which implements none of {', '.join(operators)}")
    known = {peer for op in operators for peer in known_peers(op)}
    for index, peer in enumerate(sequence(section["peers"], "peers", empty=True)):
        require(peer in known, f"peers[{index}]", peer, f"one of {', '.join(sorted(known)) or 'none'}")
    implementations, peers = tuple(section["implementations"]), tuple(section["peers"])
    return {"workloads": tuple(workloads), "implementations": implementations, "peers": peers}


def _of_models(section: dict) -> dict[str, tuple]:
    """The fields of an Experiment that the section about models gives."""
    models = section["models"]
    require(isinstance(models, dict) and bool(models), "models", models, "workloads by model")
    workloads = [
        _model_workload(model, entry, f"models.{model}[{index}]")
        for model, entries in models.items()
        for index, entry in enumerate(sequence(entries, f"models.{model}"))
    ]
    _distinct(workloads, "models", "workload")
    for index, choice in enumerate(sequence(section["backends"], "backends")):
        require(isinstance(choice, str), f"backends[{index}]", choice, 'a string such as "torch,rmsnorm=triton"')
        try:
            if choice not in MODEL_PEERS:
                registry.parse_choice(choice)
        except ValueError as error:
            raise ConfigError(f"backends[{index}] is {choice!r}: {error}") from None
    _distinct(section["backends"], "backends", "choice")
    for index, compile in enumerate(sequence(section["compile"], "compile")):
        boolean(compile, f"compile[{index}]")
    _distinct(section["compile"], "compile", "value")
    backends, compile = tuple(section["backends"]), tuple(section["compile"])
    return {"models": tuple(workloads), "backends": backends, "compile": compile}


def _of_traps(section: dict) -> dict[str, tuple]:
    """The field of an Experiment that the list of traps gives."""
    for index, name in enumerate(sequence(section["traps"], "traps")):
        require(name in TRAPS, f"traps[{index}]", name, f"one of {', '.join(TRAPS)}")
    _distinct(section["traps"], "traps", "trap")
    return {"traps": tuple(section["traps"])}


def rungs(op: str, choice: str, key: str = "implementations") -> list[Implementation]:
    """The implementations of `op` that "triton:*", "triton" or "triton:naive" names, in the ladder's order; none if the
    backend does not implement `op`, or has that rung for another operator only. ConfigError for unknown names."""
    backend, _, rung = choice.partition(":")
    require(backend in registry.backends(), key, choice, f"a backend of {', '.join(registry.backends())}")
    ladder = registry.ladder(op, backend)
    if rung == "*":
        return list(ladder)
    if not rung:
        return list(ladder[-1:])
    elsewhere = {each.rung for name in registry.operators() for each in registry.ladder(name, backend)}
    require(rung in elsewhere, key, choice, f"a rung of {backend}: {', '.join(each.rung for each in ladder)}")
    return [each for each in ladder if each.rung == rung]


def _workloads(op: object, entry: object, where: str) -> list[Workload]:
    require(op in registry.operators(), f"operators.{op}", op, f"one of {', '.join(registry.operators())}")
    fields = mapping(entry, where, {"shape", "dtype", "directions"})
    dims = registry.operator(str(op)).dims
    shape = sequence(fields["shape"], f"{where}.shape")
    require(len(shape) == len(dims), f"{where}.shape", shape, f"{len(dims)} numbers: {', '.join(dims)}")
    sizes = tuple(integer(size, f"{where}.shape[{index}]", 1) for index, size in enumerate(shape))
    dtype = fields["dtype"]
    require(dtype in DTYPE_NAMES, f"{where}.dtype", dtype, f"one of {', '.join(DTYPE_NAMES)}")
    directions = sequence(fields["directions"], f"{where}.directions")
    for index, direction in enumerate(directions):
        allowed = f"one of {', '.join(DIRECTIONS)}"
        require(direction in DIRECTIONS, f"{where}.directions[{index}]", direction, allowed)
    return [Workload(str(op), sizes, dtype, direction) for direction in directions]


def _model_workload(model: object, entry: object, where: str) -> ModelWorkload:
    require(model in MODELS, f"models.{model}", model, f"one of {', '.join(MODELS)}")
    level = entry.get("level") if isinstance(entry, dict) else None
    allowed: dict[str, Sequence[str]] = {"level": LEVELS, "dtype": DTYPE_NAMES}
    if level == "training":
        allowed["dtype"] = TRAINING_DTYPES
    else:
        allowed["phase"] = PHASES
    if level == "layer":
        allowed["module"] = LAYERS
    fields = mapping(entry, where, {*allowed, "batch", "tokens"})
    for key, values in allowed.items():
        require(fields[key] in values, f"{where}.{key}", fields[key], f"one of {', '.join(values)}")
    integer(fields["batch"], f"{where}.batch", 1)
    least = 1 if fields.get("phase") == "decode" else 2  # one new token is a step of decoding
    tokens = integer(fields["tokens"], f"{where}.tokens", least)
    workload = ModelWorkload(model=str(model), **{"module": None, "phase": None, **fields})
    most = MODELS[workload.model].max_position_embeddings - (workload.context + workload.new - tokens)
    require(tokens <= most, f"{where}.tokens", tokens, f"at most {most}, for the positions that {model} has")
    return workload


def _distinct(values: list, where: str, what: str) -> None:
    require(len(set(values)) == len(values), where, values, f"no {what} twice")


def without_bfloat16(workload: AnyWorkload, capability: tuple[int, int]) -> AnyWorkload:
    """The workload in float16 on a GPU that has no bfloat16 (before compute capability 8.0)."""
    if torch.bfloat16 == workload.torch_dtype and capability < (8, 0):
        return replace(workload, dtype="float16")
    return workload
