"""Other people's implementations, timed beside ours in the same run where they are installed.

The peers of operator X are in `lab/benchmark/peers/X.py`, as PEERS: {name: Peer}. A new operator brings its own file.
Functions that write over their inputs are in IN_PLACE instead: they run in a model, which needs those no more, and are
not timed by themselves, on inputs that all candidates share.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata

import torch

from lab.backends import registry
from lab.backends.implementation import Implementation

MODEL_PEERS = ("liger",)  # those whose operators a model can run on


class PeerAbsent(RuntimeError):
    """The peer cannot be used here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """package: the distribution whose version is recorded. make(): imports it, and returns a differentiable function
    with the operator's public signature (tensors and parameters, all positional); called anew for every workload."""

    package: str
    make: Callable[[], Callable]

    def load(self) -> tuple[Callable, str]:
        """(function, version). Raises PeerAbsent."""
        try:
            version = metadata.version(self.package)
            return self.make(), version
        except metadata.PackageNotFoundError:
            raise PeerAbsent(f"{self.package} is not installed") from None
        except Exception as error:  # a package that is there but broken is as good as absent, and says why
            raise PeerAbsent(f"{self.package} cannot be used: {type(error).__name__}: {error}") from error


def peers(operator: str) -> dict[str, Peer]:
    """The peers that are known for `operator`, by name; empty if there are none."""
    return _file(operator).get("PEERS", {})


def peers_in_a_model(operator: str) -> dict[str, Peer]:
    """The same, and those that write over their inputs."""
    return peers(operator) | _file(operator).get("IN_PLACE", {})


def _file(operator: str) -> dict:
    name = f"{__name__}.{operator}"
    return vars(importlib.import_module(name)) if importlib.util.find_spec(name) else {}


def as_backend(name: str, operators: Iterable[str]) -> AbstractContextManager[None]:
    """A block inside which the peer is a backend, of those of the operators that it has; its rungs are called by its
    version. Raises PeerAbsent."""
    known = {op: peer for op in operators if (peer := peers_in_a_model(op).get(name))}
    if not known:
        raise PeerAbsent(f"{name} has none of {', '.join(sorted(operators))}")
    loaded = {op: peer.load() for op, peer in known.items()}
    return registry.registered(
        name, {op: Implementation(function=fn, rung=version) for op, (fn, version) in loaded.items()}
    )


def compiled(fn: Callable) -> Callable:
    """`fn` under torch.compile as a training run would use it: default mode, one graph for these shapes alone."""
    return torch.compile(fn, dynamic=False, fullgraph=True)
