"""Memory that tells on its user.

`Arena` hands out tensors between guard zones: every input, and everything that a learner's function allocates while it
runs. An element that was never written still holds the poison, an access past the end lands in a guard zone, and both
show afterwards, on any device. `Watch` sees more: every launch, and, in Triton's interpreter, every load and store, so
that a wrong address is stopped before it touches memory and the bytes moved are counted.
"""

from __future__ import annotations

import linecache
import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SECTOR = 32  # bytes that device memory moves at a time
GUARD = 4096  # elements before and after every tensor
POISON = -1  # memory that nobody has written, read as an integer: in each floating dtype a NaN of its own kind
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes

_EMPTY = {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
_FILLED = {f"aten::{prefix}{name}" for name in ("zeros", "ones", "full") for prefix in ("", "new_")} | {
    f"aten::{name}_like" for name in ("zeros", "ones", "full")
}


@dataclass(frozen=True)
class Block:
    """A guarded tensor. whole: its storage, guard zones included, as integers of the same size; before: a copy of that
    from before the call (for inputs and filled memory the guards are NaN; for empty memory everything is poison)."""

    name: str
    tensor: Tensor
    whole: Tensor
    before: Tensor

    def changes(self) -> tuple[bool, bool]:
        """(inside the tensor, in the guard zones and the gaps between its rows): has anything changed?"""
        changed = self.whole != self.before
        inside = torch.zeros_like(changed)
        inside.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset()).fill_(True)
        return bool((changed & inside).any()), bool((changed & ~inside).any())


class Arena(TorchDispatchMode):
    """Inside `with arena:` everything allocated by torch's factories lies between guard zones."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []

    def place(self, name: str, values: Tensor, device: torch.device, padding: int = 0, offset: int = 0) -> Tensor:
        """A guarded copy of `values` on `device`: rows `padding` elements further apart than they are long, the first
        one `offset` elements further into the storage."""
        stride = list(values.stride())
        if values.dim() > 1:
            stride[-2] += padding
        return self._guard(name, values, tuple(stride), device, offset, poison=False)

    def _guard(self, name, values, stride, device, offset, poison) -> Tensor:
        extent = 1 + sum((n - 1) * step for n, step in zip(values.shape, stride, strict=True))
        whole = torch.empty(GUARD + offset + extent + GUARD, dtype=values.dtype, device=device)
        bits = whole.view(_INTEGER[values.element_size()])
        bits.fill_(POISON)
        tensor = whole.as_strided(values.shape, stride, GUARD + offset)
        if not poison:
            whole.fill_(math.nan if values.is_floating_point() else -1)
            tensor.copy_(values)
        self.blocks.append(Block(name, tensor, bits, bits.clone()))
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name not in _EMPTY | _FILLED or result.numel() == 0:
            return result
        return self._guard("", result, result.stride(), result.device, 0, poison=name in _EMPTY)


def unwritten(tensor: Tensor) -> Tensor:
    """True where an element of a tensor out of empty memory was never written."""
    return tensor.view(_INTEGER[tensor.element_size()]) == POISON


class OutOfBounds(Exception):
    """A load or store outside the tensors of its launch."""


@dataclass
class Region:
    """The storage of a tensor that a launch was given, and how often each of its elements was read and written."""

    name: str  # the kernel's parameter
    tensor: Tensor
    reads: np.ndarray
    writes: np.ndarray
    valid: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def address(self) -> int:
        return self.tensor.untyped_storage().data_ptr()

    def place_of(self, index: int) -> str:
        """Where element `index` of the storage lies with respect to the tensor, in words."""
        at = index - self.tensor.storage_offset()
        shape = tuple(self.tensor.shape)
        if self.tensor.dim() == 2 and 0 <= at // self.tensor.stride(0) < shape[0]:
            row, column = divmod(at, self.tensor.stride(0))
            return f"{self.name}[{row}, {column}], and a row of {self.name} has {shape[1]} columns"
        if at < 0:
            return f"{-at} elements before {self.name}"
        return f"{self.name} + {at}, and {self.name} has {self.tensor.numel()} elements"


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, object]

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={_brief(value)}" for name, value in self.arguments.items())
        return f"{self.kernel}[{self.grid}]({arguments})"


def _brief(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{','.join(map(str, value.shape))}]"
    return str(value) if not isinstance(value, float) else f"{value:g}"


@dataclass(frozen=True)
class Access:
    """The elements of a region's storage that a load ("reads"), store ("writes") or atomic operation ("updates") of one
    program touched. launch: its number. program: its number in the grid, whose first dimension counts fastest."""

    launch: int
    program: int
    verb: str
    region: Region
    index: np.ndarray


class Watch:
    """What a learner's function launched and, in the interpreter, touched."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.regions: dict[int, Region] = {}  # by address
        self.accesses: list[Access] = []
        self.out_of_bounds: str | None = None
        self.widest = 0  # lanes of the widest load or store
        self.scattered = 1.0  # the most that one of them touches of sectors, over as many as its elements would fill
        self._current: list[Region] = []

    def launched(self, function, arguments: dict[str, object], grid) -> None:
        shown = grid(arguments) if callable(grid) else grid
        self.launches.append(Launch(function.__name__, tuple(shown), arguments))
        self._current = []
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.device.type == "cpu":
                self._allow(name, value)

    def _allow(self, name: str, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        count = storage.nbytes() // tensor.element_size()
        region = self.regions.get(storage.data_ptr())
        if region is None:
            region = Region(name, tensor, np.zeros(count, np.int64), np.zeros(count, np.int64))
            self.regions[storage.data_ptr()] = region
        if region not in self._current:
            region.valid = np.zeros(count, bool)
            self._current.append(region)
        valid = torch.from_numpy(region.valid)
        valid.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)

    def touched(self, verb: str, program: int, pointers: np.ndarray, mask: np.ndarray) -> None:
        """Count one access (see Access), or raise OutOfBounds."""
        self.widest = max(self.widest, pointers.size)
        addresses = np.unique(pointers[np.broadcast_to(mask, pointers.shape)]).astype(np.int64)
        for region in self._current:
            size = region.tensor.element_size()
            index = (addresses - region.address) // size
            inside = (index >= 0) & (index < region.valid.size)
            inside[inside] = region.valid[index[inside]]
            if inside.any():
                sectors = np.unique((addresses[inside] - region.tensor.data_ptr()) // SECTOR).size
                self.scattered = max(self.scattered, sectors * SECTOR / (inside.sum() * size))
            if verb != "writes":
                region.reads[index[inside]] += 1
            if verb != "reads":
                region.writes[index[inside]] += 1
            if inside.any():
                self.accesses.append(Access(len(self.launches) - 1, program, verb, region, index[inside]))
            addresses = addresses[~inside]
        if addresses.size:
            nearest = min(self._current, key=lambda region: abs(region.tensor.data_ptr() - int(addresses[0])))
            index = (int(addresses[0]) - nearest.address) // nearest.tensor.element_size()
            self.out_of_bounds = (
                f"{learner_line()}\n{verb} {addresses.size} of {pointers.size} elements outside every tensor of the "
                f"launch; the first is {nearest.place_of(index)}"
            )
            raise OutOfBounds(self.out_of_bounds)

    def elements(self, tensor: Tensor, *verbs: str) -> dict[tuple[int, int], np.ndarray]:
        """(launch, program) -> the elements of `tensor` that it touched, each once, as numbers in row-major order."""
        touched: dict[tuple[int, int], list[np.ndarray]] = {}
        region = self.regions.get(tensor.untyped_storage().data_ptr())
        for access in self.accesses:
            if access.region is region and access.verb in verbs:
                touched.setdefault((access.launch, access.program), []).append(access.index)
        if region is None:
            return {}
        number = np.full(region.valid.size, -1)
        view = torch.from_numpy(number).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        view.copy_(torch.arange(tensor.numel()).view(tensor.shape))
        found = {program: np.unique(number[np.concatenate(parts)]) for program, parts in touched.items()}
        return {program: elements[elements >= 0] for program, elements in found.items()}


@contextmanager
def watching() -> Iterator[Watch]:
    """Watch every Triton launch in the block; in the interpreter every load and store too.

    Where the interpreter is kinder than a GPU it becomes as strict: what a masked load leaves undefined (no `other`) is
    NaN and not zero, a Python float that is no tl.constexpr arrives rounded to float32, and tl.dot in TF32 sees the
    first 10 of a float32's 23 bits after the point.
    """
    from triton._C.libtriton.ir import INPUT_PRECISION
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
    from triton.runtime.jit import JITFunction

    watch = Watch()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    atomic_rmw, atomic_cas = InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.create_atomic_cas
    dot = InterpreterBuilder.create_dot

    def program(builder) -> int:
        (x, y, z), (size_x, size_y, _) = builder.grid_idx, builder.grid_dim
        return x + size_x * (y + size_y * z)

    def watched_load(builder, pointers, mask, other, *rest):
        watch.touched("reads", program(builder), pointers.data, mask.data)
        loaded = load(builder, pointers, mask, other, *rest)
        if other is None and loaded.data.dtype.kind == "f":
            loaded = TensorHandle(np.where(mask.data, loaded.data, np.array(np.nan, loaded.data.dtype)), loaded.dtype)
        return loaded

    def watched_store(builder, pointers, value, mask, *rest):
        watch.touched("writes", program(builder), pointers.data, mask.data)
        return store(builder, pointers, value, mask, *rest)

    def watched_rmw(builder, operation, pointers, value, mask, *rest):
        watch.touched("updates", program(builder), pointers.data, mask.data)
        return atomic_rmw(builder, operation, pointers, value, mask, *rest)

    def watched_cas(builder, pointers, *rest):
        watch.touched("updates", program(builder), pointers.data, np.array(True))
        return atomic_cas(builder, pointers, *rest)

    def watched_dot(builder, a, b, d, precision, *rest):
        if precision == INPUT_PRECISION.TF32 and a.data.dtype == np.float32:
            a, b = (
                TensorHandle((each.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), each.dtype)
                for each in (a, b)
            )
        return dot(builder, a, b, d, precision, *rest)

    interpreted_run, compiled_run = InterpretedFunction.run, JITFunction.run

    def watched_interpreted_run(function, *args, grid, warmup, **kwargs):
        arguments = dict(zip(function.arg_names, args, strict=False)) | kwargs
        annotations = function.fn.__annotations__
        for name, value in arguments.items():
            if isinstance(value, float) and "constexpr" not in str(annotations.get(name)):
                arguments[name] = float(np.float32(value))
        watch.launched(function, arguments, grid)
        return interpreted_run(function, grid=grid, warmup=warmup, **arguments)

    def watched_compiled_run(function, *args, grid, warmup, **kwargs):
        watch.launched(function, dict(zip(function.arg_names, args, strict=False)) | kwargs, grid)
        return compiled_run(function, *args, grid=grid, warmup=warmup, **kwargs)

    with ExitStack() as stack:
        for owner, name, new in (
            (InterpreterBuilder, "create_masked_load", watched_load),
            (InterpreterBuilder, "create_masked_store", watched_store),
            (InterpreterBuilder, "create_atomic_rmw", watched_rmw),
            (InterpreterBuilder, "create_atomic_cas", watched_cas),
            (InterpreterBuilder, "create_dot", watched_dot),
            (InterpretedFunction, "run", watched_interpreted_run),
            (JITFunction, "run", watched_compiled_run),
        ):
            stack.enter_context(patch.object(owner, name, new))
        stack.enter_context(np.errstate(all="ignore"))
        yield watch


def is_learners(filename: str) -> bool:
    """Whether a stack frame of that file is the learner's, and not a library's or ours."""
    import triton

    import lab

    roots = [os.path.dirname(os.path.abspath(str(module.__file__))) for module in (lab, torch, triton, np)]
    stdlib = os.path.dirname(os.__file__)
    return not filename.startswith((*(root + os.sep for root in roots), stdlib + os.sep, "<frozen", "<string"))


def source_line(filename: str, line: int) -> str:
    """`line 12: y = ...`"""
    return f"line {line}: {linecache.getline(filename, line).strip()}"


def raised(error: BaseException) -> str:
    """The error, and the last of the learner's own lines on the way to it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_learners(f.filename)]
    where = [source_line(frame.filename, frame.lineno or 0) for frame in frames[-2:]]
    return "\n".join([*where, f"{type(error).__name__}: {error}".rstrip(": ")])


def learner_line() -> str:
    """The innermost line of the learner's that is running."""
    frame = sys._getframe()
    while frame.f_back is not None and not is_learners(frame.f_code.co_filename):
        frame = frame.f_back
    return source_line(frame.f_code.co_filename, frame.f_lineno)
