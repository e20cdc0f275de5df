"""Measure forward passes of a model, of a block and of a layer, and training steps: every choice of backends, eager and
compiled."""

from __future__ import annotations

import copy
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch._dynamo
from torch import Tensor

from lab.backends import registry
from lab.backends.implementation import BackendUnavailable, Call, Implementation, trace
from lab.benchmark import timing
from lab.benchmark.candidates import TOLERANCE, WrongResult
from lab.benchmark.models import ModelRow, ModelWorkload
from lab.benchmark.peers import PeerAbsent, as_backend, compiled
from lab.core.cache import KVCache
from lab.core.model import LLM, Block, Module, Rotary
from lab.training.config import Optimizer as Settings
from lab.training.optimizer import Optimizer

if TYPE_CHECKING:
    from lab.benchmark.config import Experiment
    from lab.benchmark.instruments import Instruments

METHOD = (
    "A model, a block or a layer is timed as its caller sees it, by the clock on the wall: after a clear of L2, from "
    "the call, under no_grad, until the GPU has done all of it, launches included. Prefill puts prompts into an empty "
    "KV cache; decode puts one token of each sequence behind random keys and values, each time in the same place. A "
    "model's output head sees the last token of each sequence; the pick of the next token is not timed. Weights are "
    "random, and the same for every candidate. Compiled is torch.compile in its default mode, one graph for fixed "
    "shapes, its first call with empty caches. Training is a whole step: the loss, its backward pass, and clipping and "
    "AdamW in float32, with a learning rate of 0, so that every step is on the same weights; of it, the loss is "
    "compiled. Inside a CUDA graph nothing is launched and L2 is warm; those graphs are replayed in turns as well."
)
SETTINGS = Settings(lr=0.0, min_lr=0.0, warmup=0, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0)
GRAPH_US = 2000.0  # a CUDA graph holds as many calls as take about that long


class NotRun(RuntimeError):
    """Other implementations ran than the choice asks for; the message says which."""


class Task(ABC):
    """What every candidate on one workload does, with the same random weights and inputs."""

    workload: ModelWorkload

    @property
    @abstractmethod
    def weights(self) -> int:
        """Bytes (`ModelRow.weights`)."""

    @abstractmethod
    def call_of(self, choice: str, compile: bool) -> Callable[[], tuple[Tensor, ...]]:
        """The timed call. Raises ValueError or BackendUnavailable for `choice`."""

    @abstractmethod
    def results(self, call: Callable[[], tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """What a call computes, by name: its outputs, and what it leaves behind."""

    def check(self, results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        """Raise WrongResult unless `results` are about those of torch eager.

        Rounding differs from one implementation to the next, and grows from layer to layer, forward and then backward:
        compared is the size of the difference as a whole, not element by element, and the tests hold each
        implementation to its own bound."""
        tolerance = TOLERANCE[self.workload.torch_dtype] * (1 if self.workload.direction == "forward" else 3)
        for name, want in expected.items():
            off = float(_size(results[name] - want) / _size(want))
            if not off <= tolerance:  # so that NaN is wrong
                raise WrongResult(
                    f"{name} is off torch eager's by {off:.2g} of its size; expected at most {tolerance:g}"
                )

    def implementations(self, choice: str, device: torch.device) -> dict[str, Implementation]:
        """{operator: what `choice` comes to on `device`} for the operators that are called.

        Raises BackendUnavailable for one that cannot run, or if `choice` names operators, and none of these is called.
        """
        operators = {call.operator for call in self.workload.calls}
        named = set(registry.parse_choice(choice)) - {""}
        if named and not named & operators:
            raise BackendUnavailable(f"{self.workload.part} calls none of {', '.join(sorted(named))}")
        return {op: registry.resolve(op, choice, device).implementation for op in sorted(operators)}

    def check_ran(self, trace: list[Call], chosen: dict[str, Implementation], compile: bool) -> None:
        """Raise NotRun unless `trace`, of one call, holds what was chosen, as often as it is called, and nothing else.

        Of PyTorch's own functions a trace holds the forward pass alone; of compiled calls nothing, because the compiler
        has taken them apart.
        """
        expected: Counter[tuple[str, str, str]] = Counter()
        for op, calls in _calls_by_operator(self.workload).items():
            directions = ["forward"] if self.workload.direction == "forward" else ["forward", "backward"]
            if chosen[op].function:
                directions = [] if compile else ["forward"]
            expected.update({(op, str(chosen[op]), direction): calls for direction in directions})
        ran = Counter((call.operator, f"{call.backend}:{call.rung}", call.direction) for call in trace)
        if ran != expected:
            op, implementation, direction = which = min((ran - expected) or (expected - ran))
            times = f"{ran[which]} times; expected {expected[which]}"
            raise NotRun(f"{op} {direction} ran on {implementation} {times}")


class ForwardPass(Task):
    """A module, what it is called with, and its cache.

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
        _draw(self.module.parameters(), generator)
        self.cache = None
        if part in ("model", "block", "self_attn"):
            layers = config.num_hidden_layers if part == "model" else 1
            shape = replace(config, num_hidden_layers=layers)
            self.cache = KVCache(shape, batch, context + new, device=device, dtype=dtype)
            for k, v in zip(self.cache.k, self.cache.v, strict=True):
                k.normal_(generator=generator)
                # The mean of so many random values would be next to nothing beside the rest.
                v.normal_(std=math.sqrt(context + new), generator=generator)
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
        return _nbytes(self.module.parameters())

    def rewind(self) -> None:
        """The cache as it was before a call, in which a model counts the new tokens as stored."""
        assert self.cache is not None
        self.cache.lengths.fill_(self.workload.context)
        self.cache.longest = self.workload.context

    def call_of(self, choice: str, compile: bool) -> Callable[[], tuple[Tensor, ...]]:
        module = _sharing(self.module, choice)

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
        stored = {name: [each[..., self.workload.context :, :] for each in layers] for name, layers in cached.items()}
        for layer in itertools.chain(*stored.values()):
            layer.fill_(math.nan)
        outputs = dict(zip(("output", "residual"), call()))
        return outputs | {name: torch.stack(layers) for name, layers in stored.items()}


class TrainingStep(Task):
    """A step of training a model on random tokens. The learning rate is 0: all work is done, and each call does the
    same."""

    def __init__(self, workload: ModelWorkload, device: torch.device, seed: int) -> None:
        self.workload = workload
        config, generator = workload.config, torch.Generator(device).manual_seed(seed)
        with device:
            self.model = LLM(config)
        _draw(self.model.parameters(), generator)
        self.optimizer = Optimizer(self.model, workload.torch_dtype, SETTINGS)
        size = (workload.batch, workload.tokens + 1)
        tokens = torch.randint(config.vocab_size, size, generator=generator, device=device)
        self.arguments = tokens[:, :-1], tokens[:, 1:]

    @property
    def weights(self) -> int:
        own = {id(weight): weight for weight in [*self.model.parameters(), *self.optimizer.weights.values()]}
        return _nbytes(own.values()) + 2 * _nbytes(self.optimizer.weights.values())

    def call_of(self, choice: str, compile: bool) -> Callable[[], tuple[Tensor, ...]]:
        module = _sharing(self.model, choice)

        def loss_of(input_ids, target):
            return module.loss(input_ids, target)

        function = compiled(_with_code_of_its_own(loss_of)) if compile else loss_of

        def call() -> tuple[Tensor, ...]:
            loss = function(*self.arguments)
            loss.backward()
            self.optimizer.take_gradients()
            return loss.detach(), self.optimizer.step(0.0)

        return call

    def results(self, call: Callable[[], tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """The loss, the norm of its gradient, and the gradients as AdamW takes them, scaled to the norm allowed.

        Raises WrongResult for one that is missing or not finite, before it gets into the weights, which all candidates
        share."""
        self.model.zero_grad()  # what a candidate before left, if it raised
        self.optimizer.adamw.zero_grad()
        results: dict[str, Tensor] = {}

        def keep(*_) -> None:
            for name, weight in self.optimizer.weights.items():
                if weight.grad is None or not weight.grad.isfinite().all():
                    raise WrongResult(f"the gradient of {name} is missing or not finite")
                results[f"the gradient of {name}"] = weight.grad.clone()

        hook = self.optimizer.adamw.register_step_pre_hook(keep)
        try:
            results["loss"], results["the norm of the gradient"] = call()
        finally:
            hook.remove()
        return results


def _draw(weights: Iterable[Tensor], generator: torch.Generator) -> None:
    with torch.no_grad():
        for weight in weights:
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _sharing(module: Module, choice: str) -> Module:
    """The module on `choice`, with the same weights and buffers."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, shared).use(choice)


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
    with ExitStack() as until_timed:
        for peer in {row.backend for row in everyone if row.of_peer}:
            try:
                until_timed.enter_context(as_backend(peer, {call.operator for call in workload.calls}))
            except PeerAbsent as absent:
                rows = [row for row in everyone if row.backend == peer]
                finished |= {row.label: replace(row, error=f"absent: {absent}") for row in rows}
        try:
            kind = TrainingStep if workload.level == "training" else ForwardPass
            task = kind(workload, instruments.device, experiment.seed)
            expected = task.results(task.call_of("torch", compile=False))
        except torch.cuda.OutOfMemoryError as error:
            return [replace(row, error=timing.first_line(error)) for row in everyone]
        everyone = [replace(row, weights=task.weights) for row in everyone]
        for row in everyone:
            if row.label in finished:
                continue
            try:
                ready[row.label] = _prepare(row, task, expected, instruments, until_timed)
            except BackendUnavailable as unavailable:
                finished[row.label] = replace(row, error=f"cannot run: {unavailable}")
            except Exception as error:  # whatever a kernel or the compiler raises is this candidate's result
                instruments.synchronize()  # but a GPU that has broken down raises here, and ends the run
                finished[row.label] = replace(row, error=timing.first_line(error))
        del expected
        try:
            times = timing.measure(
                {label: each.call for label, each in ready.items()},
                sample=instruments.latency,
                min_count=experiment.min_samples,
                max_count=experiment.max_samples,
                cap_s=instruments.cap_s,
            )
            graphs = _graph_times(ready, times, workload, instruments)
            finished |= {
                label: _finish(each, times[label], graphs[label], instruments) for label, each in ready.items()
            }
        except torch.cuda.OutOfMemoryError as error:
            finished |= {label: replace(each.row, error=timing.first_line(error)) for label, each in ready.items()}
    return [finished[row.label] for row in everyone]


def _prepare(
    row: ModelRow,
    task: Task,
    expected: dict[str, Tensor],
    instruments: Instruments,
    until_timed: ExitStack,
) -> _Ready:
    """Call the candidate for the first time, and check what it returns and what ran."""
    choice = row.backend
    if row.of_peer:
        choice = registry.choice_of(row.backend, {call.operator for call in row.workload.calls})
    chosen = task.implementations(choice, instruments.device)
    if row.compiled:
        from torch._inductor.utils import fresh_inductor_cache

        until_timed.enter_context(fresh_inductor_cache())
    began = time.perf_counter()
    call = task.call_of(choice, row.compiled)
    results = task.results(call)
    instruments.synchronize()
    compile_s = time.perf_counter() - began
    task.check(results, expected)
    del results
    with trace() as calls:
        call()
    task.check_ran(calls, chosen, row.compiled)
    row = replace(
        row,
        implementations={op: str(implementation) for op, implementation in chosen.items()},
        peak_memory=instruments.peak_memory(call),
        compile_s=compile_s,
    )
    return _Ready(row, call)


def _graph_times(
    ready: dict[str, _Ready], times: dict[str, timing.Timing], workload: ModelWorkload, instruments: Instruments
) -> dict[str, timing.GraphTime]:
    if workload.level == "training":
        return dict.fromkeys(ready, timing.GraphTime(None, "AdamW is not captured"))
    each = {label: min(timing.GRAPH_CALLS, math.ceil(GRAPH_US / times[label].median_us)) for label in ready}
    return instruments.graph_times({label: (candidate.call, each[label]) for label, candidate in ready.items()})


def _finish(candidate: _Ready, times: timing.Timing, graph: timing.GraphTime, instruments: Instruments) -> ModelRow:
    row, workload = candidate.row, candidate.row.workload
    try:
        timing.check_possible(times, row.floor_us)
    except timing.ImpossibleTiming as impossible:
        return replace(row, error=timing.first_line(impossible))
    gpu = instruments.environment.launchers_gpu
    return replace(
        row,
        fingerprint=None if row.of_peer else workload.fingerprint(row.backend, row.implementations, gpu),
        timing=times,
        graph_us=graph.us,
        tokens_per_s=workload.batch * workload.new / times.median_us * 1e6,
        tflops=row.flops / times.median_us / 1e6,
        fraction=row.floor_us / times.median_us,
        notes=(f"graph: {graph.reason}",) if graph.reason else (),
    )
