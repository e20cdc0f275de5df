"""An implementation of an operator, and the trace of what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch


class BackendUnavailable(RuntimeError):
    """The backend or rung asked for exists but cannot run on this machine or on these tensors."""


def _no_reason(*_) -> str | None:
    return None


def _no_pass(*_) -> tuple[torch.Tensor, ...]:
    raise NotImplementedError("PyTorch's own function is all that there is: it has no passes of its own")


@dataclass(frozen=True)
class Implementation:
    """One rung: the two passes of an operator as pure functions, tensors in and tensors out, with no autograd.

    forward(*tensors, **parameters) -> tuple of tensors
    backward(*output_gradients, *saved, **parameters) -> tuple of tensors
        The operator's module in `lab.ops` documents both signatures.
    rung: the name after the colon in a choice string.
    change: one line: what this rung does that the one before did not.
    unavailable(device): why this rung cannot run on that device here, or None if it can.
    refuses(*tensors): why it cannot take these inputs (a row too long, a dtype missing on this GPU), or None.
    function(*arguments): PyTorch's own differentiable function, if it is one. It then stands for both passes wherever
        the operator is called, so that torch.compile sees through it; passes, if given, are for benchmarks and tests.
    """

    forward: Callable[..., tuple[torch.Tensor, ...]] = _no_pass
    backward: Callable[..., tuple[torch.Tensor, ...]] = _no_pass
    rung: str = "best"
    change: str = ""
    unavailable: Callable[[torch.device], str | None] = _no_reason
    refuses: Callable[..., str | None] = _no_reason
    function: Callable | None = None
    operator: str = ""  # this and the next are set by register_backend
    backend: str = ""

    @property
    def has_passes(self) -> bool:
        return self.forward is not _no_pass

    def __str__(self) -> str:
        return f"{self.backend}:{self.rung}"


class Call(NamedTuple):
    """One pass that ran: operator, backend, rung, "forward" or "backward"."""

    operator: str
    backend: str
    rung: str
    direction: str


_traces: list[list[Call]] = []


@contextmanager
def trace() -> Iterator[list[Call]]:
    """Collect every pass that the registry runs inside the block:

    with lab.trace() as calls:
        model(x)

    Of PyTorch's own functions (`Implementation.function`) the forward pass is noted, as it is called: not the backward
    pass, which PyTorch runs by itself, and under torch.compile nothing.
    """
    calls: list[Call] = []
    _traces.append(calls)
    try:
        yield calls
    finally:
        _traces[:] = [each for each in _traces if each is not calls]  # an equal one may be another's


_ranges: list[Callable[[Call], AbstractContextManager]] = []
_no_range = nullcontext()


@contextmanager
def ranges(around: Callable[[Call], AbstractContextManager]) -> Iterator[None]:
    """Inside the block, every pass that `trace` would note runs inside `around(call)`: a profiler's range, such as
    `torch.profiler.record_function`."""
    _ranges.append(around)
    try:
        yield
    finally:
        _ranges.remove(around)


def running(implementation: Implementation, direction: str) -> AbstractContextManager:
    """What a pass runs inside."""
    if not (_traces or _ranges):
        return _no_range
    call = Call(implementation.operator, implementation.backend, implementation.rung, direction)
    for calls in _traces:
        calls.append(call)
    return _ranges[-1](call) if _ranges else _no_range
