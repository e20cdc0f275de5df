"""Wrong answers to the exercises, a module a chapter: TRITON, CUDA_COMPILED (caught with no GPU) and CUDA_RUN (only on
one)."""

from typing import NamedTuple


class Wrong(NamedTuple):
    """In the solution of `exercise`, the text `old`, which occurs there, is replaced by `new` everywhere. property: the
    one that must catch it."""

    exercise: str
    property: str
    mistake: str
    old: str
    new: str
