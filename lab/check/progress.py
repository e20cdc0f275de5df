"""What a learner has done so far: the last verdict on each exercise, kept beside the exercises, out of git's sight."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lab.check.exercise import exercises
from lab.check.report import FAILED, PASSED, Report
from lab.files import write_text

FOLDER = Path(__file__).parents[2] / "exercises"
UNANSWERED, UNCHECKED = "unanswered", "unchecked"
# A stub as `solutions/build_exercises.py` leaves it: the comment, and nothing of the learner's own after it.
_STUB = re.compile(
    r'^ *(?:#|//) your code here\n *(?:pass\n|raise NotImplementedError\(|return 0, program\n|""")', re.MULTILINE
)


@dataclass(frozen=True)
class Progress:
    """verdicts: by exercise, all of them, in order; "passed", "unanswered", or what `Report.verdict` says."""

    verdicts: Mapping[str, str]

    def __repr__(self) -> str:
        lines: list[str] = []
        width = max(map(len, self.verdicts))
        for chapter, group in groupby(self.verdicts, chapter_of):
            names = list(group)
            done = sum(self.verdicts[name] == PASSED for name in names)
            lines += [*([""] if lines else []), f"{chapter}: {done} of {len(names)} passed"]
            for name in names:
                verdict, _, why = self.verdicts[name].partition(" ")
                lines.append(f"  {verdict.rstrip(','):<10}  {name:<{width}}  {exercises()[name].title}")
                lines += [f"  {'':<10}  {why}"] if why else []
        return "\n".join(lines)


def chapter_of(name: str) -> str:
    return name.partition(".")[0]


def progress() -> Progress:
    """Of all exercises. Nothing is run: of one that has no verdict, its file says whether it is still empty."""
    known = _remembered()
    return Progress({name: known.get(name) or _unchecked(name) for name in exercises()})


def remember(report: Report, path: Path | None = None) -> None:
    """Keep its verdict. path: the file that was checked; what fails there and is still empty has no verdict. An
    installed wheel has no place to keep it."""
    if not FOLDER.is_dir():
        return
    verdicts = _remembered() | {report.exercise: report.verdict}
    if path is not None and report.status == FAILED and is_empty(path, report.exercise):
        del verdicts[report.exercise]
    write_text(_file().parent / ".gitignore", "*\n")
    write_text(_file(), json.dumps(verdicts, indent=2) + "\n")


def is_empty(path: Path, name: str) -> bool:
    """Whether a stub is left in the file between the check before this exercise's and its own."""
    before, found, _ = path.read_text(errors="replace").partition(f'\nlab.check("{name}"')
    return bool(found) and bool(_STUB.search(before.rpartition("\nlab.check(")[2]))


def _unchecked(name: str) -> str:
    path = FOLDER / f"{chapter_of(name)}.py"
    return UNANSWERED if path.is_file() and is_empty(path, name) else UNCHECKED


def _file() -> Path:
    return FOLDER / ".progress" / "verdicts.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_file().read_text())
    except (OSError, ValueError):  # not there, or broken: no reason not to check
        return {}
    valid = isinstance(known, dict) and all(isinstance(verdict, str) for verdict in known.values())
    return known if valid else {}
