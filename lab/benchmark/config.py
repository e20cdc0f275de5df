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
    backends: [torch, "torch,rmsnorm=triton"]
    compile: [false, true]
    traps: [first_call, warm_cache]

Of the implementations, "triton:*" is every rung, "triton" the best, and "triton:naive" that one. Each of the backends
is a choice string (`lab.backends.registry`), run without torch.compile (false), with it (true) or both ways. Phase and
tokens are as in `lab.benchmark.models.ModelWorkload`. Traps are ways to measure (`lab.benchmark.traps`), each of which
takes `max` samples. Operators may be absent, or models, with the two keys after them, or traps.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import yaml

from lab.backends import registry
from lab.benchmark.candidates import Workload
from lab.benchmark.models import LEVELS, PHASES, ModelWorkload
from lab.benchmark.peers import peers as known_peers
from lab.benchmark.records import experiments_folder
from lab.benchmark.traps import TRAPS
from lab.core.config import MODELS
from lab.core.cost import LAYERS
from lab.ops.operator import DTYPE_NAMES

DIRECTIONS = ("forward", "backward", "both")
OF_OPERATORS = {"operators", "implementations", "peers"}
OF_MODELS = {"models", "backends", "compile"}
OF_TRAPS = {"traps"}

AnyWorkload = TypeVar("AnyWorkload", Workload, ModelWorkload)


class ConfigError(ValueError):
    """A config that is not what it must be; the message names the key."""


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
    path = experiments_folder() / name / "config.yaml"
    try:
        return parse(name, yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(name: str, config: object) -> Experiment:
    """An Experiment out of what YAML gave. Raises ConfigError naming the key."""
    top = _mapping(config, "config", {"seed", "samples"}, OF_OPERATORS | OF_MODELS | OF_TRAPS)
    samples = _mapping(top["samples"], "samples", {"min", "max"})
    least, most = (_integer(samples[key], f"samples.{key}", 2) for key in ("min", "max"))
    _require(least <= most, "samples.max", most, f"at least samples.min, {least}")
    sections: dict[str, tuple] = {}
    for keys, parsed in ((OF_OPERATORS, _of_operators), (OF_MODELS, _of_models), (OF_TRAPS, _of_traps)):
        if section := {key: value for key, value in top.items() if key in keys}:
            sections |= parsed(_mapping(section, "config", keys))
    if not sections:
        raise ConfigError("config.operators, config.models and config.traps are missing; expected one of them at least")
    return Experiment(name, _integer(top["seed"], "seed", 0), least, most, **sections)


def _of_operators(section: dict) -> dict[str, tuple]:
    """The fields of an Experiment that the section about operators gives."""
    operators = section["operators"]
    _require(isinstance(operators, dict) and bool(operators), "operators", operators, "workloads by operator")
    workloads = [
        workload
        for op, entries in operators.items()
        for index, entry in enumerate(_list(entries, f"operators.{op}"))
        for workload in _workloads(op, entry, f"operators.{op}[{index}]")
    ]
    _distinct(workloads, "operators", "workload")
    for index, choice in enumerate(_list(section["implementations"], "implementations")):
        key = f"implementations[{index}]"
        _require(isinstance(choice, str), key, choice, 'a string such as "triton:naive"')
        if not any(rungs(op, choice, key) for op in operators):
            raise ConfigError(f"{key} is {choice!r}, which implements none of {', '.join(operators)}")
    known = {peer for op in operators for peer in known_peers(op)}
    for index, peer in enumerate(_list(section["peers"], "peers", empty=True)):
        _require(peer in known, f"peers[{index}]", peer, f"one of {', '.join(sorted(known)) or 'none'}")
    implementations, peers = tuple(section["implementations"]), tuple(section["peers"])
    return {"workloads": tuple(workloads), "implementations": implementations, "peers": peers}


def _of_models(section: dict) -> dict[str, tuple]:
    """The fields of an Experiment that the section about models gives."""
    models = section["models"]
    _require(isinstance(models, dict) and bool(models), "models", models, "workloads by model")
    workloads = [
        _model_workload(model, entry, f"models.{model}[{index}]")
        for model, entries in models.items()
        for index, entry in enumerate(_list(entries, f"models.{model}"))
    ]
    _distinct(workloads, "models", "workload")
    for index, choice in enumerate(_list(section["backends"], "backends")):
        _require(isinstance(choice, str), f"backends[{index}]", choice, 'a string such as "torch,rmsnorm=triton"')
        try:
            registry.parse_choice(choice)
        except ValueError as error:
            raise ConfigError(f"backends[{index}] is {choice!r}: {error}") from None
    _distinct(section["backends"], "backends", "choice")
    for index, compile in enumerate(_list(section["compile"], "compile")):
        _require(isinstance(compile, bool), f"compile[{index}]", compile, "true or false")
    _distinct(section["compile"], "compile", "value")
    backends, compile = tuple(section["backends"]), tuple(section["compile"])
    return {"models": tuple(workloads), "backends": backends, "compile": compile}


def _of_traps(section: dict) -> dict[str, tuple]:
    """The field of an Experiment that the list of traps gives."""
    for index, name in enumerate(_list(section["traps"], "traps")):
        _require(name in TRAPS, f"traps[{index}]", name, f"one of {', '.join(TRAPS)}")
    _distinct(section["traps"], "traps", "trap")
    return {"traps": tuple(section["traps"])}


def rungs(op: str, choice: str, key: str = "implementations") -> list[registry.Implementation]:
    """The implementations of `op` that "triton:*", "triton" or "triton:naive" names, in the ladder's order; none if the
    backend does not implement `op`, or has that rung for another operator only. ConfigError for unknown names."""
    backend, _, rung = choice.partition(":")
    _require(backend in registry.backends(), key, choice, f"a backend of {', '.join(registry.backends())}")
    ladder = registry.ladder(op, backend)
    if rung == "*":
        return list(ladder)
    if not rung:
        return list(ladder[-1:])
    elsewhere = {each.rung for name in registry.operators() for each in registry.ladder(name, backend)}
    _require(rung in elsewhere, key, choice, f"a rung of {backend}: {', '.join(each.rung for each in ladder)}")
    return [each for each in ladder if each.rung == rung]


def _workloads(op: object, entry: object, where: str) -> list[Workload]:
    _require(op in registry.operators(), f"operators.{op}", op, f"one of {', '.join(registry.operators())}")
    fields = _mapping(entry, where, {"shape", "dtype", "directions"})
    dims = registry.operator(str(op)).dims
    shape = _list(fields["shape"], f"{where}.shape")
    _require(len(shape) == len(dims), f"{where}.shape", shape, f"{len(dims)} numbers: {', '.join(dims)}")
    sizes = tuple(_integer(size, f"{where}.shape[{index}]", 1) for index, size in enumerate(shape))
    dtype = fields["dtype"]
    _require(dtype in DTYPE_NAMES, f"{where}.dtype", dtype, f"one of {', '.join(DTYPE_NAMES)}")
    directions = _list(fields["directions"], f"{where}.directions")
    for index, direction in enumerate(directions):
        allowed = f"one of {', '.join(DIRECTIONS)}"
        _require(direction in DIRECTIONS, f"{where}.directions[{index}]", direction, allowed)
    return [Workload(str(op), sizes, dtype, direction) for direction in directions]


def _model_workload(model: object, entry: object, where: str) -> ModelWorkload:
    _require(model in MODELS, f"models.{model}", model, f"one of {', '.join(MODELS)}")
    of_layer = {"module"} if isinstance(entry, dict) and entry.get("level") == "layer" else set()
    fields = _mapping(entry, where, {"level", "phase", "batch", "tokens", "dtype"} | of_layer)
    allowed = {"level": LEVELS, "phase": PHASES, "dtype": DTYPE_NAMES} | ({"module": LAYERS} if of_layer else {})
    for key, values in allowed.items():
        _require(fields[key] in values, f"{where}.{key}", fields[key], f"one of {', '.join(values)}")
    _integer(fields["batch"], f"{where}.batch", 1)
    least = 2 if fields["phase"] == "prefill" else 1  # one new token is a step of decoding
    tokens = _integer(fields["tokens"], f"{where}.tokens", least)
    workload = ModelWorkload(model=str(model), **{"module": None, **fields})
    most = MODELS[workload.model].max_position_embeddings - (workload.context + workload.new - tokens)
    _require(tokens <= most, f"{where}.tokens", tokens, f"at most {most}, for the positions that {model} has")
    return workload


def _distinct(values: list, where: str, what: str) -> None:
    _require(len(set(values)) == len(values), where, values, f"no {what} twice")


def _mapping(value: object, where: str, keys: set[str], optional: Set[str] = frozenset()) -> dict:
    _require(isinstance(value, dict), where, value, f"a mapping with the keys {', '.join(sorted(keys))}")
    assert isinstance(value, dict)
    if unknown := set(value) - keys - optional:
        known = ", ".join(sorted(keys | optional))
        raise ConfigError(f"{where}.{min(map(str, unknown))} is not a key; expected {known}")
    if missing := keys - set(value):
        raise ConfigError(f"{where}.{min(missing)} is missing")
    return value


def _list(value: object, where: str, empty: bool = False) -> list:
    _require(isinstance(value, list) and (empty or bool(value)), where, value, "a list with something in it")
    assert isinstance(value, list)
    return value


def _integer(value: object, where: str, least: int) -> int:
    _require(
        isinstance(value, int) and not isinstance(value, bool) and value >= least,
        where,
        value,
        f"a whole number of at least {least}",
    )
    assert isinstance(value, int)
    return value


def _require(true: bool, where: str, value: object, expected: str) -> None:
    if not true:
        raise ConfigError(f"{where} is {value!r}; expected {expected}")


def without_bfloat16(workload: AnyWorkload, capability: tuple[int, int]) -> AnyWorkload:
    """The workload in float16 on a GPU that has no bfloat16 (before compute capability 8.0)."""
    if torch.bfloat16 == workload.torch_dtype and capability < (8, 0):
        return replace(workload, dtype="float16")
    return workload
