"""An exercise whose answer is a calculation, a function of numbers: what is wrong with it is told by its value."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lab.check.memory import raised
from lab.check.report import FAILED, PASSED, Report


@dataclass(frozen=True)
class Mistake:
    """name: the property that does not hold. says: what is demanded. hint: where to look, and never the answer.
    value: what comes of the mistake instead of the answer, from the same numbers; None where no value tells it."""

    name: str
    says: str
    hint: str
    value: Callable[..., object] | None = None


RUNS = Mistake("runs", "The function runs on ordinary numbers.", "The lines above are the last of yours that ran.")
ANSWERS = Mistake(
    "answers", "The function returns what it is asked for.", "Is there a return, on every way through it?"
)
VALUE = Mistake("value", "The value is right.", "Work out the case above by hand, term by term.")


@dataclass(frozen=True)
class Calculation:
    """name: "roofline.floor_us". title: one line. answer: the right function. cases: the numbers that it is tried on,
    by name, the simplest first. mistakes: those that have a name; in all cases together no two give the same values."""

    name: str
    title: str
    answer: Callable[..., object]
    cases: Sequence[Mapping[str, object]]
    mistakes: Sequence[Mistake]
    language: str = "python"

    @property
    def properties(self) -> Sequence[Mistake]:
        return (RUNS, ANSWERS, *self.mistakes, VALUE)

    def examine(self, fn: Callable) -> Report:
        expected = [self.answer(**case) for case in self.cases]
        given = []
        for case in self.cases:
            try:
                value = _repeatable(fn, case)
            except Exception as error:
                return self._failure(RUNS, case, raised(error), ())
            if _kind(value) not in map(_kind, expected):
                wanted = " or ".join(sorted(set(map(_kind, expected))))
                return self._failure(ANSWERS, case, f"returned {value!r}; expected {wanted}", [RUNS.name])
            given.append(value)
        wrong = [index for index, value in enumerate(given) if not _same(value, expected[index])]
        if not wrong:
            return Report(self.name, PASSED, held=[each.name for each in self.properties])
        mistake = next((each for each in self.mistakes if self._made(each, given)), VALUE)
        found = f"yours {_text(given[wrong[0]])}, expected {_text(expected[wrong[0]])}"
        return self._failure(mistake, self.cases[wrong[0]], found, [RUNS.name, ANSWERS.name])

    def _made(self, mistake: Mistake, given: Sequence[object]) -> bool:
        value = mistake.value
        return value is not None and all(_same(value(**case), got) for case, got in zip(self.cases, given))

    def _failure(self, mistake: Mistake, case: Mapping[str, object], found: str, held: Sequence[str]) -> Report:
        numbers_given = ", ".join(f"{name}={value}" for name, value in case.items())
        findings = [("case", numbers_given), ("found", found)]
        return Report(self.name, FAILED, mistake.name, mistake.says, findings, held, hint_text=mistake.hint)


def _repeatable(fn: Callable, case: Mapping[str, object]) -> object:
    """fn draws the same random numbers at each check: a mistake that few of them hide has the same verdict again."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return fn(**case)


def _kind(value: object) -> str:
    return "a number" if isinstance(value, numbers.Real) and not isinstance(value, bool) else repr(value)


def _same(a: object, b: object) -> bool:
    """Equal; numbers up to the rounding of a few operations."""
    if isinstance(a, numbers.Real) and isinstance(b, numbers.Real):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def _text(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else repr(value)
