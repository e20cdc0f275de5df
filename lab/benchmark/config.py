"""An experiment's config.yaml: what to measure, strictly checked.

    seed: 0
    samples: {min: 20, max: 60}            how many each candidate gets (`timing.measure`)
    operators:
      rmsnorm:
        - {shape: [16384, 4096], dtype: bfloat16, directions: [forward]}
    implementations: ["triton:*", cuda]
    peers: [torch eager, liger]

Of the implementations, "triton:*" is every rung, "triton" the best, and "triton:naive" that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from lab.backends import registry
from lab.benchmark.candidates import Workload
from lab.benchmark.peers import peers as known_peers
from lab.benchmark.records import experiments_folder
from lab.config import ConfigError, integer, mapping, read, require, sequence
from lab.ops.operator import DTYPE_NAMES

DIRECTIONS = ("forward", "backward", "both")


@dataclass(frozen=True)
class Experiment:
    """What `experiments.run` measures. implementations: choices as in this module's text; peers: names."""

    name: str
    seed: int
    min_samples: int
    max_samples: int
    workloads: tuple[Workload, ...]
    implementations: tuple[str, ...]
    peers: tuple[str, ...]

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
    top = mapping(config, "config", {"seed", "samples", "operators", "implementations", "peers"})
    samples = mapping(top["samples"], "samples", {"min", "max"})
    least, most = (integer(samples[key], f"samples.{key}", 2) for key in ("min", "max"))
    require(least <= most, "samples.max", most, f"at least samples.min, {least}")
    operators = top["operators"]
    require(isinstance(operators, dict) and bool(operators), "operators", operators, "workloads by operator")
    workloads = [
        workload
        for op, entries in operators.items()
        for index, entry in enumerate(sequence(entries, f"operators.{op}"))
        for workload in _workloads(op, entry, f"operators.{op}[{index}]")
    ]
    require(len(set(workloads)) == len(workloads), "operators", operators, "no workload twice")
    for index, choice in enumerate(sequence(top["implementations"], "implementations")):
        key = f"implementations[{index}]"
        require(isinstance(choice, str), key, choice, 'a string such as "triton:naive"')
        if not any(rungs(op, choice, key) for op in operators):
            raise ConfigError(f"{key} is {choice!r}, which implements none of {', '.join(operators)}")
    known = {peer for op in operators for peer in known_peers(op)}
    for index, peer in enumerate(sequence(top["peers"], "peers", empty=True)):
        require(peer in known, f"peers[{index}]", peer, f"one of {', '.join(sorted(known)) or 'none'}")
    return Experiment(
        name=name,
        seed=integer(top["seed"], "seed", 0),
        min_samples=least,
        max_samples=most,
        workloads=tuple(workloads),
        implementations=tuple(top["implementations"]),
        peers=tuple(top["peers"]),
    )


def rungs(op: str, choice: str, key: str = "implementations") -> list[registry.Implementation]:
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


def without_bfloat16(workload: Workload, capability: tuple[int, int]) -> Workload:
    """The workload in float16 on a GPU that has no bfloat16 (before compute capability 8.0)."""
    if torch.bfloat16 == workload.torch_dtype and capability < (8, 0):
        return Workload(workload.operator, workload.shape, "float16", workload.direction)
    return workload
