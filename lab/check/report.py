"""What a check found, as text that reads the same in a notebook and in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

PASSED, FAILED, COMPILED = "passed", "failed", "compiled"
_WIDTH = 100


@dataclass(frozen=True)
class Report:
    """status: "passed", "failed", or "compiled" (built, but there is no GPU to run it on, which proves little).

    failed: the property that failed, by name; says: what it demands; findings: (label, text) pairs: the smallest case
    that fails, the launch, what went wrong where. held, unchecked: the properties that were found to hold, and those
    that this machine cannot check, each with its reason.
    """

    exercise: str
    status: str
    failed: str = ""
    says: str = ""
    findings: Sequence[tuple[str, str]] = ()
    held: Sequence[str] = ()
    unchecked: Sequence[str] = ()
    hint_text: str = ""

    def __bool__(self) -> bool:
        return self.status == PASSED

    def __repr__(self) -> str:
        lines = [f"{self.exercise}: {self.verdict}"]
        findings = list(self.findings)
        if self.status == FAILED:
            lines += [*_wrapped(self.says, "  "), ""]
            findings += [("hint", f'lab.check("{self.exercise}", ...).hint(), or: lab check {self.exercise} --hint')]
        if self.held:
            findings.insert(len(self.findings), ("held", ", ".join(self.held)))
        if self.unchecked:
            findings.insert(len(self.findings) + bool(self.held), ("not checked", ", ".join(self.unchecked)))
        for label, text in findings:
            head, *rest = [line for part in text.splitlines() for line in _wrapped(part, "")]
            lines += [f"  {label:<14}{head}", *(f"{'':<16}{line}" for line in rest)]
        return "\n".join(lines)

    __str__ = __repr__

    @property
    def verdict(self) -> str:
        """One line: passed, or what failed."""
        if self.status == COMPILED:
            return "compiled, not run: this machine has no GPU"
        return self.status if self.status == PASSED else f'FAILED at "{self.failed}"'

    def hint(self) -> None:
        """Print what to look at."""
        print("\n".join(_wrapped(self.hint_text or "Nothing failed: there is nothing to hint at.", "")))


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines of at most a hundred columns; one that is indented is code, and stays as it is."""
    return textwrap.wrap(text, _WIDTH - 16, initial_indent=indent, subsequent_indent=indent) or [""]
