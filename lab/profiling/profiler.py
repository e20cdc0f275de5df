"""Where the time of a model goes: torch.profiler with ranges named after modules and operators."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from lab.backends.implementation import Call, ranges
from lab.backends.triton.runtime import INTERPRETED
from lab.benchmark.timing import CannotTime
from lab.core.model import Module
from lab.files import replacing

# As `record_function`, but to the profiler an operation and not a remark: kernels that are launched past PyTorch, ours
# among them, are then known to be this range's.
_Range = torch._C._profiler._RecordFunctionFast

OPERATOR, MODULE = "operator: ", "module: "
ELSEWHERE = "outside of the operators"
_NODE = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class OperatorTime:
    """Time of one operator's pass on one rung, over all calls of a step.

    us: microseconds a step, of the GPU where there is one, else of the CPU. share: of the step's total of those.
    calls: a step. The row of `ELSEWHERE` holds what belongs to no operator: its other names are empty, its calls 0.
    """

    operator: str
    backend: str
    rung: str
    direction: str
    calls: float
    us: float
    share: float


@dataclass(frozen=True)
class Profile:
    """device: "cuda" or "cpu", whose time the rows hold. rows: the longest first. us: total a step."""

    device: str
    rows: tuple[OperatorTime, ...]

    @property
    def us(self) -> float:
        return sum(row.us for row in self.rows)


def profile(model: Module, step: Callable[[], object], steps: int = 3, trace: Path | None = None) -> Profile:
    """Run `step`, which calls `model`, twice to warm up and then `steps` times under torch.profiler.

    trace: where to write a Chrome trace (gzipped JSON: open it in https://ui.perfetto.dev), if anywhere.
    On a CUDA build the ranges are NVTX ranges too, for Nsight Systems. Raises CannotTime for a model that runs in
    Triton's interpreter.
    """
    if INTERPRETED and any(runs.implementation.backend == "triton" for _, _, runs in model.placements()):
        raise CannotTime("the model runs in Triton's interpreter here: a profile would be one of Python")
    on_gpu = next(model.parameters()).is_cuda
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(2):
        step()
    # acc_events: there is one cycle, and so no events to lose; without it some versions of PyTorch warn of that.
    with named_ranges(model), torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    if trace is not None:
        with replacing(trace) as path:
            _export(profiler, path)
    return Profile("cuda" if on_gpu else "cpu", _rows(profiler.events(), steps, on_gpu))


def mark(model: Module, step: Callable[[], object]) -> None:
    """Run `step`, which calls `model`, twice to warm up, and then once for whoever looks on: in named ranges, between
    cudaProfilerStart and cudaProfilerStop. `nsys --capture-range=cudaProfilerApi` and `ncu --profile-from-start off`
    take that step alone. Needs a GPU."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with named_ranges(model):
        torch.cuda.profiler.start()
        step()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


@contextmanager
def named_ranges(model: nn.Module) -> Iterator[None]:
    """Inside the block, every module of `model` and every operator that the registry runs is a range of torch.profiler
    and, on a CUDA build, of NVTX."""
    open_ranges: list[AbstractContextManager] = []

    def enter(name: str) -> None:
        open_ranges.append(_range(name))
        open_ranges[-1].__enter__()

    def leave() -> None:
        open_ranges.pop().__exit__(None, None, None)

    hooks = []
    for name, module in model.named_modules():
        label = f"{MODULE}{name or type(module).__name__}"
        hooks.append(module.register_forward_pre_hook(lambda *_, label=label: enter(label)))
        hooks.append(module.register_forward_hook(lambda *_: leave()))
    try:
        with ranges(lambda call: _range(f"{OPERATOR}{' '.join(call)}")):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _range(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_Range(name))
        if torch.version.cuda and torch.cuda.is_available():
            stack.enter_context(torch.cuda.nvtx.range(name))
        yield


def _rows(events: Iterable[FunctionEvent], steps: int, on_gpu: bool) -> tuple[OperatorTime, ...]:
    on_cpu = [event for event in events if event.device_type == DeviceType.CPU]
    # An operation that made a node of the backward graph has the node's number. Those that came before it and made none
    # have it too: the last one counts.
    maker = {
        (event.thread, event.sequence_nr): event
        for event in sorted(on_cpu, key=lambda event: event.time_range.start)
        if event.sequence_nr >= 0 and _above(event, _NODE) is None
    }
    us: dict[Call | None, float] = defaultdict(float)
    calls: dict[Call | None, int] = defaultdict(int)
    for event in on_cpu:
        call = _call_of(event, maker)
        us[call] += sum(kernel.duration for kernel in event.kernels) if on_gpu else event.self_cpu_time_total
        calls[call] += event.name.startswith(OPERATOR)
    total = sum(us.values())
    for call in us:  # of PyTorch's own functions, a backward pass is as many nodes as it likes
        if call is not None and call.direction == "backward" and not calls[call]:
            calls[call] = calls[call._replace(direction="forward")]
    rows = [
        OperatorTime(*(call or (ELSEWHERE, "", "", "")), calls[call] / steps, us[call] / steps, us[call] / total)
        for call in us
    ]
    return tuple(sorted(rows, key=lambda row: -row.us))


def _call_of(event: FunctionEvent, maker: dict[tuple[int, int], FunctionEvent]) -> Call | None:
    """The operator's pass that an event belongs to. PyTorch's own functions have no backward pass of ours: what the
    nodes of the backward graph do is theirs if their forward pass made the node."""
    if inside := _above(event, OPERATOR):
        return Call(*inside.name.removeprefix(OPERATOR).split())
    node = _above(event, _NODE)
    made = node and maker.get((node.fwd_thread, node.sequence_nr))
    if made and (inside := _above(made, OPERATOR)):
        return Call(*inside.name.removeprefix(OPERATOR).split())._replace(direction="backward")
    return None


def _above(event: FunctionEvent, prefix: str) -> FunctionEvent | None:
    """The innermost range named so that the event is inside of, or is."""
    up: FunctionEvent | None = event
    while up is not None and not up.name.startswith(prefix):
        up = up.cpu_parent
    return up


def _export(profiler: torch.profiler.profile, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(path, "wb") as target:
            shutil.copyfileobj(source, target)
