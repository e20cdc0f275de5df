"""A kernel launch as it was asked for, and the switch that makes launchers note it instead of running it.

What an implementation would launch, on any machine: `lab.backends.dry_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Binary:
    """A compiled kernel. threads: of a block; dynamic_shared: bytes of a block, given at launch."""

    cubin: bytes
    threads: int
    dynamic_shared: int


@dataclass(frozen=True)
class Launch:
    """One launch, as it was asked for.

    kernel: its name. language: "triton" or "cuda". sources: the text of the kernel and of what it calls. grid: blocks.
    arguments: tensors, numbers and compile-time constants by name. options: what else shapes the launch, such as
    num_warps. compile: the binary for the GPU that was assumed; raises what the compiler raises.
    """

    kernel: str
    language: str
    sources: tuple[str, ...]
    grid: tuple[int, ...]
    arguments: Mapping[str, object]
    options: Mapping[str, object]
    compile: Callable[[], Binary] = field(repr=False, compare=False)

    def __str__(self) -> str:
        """The kernel, its grid, and the constants that were chosen for it: "f on 132, BLOCK 1024, num_warps 4"."""
        chosen = {name: value for name, value in self.arguments.items() if name.isupper()} | dict(self.options)
        grid = " x ".join(map(str, self.grid))
        return ", ".join([f"{self.kernel} on {grid}", *(f"{name} {value}" for name, value in chosen.items())])


_noted: list[Launch] | None = None


def noting() -> bool:
    """Whether launches are noted now, and not run."""
    return _noted is not None


def note(launch: Launch) -> None:
    assert _noted is not None
    _noted.append(launch)


@contextmanager
def collected() -> Iterator[list[Launch]]:
    """Launchers that ask `noting` note their launches here inside the block."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before
