"""Measure forward passes of a model, of a block and of a layer: every choice of backends, eager and compiled."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch._dynamo
from torch import Tensor

from lab.backends import registry
from lab.benchmark import timing
from lab.benchmark.candidates import TOLERANCE, WrongResult
from lab.benchmark.models import ModelRow, ModelWorkload
from lab.benchmark.peers import compiled
from lab.core.cache import KVCache
from lab.core.model import LLM, Block, Rotary

if TYPE_CHECKING:
    from lab.benchmark.config import Experiment
    from lab.benchmark.experiments import Instruments

METHOD = (
    "A model, a block or a layer is timed as its caller sees it, by the clock on the wall: after a clear of L2, from "
    "the call, under no_grad, until the GPU has done all of it, launches included. Prefill puts prompts into an empty "
    "KV cache; decode puts one token of each sequence behind random keys and values, each time in the same place. A "
    "model's output head sees the last token of each sequence; the pick of the next token is not timed. Weights are "
    "random, and the same for every candidate. Compiled is torch.compile in its default mode, one graph for fixed "
    "shapes, its first call with empty caches."
)
GRAPH_US = 2000.0  # a CUDA graph holds as many calls as take about that long
GRAPH_CALLS = 20  # at most


class NotRun(RuntimeError):
    """Other implementations ran than the choice asks for; the message says which."""


class ForwardPass:
    """One workload: a module with random weights, what it is called with, and its cache; the same for every candidate.

    Weights are drawn so that what every operator puts out is of about the same size, however wide the model is: then
    any operator that computes something else shows in the result (`check`).
    """

    def __init__(self, workload: ModelWorkload, device: torch.device, seed: int) -> None:
        self.workload = workload
        config, dtype, part = workload.config, workload.torch_dtype, workload.part
        batch, new, context = workload.batch, workload.new, workload.context
        generator = torch.Generator(device).manual_seed(seed)
        with device, _default_dtype(dtype):
            whole = LLM(config) if part == "model" else Block(config)
        self.module = (getattr(whole, part) if workload.level == "layer" else whole).to(device)
        with torch.no_grad():
            for weight in self.module.parameters():
                if weight.dim() == 1:
                    weight.uniform_(0.5, 1.5, generator=generator)
                else:
                    weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)
        self.cache = None
        if part in ("model", "block", "self_attn"):
            layers = config.num_hidden_layers if part == "model" else 1
            shape = replace(config, num_hidden_layers=layers)
            self.cache = KVCache(shape, batch, context + new, device=device, dtype=dtype)
            self.cache.k.normal_(generator=generator)
            # The mean of so many random values would be next to nothing beside the rest.
            self.cache.v.normal_(std=math.sqrt(context + new), generator=generator)
            self.rewind()
        self.arguments = self._arguments(device, generator)

    def _arguments(self, device: torch.device, generator: torch.Generator) -> tuple:
        workload = self.workload
        config, dtype, size = workload.config, workload.torch_dtype, (workload.batch, workload.new)
        if workload.part == "model":
            return torch.randint(config.vocab_size, size, generator=generator, device=device), self.cache
        x, residual = (
            torch.randn(*size, config.hidden_size, generator=generator, dtype=dtype, device=device) for _ in range(2)
        )
        if self.cache is None:
            return (x,) if workload.part == "mlp" else (x, residual)
        positions = self.cache.positions(*size)
        where = *Rotary(config).to(device)(positions, dtype), self.cache.layer(0, positions)
        return (x, residual, *where) if workload.part == "block" else (x, *where)

    @property
    def weights(self) -> int:
        """Bytes."""
        return sum(weight.nbytes for weight in self.module.parameters())

    def rewind(self) -> None:
        """The cache as it was before a call, in which a model counts the new tokens as stored."""
        assert self.cache is not None
        self.cache.lengths.fill_(self.workload.context)
        self.cache.longest = self.workload.context

    def call_of(self, choice: str, compile: bool) -> Callable[[], tuple[Tensor, ...]]:
        """The timed call. Raises ValueError or BackendUnavailable for `choice`."""
        shared = {id(tensor): tensor for tensor in [*self.module.parameters(), *self.module.buffers()]}
        module = copy.deepcopy(self.module, shared).use(choice)

        def forward(*arguments):
            return module(*arguments)

        def next_token(input_ids, cache):
            return module.lm_head(module.hidden(input_ids, cache)[:, -1])

        counts = self.workload.level == "model"  # what it stores in the cache
        function = next_token if counts else forward
        if compile:
            function = compiled(_with_code_of_its_own(function))

        def call() -> tuple[Tensor, ...]:
            with torch.no_grad():
                if counts:
                    self.rewind()
                outputs = function(*self.arguments)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return call

    def results(self, call: Callable[[], tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """What a call returns, and the keys and values that it stores. In their place is NaN before."""
        cached = {} if self.cache is None else {"keys": self.cache.k, "values": self.cache.v}
        stored = {name: tensor[..., self.workload.context :, :] for name, tensor in cached.items()}
        for tensor in stored.values():
            tensor.fill_(math.nan)
        outputs = dict(zip(("output", "residual"), call()))
        return outputs | {name: tensor.clone() for name, tensor in stored.items()}

    def check(self, results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        """Raise WrongResult unless `results` are about those of torch eager.

        Rounding differs from one implementation to the next, and grows from layer to layer: compared is the size of the
        difference as a whole, not element by element, and the tests hold each implementation to its own bound."""
        tolerance = TOLERANCE[self.workload.torch_dtype]
        for name, want in expected.items():
            off = float(_size(results[name] - want) / _size(want))
            if not off <= tolerance:  # so that NaN is wrong
                raise WrongResult(
                    f"{name} is off torch eager's by {off:.2g} of its size; expected at most {tolerance:g}"
                )

    def implementations(self, choice: str, device: torch.device) -> dict[str, registry.Implementation]:
        """{operator: what `choice` comes to on `device`} for the operators that are called.

        Raises BackendUnavailable for one that cannot run, or if `choice` names operators, and none of these is called.
        """
        operators = {call.operator for call in self.workload.calls}
        named = set(registry.parse_choice(choice)) - {""}
        if named and not named & operators:
            raise registry.BackendUnavailable(f"{self.workload.part} calls none of {', '.join(sorted(named))}")
        return {op: registry.resolve(op, choice, device).implementation for op in sorted(operators)}

    def check_ran(self, trace: list[registry.Call], chosen: dict[str, registry.Implementation], compile: bool) -> None:
        """Raise NotRun unless `trace`, of one call, holds what was chosen, as often as it is called, and nothing else.

        Of compiled calls a trace does not hold PyTorch's own functions, which the compiler has taken apart.
        """
        expected = Counter(
            {
                (op, str(chosen[op])): calls
                for op, calls in _calls_by_operator(self.workload).items()
                if not (compile and chosen[op].function)
            }
        )
        ran = Counter((call.operator, f"{call.backend}:{call.rung}") for call in trace)
        if ran != expected:
            op, implementation = min((ran - expected) or (expected - ran))
            times = f"{ran[op, implementation]} times; expected {expected[op, implementation]}"
            raise NotRun(f"{op} ran on {implementation} {times}")


def _size(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)


def _calls_by_operator(workload: ModelWorkload) -> Counter[str]:
    counts: Counter[str] = Counter()
    for call in workload.calls:
        counts[call.operator] += call.count
    return counts


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _with_code_of_its_own(function: Callable) -> Callable:
    """The same function. torch.compile files what it has compiled under the code object, which all candidates would
    share: each call would then look through the guards of the others first."""
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, closure=function.__closure__
    )


class _Ready(NamedTuple):
    """A candidate that gave the right result on the right implementations."""

    row: ModelRow
    call: Callable[[], tuple[Tensor, ...]]


def run_workload(workload: ModelWorkload, experiment: Experiment, instruments: Instruments) -> list[ModelRow]:
    """A row for every candidate. One that cannot run, is wrong, or impossibly fast has its error and no time."""
    torch._dynamo.reset()
    cost = workload.cost
    floor_us = instruments.ceilings.floor_us(cost)
    everyone = [
        ModelRow(workload, backend, compile, cost.flops, cost.bytes, floor_us)
        for backend in experiment.backends
        for compile in experiment.compile
    ]
    finished: dict[str, ModelRow] = {}
    ready: dict[str, _Ready] = {}
    with ExitStack() as caches:
        try:
            forward = ForwardPass(workload, instruments.device, experiment.seed)
            expected = forward.results(forward.call_of("torch", compile=False))
        except torch.cuda.OutOfMemoryError as error:
            return [replace(row, error=timing.first_line(error)) for row in everyone]
        everyone = [replace(row, weights=forward.weights) for row in everyone]
        for row in everyone:
            try:
                ready[row.label] = _prepare(row, forward, expected, instruments, caches)
            except registry.BackendUnavailable as unavailable:
                finished[row.label] = replace(row, error=f"cannot run: {unavailable}")
            except Exception as error:  # whatever a kernel or the compiler raises is this candidate's result
                instruments.synchronize()  # but a GPU that has broken down raises here, and ends the run
                finished[row.label] = replace(row, error=timing.first_line(error))
        try:
            times = timing.measure(
                {label: each.call for label, each in ready.items()},
                sample=instruments.latency,
                min_count=experiment.min_samples,
                max_count=experiment.max_samples,
                cap_s=instruments.cap_s,
            )
            finished |= {label: _finish(each, times[label], instruments) for label, each in ready.items()}
        except torch.cuda.OutOfMemoryError as error:
            finished |= {label: replace(each.row, error=timing.first_line(error)) for label, each in ready.items()}
    return [finished[row.label] for row in everyone]


def _prepare(
    row: ModelRow,
    forward: ForwardPass,
    expected: dict[str, Tensor],
    instruments: Instruments,
    caches: ExitStack,
) -> _Ready:
    """Call the candidate for the first time, and check what it returns and what ran."""
    chosen = forward.implementations(row.backend, instruments.device)
    if row.compiled:
        from torch._inductor.utils import fresh_inductor_cache

        caches.enter_context(fresh_inductor_cache())  # until all is timed
    began = time.perf_counter()
    call = forward.call_of(row.backend, row.compiled)
    results = forward.results(call)
    instruments.synchronize()
    compile_s = time.perf_counter() - began
    forward.check(results, expected)
    del results
    with registry.trace() as trace:
        call()
    forward.check_ran(trace, chosen, row.compiled)
    row = replace(
        row,
        implementations={op: str(implementation) for op, implementation in chosen.items()},
        peak_memory=instruments.peak_memory(call),
        compile_s=compile_s,
    )
    return _Ready(row, call)


def _finish(candidate: _Ready, times: timing.Timing, instruments: Instruments) -> ModelRow:
    row, workload = candidate.row, candidate.row.workload
    try:
        timing.check_possible(times, row.floor_us)
    except timing.ImpossibleTiming as impossible:
        return replace(row, error=timing.first_line(impossible))
    calls = min(GRAPH_CALLS, math.ceil(GRAPH_US / times.median_us))
    graph_us, reason = instruments.graph_time(candidate.call, calls)
    return replace(
        row,
        fingerprint=workload.fingerprint(row.backend, row.implementations, instruments.environment.launchers_gpu),
        timing=times,
        graph_us=graph_us,
        tokens_per_s=workload.batch * workload.new / times.median_us * 1e6,
        tflops=row.flops / times.median_us / 1e6,
        fraction=row.floor_us / times.median_us,
        notes=(f"graph: {reason}",) if reason else (),
    )
