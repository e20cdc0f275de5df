"""The exercise checks: `lab.check("rmsnorm.forward", fn)` in a notebook, `lab check rmsnorm` in a terminal.

A chapter's exercises are declared in `lab/check/<chapter>.py` as EXERCISES, and found there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.check.progress import Progress
    from lab.check.report import Report

# What an exercise needs (Triton among it) is imported when something is checked: `import lab` imports this module.

_collected: dict[str, Callable] | None = None


def check(name: str | None = None, fn: Callable | None = None) -> Report | Progress | None:
    """Hold `fn` against the exercise `name` ("rmsnorm.forward"). Returns a report, true if everything holds, that names
    the first property that does not, shows where, and has a hint for who wants one: `check(...).hint()`.

    With no arguments it runs nothing, and returns which exercises there are and how far you are with each. A notebook's
    verdicts are kept for that.

    Raises ValueError for an unknown exercise, TypeError for a name without a function, BackendUnavailable where Triton
    can run neither on a GPU nor interpreted.
    """
    from lab.check.exercise import exercises
    from lab.check.progress import progress, remember

    if name is None and fn is None:
        return progress()
    if name not in exercises():
        raise ValueError(f"unknown exercise {name!r}; expected one of {', '.join(exercises())}")
    if fn is None:
        raise TypeError(f"check: fn is None; expected your function for {name}")
    if _collected is not None:
        _collected[name] = fn
        return None
    report = exercises()[name].examine(fn)
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        remember(report)
    return report


@contextmanager
def collecting() -> Iterator[dict[str, Callable]]:
    """Inside the block `check` runs nothing: it notes which function is held against which exercise."""
    global _collected
    before, _collected = _collected, {}
    try:
        yield _collected
    finally:
        _collected = before


def main(arguments: Sequence[str]) -> int:
    """`lab check`: the exit code is 0 if nothing failed, 1 if something did, 2 if it cannot be done as asked."""
    from lab.check import terminal

    return terminal.main(arguments)
