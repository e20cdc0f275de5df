"""Who implements which operator, and what can run here.

An operator (`lab.ops`) is implemented by backends. A backend holds for each operator a *ladder*: a list of
implementations ("rungs") in the order in which they are taught, the best one last. A choice string names what to use:

    "triton"                          the highest rung of Triton that runs here
    "triton:naive"                    exactly this rung
    "auto"                            the fastest backend for this GPU (see `lab/backends/auto.json`)
    "torch,rmsnorm=triton,linear=cuda"   torch, except for the operators named

What is asked for by name and cannot run raises `BackendUnavailable` with the reason. Nothing falls back in silence.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import torch

from lab.backends.autograd import differentiable
from lab.backends.hardware import default_device, gpu_of
from lab.backends.implementation import BackendUnavailable, Implementation

if TYPE_CHECKING:
    from lab.ops.operator import Operator

BUILT_IN = ("torch", "triton", "cuda")

_operators: dict[str, Operator] = {}
_ladders: dict[str, dict[str, tuple[Implementation, ...]]] = {}
_broken: dict[str, str] = {}  # built-in backends whose import failed, with the reason


def register_operator(operator: Operator) -> None:
    """Called by each module of `lab.ops`."""
    _operators[operator.name] = operator


def register_backend(name: str, implementations: Mapping[str, Implementation | Sequence[Implementation]]) -> None:
    """Add operators to backend `name`, or replace them there: {operator: rung or list of rungs, best last}.

    Raises ValueError for a malformed name, an empty ladder or a rung named twice.
    """
    if not name.isidentifier() or name == "auto":
        raise ValueError(f"register_backend: name is {name!r}; expected an identifier other than 'auto'")
    for op, rungs in implementations.items():
        ladder = (rungs,) if isinstance(rungs, Implementation) else tuple(rungs)
        names = [rung.rung for rung in ladder]
        if not ladder or len(set(names)) != len(names):
            raise ValueError(f"register_backend: implementations[{op!r}] has rungs {names}; expected distinct names")
        _ladders.setdefault(name, {})[op] = tuple(replace(rung, operator=op, backend=name) for rung in ladder)
    vars(_bound).clear()


@contextmanager
def registered(name: str, implementations: Mapping[str, Implementation | Sequence[Implementation]]) -> Iterator[None]:
    """Inside the block there is a backend `name`, which is none otherwise (`register_backend`)."""
    register_backend(name, implementations)
    try:
        yield
    finally:
        del _ladders[name]
        vars(_bound).clear()


@cache
def _load_built_in() -> None:
    """Import lab/backends/<backend>/<operator>.py wherever there is one; each defines LADDER."""
    for backend in BUILT_IN:
        folder = Path(__file__).parent / backend
        for module_name in sorted(module.name for module in pkgutil.iter_modules([str(folder)])):
            try:
                module = importlib.import_module(f"lab.backends.{backend}.{module_name}")
            except ImportError as error:
                _broken[backend] = f"{backend} cannot be imported: {error}"
                break
            if hasattr(module, "LADDER") and module_name not in _ladders.get(backend, {}):
                register_backend(backend, {module_name: module.LADDER})


def operators() -> dict[str, Operator]:
    """The registered operators by name, sorted."""
    return dict(sorted(_operators.items()))


def operator(name: str) -> Operator:
    """The contract of operator `name`. Raises ValueError for an unknown name."""
    if name not in _operators:
        raise ValueError(f"unknown operator {name!r}; expected one of {', '.join(operators())}")
    return _operators[name]


def backends() -> list[str]:
    """All backend names, built-in ones first."""
    _load_built_in()
    return list(dict.fromkeys([*BUILT_IN, *_ladders]))


def ladder(op: str, backend: str) -> tuple[Implementation, ...]:
    """The rungs of `op` in `backend`, best last; empty if the backend does not implement it."""
    operator(op)
    if backend not in backends():
        raise ValueError(f"unknown backend {backend!r}; expected one of auto, {', '.join(backends())}")
    return _ladders.get(backend, {}).get(op, ())


def implementations(op: str) -> list[Implementation]:
    """Every rung of every backend for `op`."""
    return [rung for backend in backends() for rung in ladder(op, backend)]


def parse_choice(choice: str) -> dict[str, str]:
    """ "torch,rmsnorm=triton" -> {"": "torch", "rmsnorm": "triton"}; the default is "auto" where none is given.

    Raises TypeError for a choice that is no text, ValueError for an unknown operator, backend or rung, or a choice that
    is given twice.
    """
    if not isinstance(choice, str):
        raise TypeError(f'backend is {choice!r}; expected a choice such as "triton" or "torch,rmsnorm=triton"')
    chosen: dict[str, str] = {}
    for part in (choice or "auto").split(","):
        op, equals, backend = map(str.strip, part.partition("="))
        if not equals:
            op, backend = "", op
        if op in chosen:
            raise ValueError(f"backend choice {choice!r} names {op or 'a default'} twice")
        if equals:
            operator(op)
        name, colon, rung = backend.partition(":")
        if name != "auto" or colon:
            if name not in backends():
                raise ValueError(f"unknown backend {name!r}; expected one of auto, {', '.join(backends())}")
            rungs = {r.rung for o in ([op] if op else operators()) for r in ladder(o, name)}
            if colon and rung not in rungs:
                known = ", ".join(sorted(rungs))
                raise ValueError(f"unknown rung {rung!r} of backend {name!r}; expected one of {known}")
        chosen[op] = backend
    chosen.setdefault("", "auto")
    return chosen


def choice_of(backend: str, ops: Iterable[str]) -> str:
    """The choice that runs on `backend` those of the operators that it implements, and the rest on torch. Raises
    ValueError for an unknown backend or operator."""
    return ",".join(["torch", *(f"{op}={backend}" for op in sorted(ops) if ladder(op, backend) and backend != "torch")])


class Resolved(NamedTuple):
    """What a choice came to, and why."""

    implementation: Implementation
    reason: str


def resolve(op: str, choice: str = "auto", device: torch.device | None = None) -> Resolved:
    """The implementation that `choice` means for `op` on `device` (default: the GPU if there is one).

    Raises ValueError for unknown names, BackendUnavailable for what cannot run.
    """
    operator(op)
    chosen = parse_choice(choice)
    device = default_device() if device is None else device
    backend, _, rung = chosen.get(op, chosen[""]).partition(":")
    if backend == "auto":
        return _resolve_auto(op, device)
    rungs = ladder(op, backend)
    if not rungs:
        raise BackendUnavailable(_broken.get(backend) or f"backend {backend!r} does not implement {op!r}")
    if rung:
        wanted = next((r for r in rungs if r.rung == rung), None)
        if wanted is None:
            names = ", ".join(r.rung for r in rungs)
            raise ValueError(f"unknown rung {rung!r} of backend {backend!r} for {op!r}; expected one of {names}")
        if reason := wanted.unavailable(device):
            raise BackendUnavailable(f"{op} on {wanted}: {reason}")
        return Resolved(wanted, "asked for by name")
    reasons: dict[str, list[str]] = {}  # each with the rungs that it holds for
    for candidate in reversed(rungs):
        reason = candidate.unavailable(device)
        if reason is None:
            why = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
            return Resolved(candidate, "; ".join([f"best rung of {backend} that runs here", *why]))
        reasons.setdefault(reason, []).append(candidate.rung)
    why = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    raise BackendUnavailable(f"{op} on {backend}: {'; '.join(why)}")


@cache
def preferences() -> dict[str, dict[str, str]]:
    """{GPU name: {operator: backend}}: the fastest backend of each published record (written by `lab record`)."""
    path = Path(__file__).with_name("auto.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _resolve_auto(op: str, device: torch.device) -> Resolved:
    if device.type != "cuda":
        return Resolved(resolve(op, "torch", device).implementation, f"auto: torch on {device.type} tensors")
    gpu = gpu_of(device).name
    recorded = preferences().get(gpu, {}).get(op)
    why = f"fastest in the record of {gpu}" if recorded else f"no record of {gpu}: cuda, then triton, then torch"
    for backend in dict.fromkeys(filter(None, [recorded, *reversed(BUILT_IN)])):
        try:
            return Resolved(resolve(op, backend, device).implementation, f"auto: {why}")
        except BackendUnavailable as unavailable:
            if backend == recorded:
                why = f"{backend} was the fastest in the record of {gpu}, and cannot run here: {unavailable}"
    raise BackendUnavailable(f"{op}: no backend can run on {device}")


_bound = SimpleNamespace()  # what get_op has made, as attributes: torch.compile reads those one by one as it traces


def get_op(name: str, backend: str = "auto") -> Callable:
    """The differentiable function of operator `name` with its public signature, on the backend that `backend` (a choice
    string, see this module's text) names. The function works in eager mode and under torch.compile.

    Raises ValueError for an unknown operator, backend or rung; BackendUnavailable, with the reason, for one that cannot
    run on this machine.
    """
    _ensure_bound(name, backend)
    return getattr(_bound, f"{name} {backend}")


@torch.compiler.assume_constant_result
def _ensure_bound(name: str, backend: str) -> bool:
    """Bind once. Under torch.compile this runs for real while the graph is traced."""
    key = f"{name} {backend}"
    if hasattr(_bound, key):
        return True
    chosen: dict[str, Implementation | BackendUnavailable] = {}
    for device in {torch.device("cpu"), default_device()}:
        try:
            chosen[device.type] = resolve(name, backend, device).implementation
        except BackendUnavailable as unavailable:
            chosen[device.type] = unavailable
    here = chosen[default_device().type]
    if isinstance(here, BackendUnavailable):
        raise here
    setattr(_bound, key, differentiable(operator(name), chosen))
    return True
