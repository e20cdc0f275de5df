"""What an exercise is, and how a learner's function is held against it.

An exercise is a list of *properties*, the simplest first. Each has cases, the smallest first, made so that a function
for which all earlier properties hold can fail there for one reason only: its name is then what is wrong. (A formula is
tried at column counts that need no mask, masks at contiguous rows, row strides with what is left.)
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lab.backends.cuda.compile import CompileError
from lab.backends.dry_run import dry_run
from lab.backends.hardware import ARCHITECTURES, assume, default_device, gpu_of
from lab.check.memory import Arena, Block, Launch, Watch, raised, unwritten, watching
from lab.check.report import COMPILED, FAILED, PASSED, Report

if TYPE_CHECKING:
    from lab.check.calculation import Calculation

SCATTERED = 2.0  # times the sectors that its elements would fill may a load or store touch: neighbours may be unaligned
SCRATCH = 0.1  # of the budget's bytes: what may be moved to and from memory that is neither argument nor output


class Kind(Enum):
    """What can be wrong with one call."""

    DOES_NOT_COMPILE = auto()
    RAISED = auto()
    ACCEPTED = auto()  # what should have raised did not
    NO_LAUNCH = auto()  # no kernel was launched
    OUTPUTS = auto()  # not the right number of tensors, or a wrong shape, dtype or device
    MODIFIED = auto()  # an input
    ALIASED = auto()  # an output shares memory with an input or with an earlier call's output
    OUT_OF_BOUNDS = auto()
    UNWRITTEN = auto()
    UNDEFINED = auto()  # NaN where a number is expected
    WRONG = auto()
    WIDE = auto()  # a load or store wider than the block given
    SCATTERED = auto()  # a load or store that touches more sectors than it needs
    PROGRAMS = auto()  # other programs than asked for: their number, or what each of them does
    ORDER = auto()  # a program does what another one is said to do
    SCRATCH = auto()  # memory between two launches of another size or dtype than asked for, or with two writers
    NOT_SHARED = auto()  # a CUDA kernel with less shared memory than asked for
    TRAFFIC = auto()  # more bytes moved than the budget allows
    SLOW = auto()  # a smaller fraction of the bandwidth, or of PyTorch's speed, than the budget asks for


ON_REQUEST = frozenset(
    {Kind.WIDE, Kind.SCATTERED, Kind.PROGRAMS, Kind.ORDER, Kind.SCRATCH, Kind.NOT_SHARED, Kind.TRAFFIC, Kind.SLOW}
)


class Violation(NamedTuple):
    kind: Kind
    text: str


@dataclass(frozen=True)
class Case:
    """One call. shape, dtype: of the operator's inputs. padding: how much further apart the rows of the first matrix
    are than they are long (each further matrix one more). offset: elements before its first. prepare: changes the
    random inputs in place. parameters: the other arguments; `block` bounds the lanes of a load. raises: what the call
    must raise, having changed nothing."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    padding: int = 0
    offset: int = 0
    seed: int = 0
    prepare: Callable[[dict[str, Tensor]], object] | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    raises: type[Exception] | None = None


class Target(NamedTuple):
    """What one output should be, in float64 (an output of integers: in its own dtype), and how far off each element may
    be."""

    value: Tensor
    allowed: Tensor


# (arguments by name, as they were before the call, the learner's outputs by name) -> a target for each output
Expectation = Callable[[dict, dict[str, Tensor]], dict[str, Target]]


@dataclass(frozen=True)
class Property:
    """name: what a failure is called. says: what is demanded. hint: where to look, and never the answer.
    kinds: what counts as a failure (None: everything but those ON_REQUEST). outputs: those looked at (None: all).
    expectation: instead of the exercise's own."""

    name: str
    says: str
    hint: str
    cases: Sequence[Case]
    kinds: frozenset[Kind] | None = None
    outputs: tuple[str, ...] | None = None
    expectation: Expectation | None = None


@dataclass(frozen=True)
class Budget:
    """What may be moved. reads, writes: {tensor: times}; weights and the like, which stay in cache, are left out.
    case: counted in the interpreter. On a GPU, at `gpu_shape` and with `gpu_parameters` in place of the case's:
    `fraction` of a copy's bandwidth for these bytes; or, where arithmetic and not bytes sets the pace, of the speed of
    `peer`, PyTorch's own function of the same arguments, which is a matrix product."""

    reads: Mapping[str, int]
    writes: Mapping[str, int]
    cached: tuple[str, ...]
    case: Case
    gpu_shape: tuple[int, ...]
    fraction: float
    gpu_parameters: Mapping[str, float] = field(default_factory=dict)
    peer: Callable | None = None

    @property
    def on_a_gpu(self) -> str:
        """What is asked for there, by name."""
        return "speed" if self.peer else "bandwidth"

    def __str__(self) -> str:
        times = {1: "once", 2: "twice"}
        parts = [f"{name} is read {times.get(n, f'{n} times')}" for name, n in self.reads.items()]
        parts += [f"{name} is written {times.get(n, f'{n} times')}" for name, n in self.writes.items()]
        return ", ".join(parts)


@dataclass(frozen=True)
class Exercise:
    """name: "rmsnorm.forward". title: one line. inputs(case): the tensor arguments by name, in order, on the CPU.
    outputs: names. expectation: what the outputs should be. budget: None where no bytes are counted. language:
    "triton", "cuda" or "torch", where no kernel is asked for. changes: arguments that are changed in place; the
    expectation has targets for them too. launched: what is wrong with the launches of a call, and with what each
    program touched (which the interpreter alone sees). shared: how many elements of the inputs' dtype a CUDA kernel is
    asked to keep in shared memory."""

    name: str
    title: str
    inputs: Callable[[Case], dict[str, Tensor]]
    outputs: tuple[str, ...]
    expectation: Expectation
    properties: Sequence[Property]
    budget: Budget | None = None
    language: str = "triton"
    changes: tuple[str, ...] = ()
    launched: Callable[[Run, Watch], Iterator[Violation]] | None = None
    shared: int = 0

    def examine(self, fn: Callable) -> Report:
        examination = Examination(self, fn)
        if self.language == "cuda":
            compiled = examination.compile_only()
            if compiled.status == FAILED or examination.device.type != "cuda":
                return compiled
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # thousands of operations on a few elements: threads would only wait for one another
        try:
            return examination.report()
        finally:
            torch.set_num_threads(threads)


@cache
def exercises() -> dict[str, Exercise | Calculation]:
    """All exercises by name: those of every module of `lab.check` that defines EXERCISES."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        for exercise in getattr(importlib.import_module(f"lab.check.{module.name}"), "EXERCISES", ()):
            found[exercise.name] = exercise
    return found


def allowed_error(reference: Tensor, torchs: Tensor, terms: Tensor) -> Target:
    """The error rule: twice PyTorch's own error and four units of roundoff of the terms' sum; a double may be off by
    1e-12 of it, since its reference is no better than itself."""
    if torchs.dtype == torch.float64:
        return Target(reference, 1e-12 * terms)
    info = torch.finfo(torchs.dtype)
    own = (torchs.double() - reference).abs()
    return Target(reference, 2 * own + 2 * info.eps * terms + info.smallest_normal * info.eps)


@dataclass
class Run:
    """One call of the learner's function: what came out, and what is known to be wrong apart from the values."""

    arguments: dict
    layout: str
    outputs: dict[str, Tensor]
    violations: list[Violation]
    launches: list[Launch]


class Examination:
    """One function held against one exercise on the device that is there."""

    def __init__(self, exercise: Exercise, fn: Callable) -> None:
        self.exercise, self.fn = exercise, fn
        self.device = _device(exercise)
        self.runs: dict[int, Run] = {}
        self.earlier: list[Tensor] = []  # kept alive, so that a fresh output cannot get their memory

    def report(self) -> Report:
        held: list[str] = []
        for examined in self.exercise.properties:
            for case in sorted(examined.cases, key=lambda case: torch.Size(case.shape).numel()):
                if case.dtype == torch.bfloat16 and not _has_bfloat16(self.device):
                    continue
                run = self.run(case)
                if violation := self.violation(examined, run):
                    return self.failure(examined, run, violation, held)
            held.append(examined.name)
        if self.exercise.budget is None:
            return Report(self.exercise.name, PASSED, held=held)
        return self.within_budget(self.exercise.budget, held)

    def run(self, case: Case) -> Run:
        if id(case) not in self.runs:
            self.runs[id(case)] = self._call(case)
        return self.runs[id(case)]

    def _call(self, case: Case) -> Run:
        arena = Arena()
        tensors = self.exercise.inputs(case)
        if case.prepare:
            case.prepare(tensors)
        arguments, layout, matrices = {}, [], 0
        for name, values in tensors.items():
            padding = case.padding + matrices if case.padding and values.dim() > 1 else 0
            matrices += values.dim() > 1
            arguments[name] = arena.place(name, values, self.device, padding, case.offset)
            layout.append(_layout(name, arguments[name]))
        arguments |= case.parameters
        layout += [f"{name}={value:g}" for name, value in case.parameters.items()]
        inputs = list(arena.blocks)
        before = {name: arguments[name].clone() for name in self.exercise.changes}
        run = Run(arguments | before, ", ".join(layout), {}, [], [])
        with watching() as watch:
            try:
                with arena:
                    returned = self.fn(**arguments)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                run.launches = watch.launches
                if case.raises and isinstance(error, case.raises):
                    run.violations = [*_changed(inputs)]
                else:
                    run.violations = [_raised(error, watch)]
                return run
        run.launches = watch.launches
        if case.raises:
            run.violations = [Violation(Kind.ACCEPTED, f"nothing was raised; expected {case.raises.__name__}")]
            return run
        run.violations = list(self._judge_call(run, returned, arena, inputs, watch, case))
        run.outputs |= {name: arguments[name] for name in self.exercise.changes if run.outputs}
        return run

    def _judge_call(self, run, returned, arena, inputs, watch, case) -> Iterator[Violation]:
        if self.exercise.language == "triton" and not watch.launches:
            yield Violation(Kind.NO_LAUNCH, "no Triton kernel was launched")
        if wrong := _wrong_outputs(self.exercise, returned, run.arguments, self.device):
            yield Violation(Kind.OUTPUTS, wrong)
            return
        values = returned if isinstance(returned, (tuple, list)) else (returned,)
        run.outputs = dict(zip(self.exercise.outputs, values, strict=True))
        yield from _changed([block for block in inputs if block.name not in self.exercise.changes])
        for block in arena.blocks:
            _, outside = block.changes()
            if outside:
                name = block.name or next(
                    (n for n, t in run.outputs.items() if _shares(t, block.tensor)), "scratch memory"
                )
                yield Violation(Kind.OUT_OF_BOUNDS, f"memory beside {name}, or between its rows, was overwritten")
        for name, output in run.outputs.items():
            for other in (*(block.tensor for block in inputs), *self.earlier):
                if _shares(output, other):
                    owner = next((block.name for block in inputs if block.tensor is other), "an earlier call's output")
                    yield Violation(Kind.ALIASED, f"{name} shares its memory with {owner}")
                    break
        self.earlier += run.outputs.values()
        for name, output in run.outputs.items():
            missing = unwritten(output)
            if missing.any():
                first = ", ".join(map(str, missing.nonzero()[0].tolist()))
                count = f"{int(missing.sum())} of {missing.numel()} elements of {name}"
                yield Violation(Kind.UNWRITTEN, f"{count} were never written; the first is {name}[{first}]")
        if "block" in case.parameters and watch.widest > case.parameters["block"]:
            widest = f"the widest load or store has {watch.widest} lanes"
            yield Violation(Kind.WIDE, f"{widest}; the block given has {case.parameters['block']:g}")
        if watch.scattered > SCATTERED:
            times = f"a load or store touches {watch.scattered:.3g} times the sectors that its elements would fill"
            yield Violation(Kind.SCATTERED, f"{times}; {SCATTERED:g} times are allowed")
        if self.exercise.launched:
            yield from self.exercise.launched(run, watch)
        if (budget := self.exercise.budget) and case is budget.case and watch.regions:
            yield from _over_budget(budget, run, watch)

    def violation(self, examined: Property, run: Run) -> Violation | None:
        """What is wrong with this run as far as this property looks at it."""
        kinds = examined.kinds or frozenset(Kind) - ON_REQUEST
        if found := next((violation for violation in run.violations if violation.kind in kinds), None):
            return found
        if not run.outputs or not kinds & {Kind.WRONG, Kind.UNDEFINED}:
            return None
        targets = (examined.expectation or self.exercise.expectation)(run.arguments, run.outputs)
        compared = [
            _compare(name, run.outputs[name], target)
            for name, target in targets.items()
            if examined.outputs is None or name in examined.outputs
        ]
        return next((violation for violation in compared if violation and violation.kind in kinds), None)

    def failure(self, examined: Property, run: Run, violation: Violation, held: Sequence[str]) -> Report:
        findings = [("smallest case", run.layout)] if run.layout else []
        findings += [("launch", str(run.launches[-1]))] if run.launches else []
        findings += [("found", violation.text)]
        return Report(self.exercise.name, FAILED, examined.name, examined.says, findings, held, hint_text=examined.hint)

    def within_budget(self, budget: Budget, held: list[str]) -> Report:
        if self.device.type == "cuda":
            gpu = gpu_of(self.device)
            if budget.peer and gpu.capability < (8, 0):
                unchecked = [f"{budget.on_a_gpu} (on {gpu.name} Triton has no tensor cores, PyTorch has)"]
                return Report(self.exercise.name, PASSED, held=held, unchecked=unchecked)
            of_peer = f"Runs at {budget.fraction:.0%} of the speed of PyTorch's own kernel at least."
            of_copy = f"Runs at {budget.fraction:.0%} of a copy's bandwidth at least, counted as if {budget}."
            examined = Property(
                budget.on_a_gpu,
                of_peer if budget.peer else of_copy,
                "Is something read or written more often than the budget says? Do neighbouring lanes touch "
                "neighbouring columns? Is the grid large enough to keep every multiprocessor busy, and num_warps "
                "fit for the block?",
                (),
            )
            run, found = self.pace(budget)
            if found:
                return self.failure(examined, run, found, held)
            return Report(self.exercise.name, PASSED, held=[*held, examined.name])
        examined = Property(
            "bytes moved",
            f"Keeps to the budget: {budget}.",
            "Count the loads and stores that each element meets on its way. What is needed again can stay in "
            "registers; what is written need not be read back; two kernels in a row read their input twice.",
            (budget.case,),
            frozenset({Kind.TRAFFIC}),
        )
        run = self.run(budget.case)
        if found := next((violation for violation in run.violations if violation.kind is Kind.TRAFFIC), None):
            return self.failure(examined, run, found, held)
        unchecked = [f"{budget.on_a_gpu} (this machine has no GPU)"]
        return Report(self.exercise.name, PASSED, held=[*held, examined.name], unchecked=unchecked)

    def pace(self, budget: Budget) -> tuple[Run, Violation | None]:
        """Time the function against the budget's peer, or against a copy of as many bytes as the budget has."""
        from lab.benchmark import timing

        parameters = {**budget.case.parameters, **budget.gpu_parameters}
        case = Case(budget.gpu_shape, torch.float16, parameters=parameters)
        arguments = {name: values.to(self.device) for name, values in self.exercise.inputs(case).items()}
        layout = ", ".join(_layout(name, tensor) for name, tensor in arguments.items())
        run = Run(arguments | parameters, layout, {}, [], [])
        peer, name = budget.peer, "PyTorch's kernel"
        if peer is None:
            matrix = next(iter(arguments.values()))
            passes = sum(budget.reads.values()) + sum(budget.writes.values())
            source = torch.empty(passes * matrix.numel() // 2, dtype=matrix.dtype, device=self.device)
            target = torch.empty_like(source)
            peer, name = lambda **_: target.copy_(source), "a copy of as many bytes"
        times = timing.measure({"peer": lambda: peer(**run.arguments), "yours": lambda: self.fn(**run.arguments)})
        fraction = times["peer"].median_us / times["yours"].median_us
        if fraction >= budget.fraction:
            return run, None
        text = (
            f"{times['yours'].median_us:.1f} us, where {name} takes {times['peer'].median_us:.1f} us: "
            f"{fraction:.0%} of its {budget.on_a_gpu}"
        )
        return run, Violation(Kind.SLOW, text)

    def compile_only(self) -> Report:
        """For a CUDA exercise: what can be told without running it."""
        from lab.profiling.resources import resource_usages

        architecture = "sm_80"
        for case in self.exercise.properties[0].cases:
            arguments = self.exercise.inputs(case) | dict(case.parameters)
            layout = ", ".join(_layout(name, value) for name, value in arguments.items() if isinstance(value, Tensor))
            run = Run(arguments, layout, {}, [], [])
            try:
                with assume(ARCHITECTURES[architecture]), dry_run() as launches:
                    self.fn(**arguments)
                usages = [usage for launch in launches for usage in resource_usages(launch.compile())]
            except Exception as error:
                run.violations = [_raised(error, Watch())]
            else:
                if not launches:
                    run.violations = [Violation(Kind.NO_LAUNCH, "no CUDA kernel was launched")]
                elif (shared := max(usage[2] for usage in usages)) < self.exercise.shared * case.dtype.itemsize:
                    wanted = f"what it is asked to keep there takes {self.exercise.shared * case.dtype.itemsize}"
                    run.violations = [
                        Violation(Kind.NOT_SHARED, f"a block has {shared} bytes of shared memory; {wanted}")
                    ]
            for examined in self.exercise.properties:
                if found := self.violation(examined, run):
                    return self.failure(examined, run, found, ())
        seen = {Kind.DOES_NOT_COMPILE, Kind.RAISED, Kind.NO_LAUNCH, Kind.NOT_SHARED}
        unchecked = [each.name for each in self.exercise.properties if not (each.kinds and each.kinds <= seen)]
        return Report(
            self.exercise.name,
            COMPILED,
            findings=[("compiled", f"for {architecture}, in every dtype asked for")],
            unchecked=[*unchecked, *([self.exercise.budget.on_a_gpu] if self.exercise.budget else [])],
        )


def _device(exercise: Exercise) -> torch.device:
    """Triton's interpreter works on the CPU, whatever else is there."""
    if exercise.language != "triton":
        return default_device()
    from lab.backends.implementation import BackendUnavailable
    from lab.backends.triton.runtime import INTERPRETED, unavailable

    device = torch.device("cpu") if INTERPRETED else default_device()
    if reason := unavailable(device):
        raise BackendUnavailable(reason)
    return device


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _layout(name: str, tensor: Tensor) -> str:
    """`x 3x127 float16 (row stride 132)`"""
    text = f"{name} {'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.is_floating_point() and tensor.dim() == 1:
        return f"{text} {tensor.tolist()}"
    if tensor.dim() == 2 and tensor.stride(0) != tensor.shape[1]:
        return f"{text} (row stride {tensor.stride(0)})"
    return text if tensor.is_contiguous() else f"{text} (strides {', '.join(map(str, tensor.stride()))})"


def _changed(inputs: Sequence[Block]) -> Iterator[Violation]:
    for block in inputs:
        if block.changes()[0]:
            yield Violation(Kind.MODIFIED, f"{block.name} has changed")


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _wrong_outputs(exercise: Exercise, returned: object, arguments: dict, device: torch.device) -> str | None:
    """What is wrong with the returned values as Python objects, or None."""
    values = returned if isinstance(returned, (tuple, list)) else (returned,)
    wanted = ", ".join(exercise.outputs)
    if len(values) != len(exercise.outputs):
        return f"returned {len(values)} values; expected {len(exercise.outputs)}: {wanted}"
    shapes = exercise.expectation(arguments, {})
    dtype = next(iter(arguments.values())).dtype
    for name, value in zip(exercise.outputs, values, strict=True):
        if not isinstance(value, Tensor):
            return f"{name} is a {type(value).__name__}; expected a tensor"
        if value.shape != shapes[name].value.shape:
            return f"{name} has shape {tuple(value.shape)}; expected {tuple(shapes[name].value.shape)}"
        wanted_dtype = dtype if shapes[name].value.is_floating_point() else shapes[name].value.dtype
        if value.dtype != wanted_dtype or value.device.type != device.type:
            return f"{name} is {value.dtype} on {value.device}; expected {wanted_dtype} on {device}"
    return None


def _compare(name: str, output: Tensor, target: Target) -> Violation | None:
    value, allowed = target.value, target.allowed
    error = (output.double() - value).abs()
    wrong = ~(error <= allowed)  # a NaN is wrong too
    if not wrong.any():
        return None
    undefined = wrong & output.isnan()
    index = tuple((undefined if undefined.any() else wrong).nonzero()[0].tolist())
    yours, expected = float(output[index]), float(value[index])
    text = (
        f"{name}[{', '.join(map(str, index))}]: yours {yours:.9g}, expected {expected:.9g}, difference "
        f"{yours - expected:.3g} (allowed: {float(allowed[index]):.2g})\n"
        f"{int(wrong.sum())} of {wrong.numel()} elements of {name} are wrong"
    )
    return Violation(Kind.UNDEFINED if undefined.any() else Kind.WRONG, text)


def _raised(error: BaseException, watch: Watch) -> Violation:
    if watch.out_of_bounds:
        return Violation(Kind.OUT_OF_BOUNDS, watch.out_of_bounds)
    while error.__cause__ is not None and type(error).__name__ not in ("CompileError", "CompilationError"):
        error = error.__cause__  # Triton's CompilationError points at the line, its cause does not
    if isinstance(error, CompileError):
        return Violation(Kind.DOES_NOT_COMPILE, _first_error(str(error)))
    return Violation(Kind.RAISED, raised(error))


def _first_error(log: str) -> str:
    """The first error of NVRTC's log; the others often follow from it."""
    log = re.sub(r"\S+\.cu(?=\()", "source", log.partition("compilation log:")[2] or log)
    errors = [part.strip() for part in log.split("\n\n") if "error" in part]
    if errors and "__nv_name_map" in errors[0]:
        return f"the launch asks for a kernel that the source does not have\n{errors[0].splitlines()[0]}"
    return errors[0] if errors else log.strip()


def _over_budget(budget: Budget, run: Run, watch: Watch) -> Iterator[Violation]:
    owners = {**{n: t for n, t in run.arguments.items() if isinstance(t, Tensor)}, **run.outputs}
    allowed = 0
    scratch = 0
    over = []
    for name, tensor in owners.items():
        allowed += tensor.nbytes * (budget.reads.get(name, 0) + budget.writes.get(name, 0))
    for region in watch.regions.values():
        name = next((n for n, tensor in owners.items() if _shares(tensor, region.tensor)), "")
        if name in budget.cached:
            continue
        for verb, counts, limits in (("read", region.reads, budget.reads), ("written", region.writes, budget.writes)):
            if not name:
                scratch += int(counts.sum()) * region.tensor.element_size()
            elif (times := int(counts.sum()) / owners[name].numel()) > limits.get(name, 0):
                over.append(f"{name} is {verb} {times:.3g} times; the budget says {limits.get(name, 0)}")
    for name in budget.writes:
        written = not unwritten(run.outputs[name]).any()
        if written and not any(_shares(run.outputs[name], region.tensor) for region in watch.regions.values()):
            over.append(f"{name} is written by no kernel of yours: what torch moves for it is not in the budget")
    if scratch > SCRATCH * allowed:
        over.append(
            f"{scratch} bytes go to and from memory that is neither argument nor output; the budget has {allowed} "
            "bytes in all, and grants a tenth of that on top"
        )
    if over:
        yield Violation(Kind.TRAFFIC, "\n".join(over))


__all__ = [
    "ON_REQUEST", "Budget", "Case", "Exercise", "Kind", "Property", "Run", "Target", "Violation", "allowed_error",
    "exercises",
]  # fmt: skip
