"""`lab check`: the checks of a notebook, on an exercise's file, in a child process that may hang or die."""

from __future__ import annotations

import argparse
import multiprocessing
import runpy
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from lab.check import check, collecting, progress
from lab.check.exercise import exercises
from lab.check.memory import raised
from lab.check.progress import chapter_of
from lab.check.report import COMPILED, FAILED, PASSED, Report

TIMEOUT_S = 180.0  # of one exercise; they take seconds
_START_TIMEOUT_S = 300.0  # of the child: importing torch, and whatever the learner's file does when it runs


def main(arguments: Sequence[str]) -> int:
    description = "Check exercises; with no names, list them and how far you are."
    parser = argparse.ArgumentParser(prog="lab check", description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a chapter (rmsnorm) or an exercise (rmsnorm.forward)")
    parser.add_argument("--file", type=Path, help="check this file instead of exercises/<chapter>.py")
    parser.add_argument("--hint", action="store_true", help="say what to look at, where something fails")
    given = parser.parse_args(arguments)
    if not given.names:
        print(progress.progress())
        print("\nlab check NAME checks a chapter or an exercise; with --hint it says what to look at.")
        return 0
    names: list[str] = []
    for name in given.names:
        matching = [full for full in exercises() if name in (full, chapter_of(full))]
        if not matching:
            chapter = chapter_of(name)
            near = [full for full in exercises() if chapter_of(full) == chapter]
            known = near or dict.fromkeys(map(chapter_of, exercises()))
            expected = f"expected one of {', '.join(known)}{'' if near else ', or one of their exercises'}"
            print(f"lab check: unknown exercise {name!r}; {expected}", file=sys.stderr)
            return 2
        names += [full for full in matching if full not in names]
    reports = []
    for chapter in dict.fromkeys(map(chapter_of, names)):
        path = given.file or progress.FOLDER / f"{chapter}.py"
        if not path.is_file():
            print(
                f"lab check: there is no {path}; pass --file, or run where the course is checked out", file=sys.stderr
            )
            return 2
        for report in check_file(path, [name for name in names if chapter_of(name) == chapter]):
            progress.remember(report, path)
            print(f"{report}\n")
            if given.hint and report.status == FAILED:
                report.hint()
                print()
            reports.append(report)
    counts = {status: sum(report.status == status for report in reports) for status in (PASSED, COMPILED, FAILED)}
    shown = {PASSED: "passed", COMPILED: "compiled but not run", FAILED: "failed"}
    print(", ".join(f"{count} {shown[status]}" for status, count in counts.items() if count))
    return 1 if counts[FAILED] else 0


def check_file(path: Path, names: Sequence[str]) -> Iterator[Report]:
    """Run the file in a child process, and there the checks `names` on the functions that it hands to `lab.check`.
    A check that takes too long or kills the child is reported as failed, and the rest go on in a new child."""
    pending = list(names)
    while pending:
        connection, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=_child, args=(path, pending, theirs), daemon=True)
        child.start()
        theirs.close()
        started = False
        try:
            while pending:
                limit = TIMEOUT_S if started else _START_TIMEOUT_S
                if not connection.poll(limit):
                    end = f"still running after {limit:g} seconds: does a loop end?"
                    yield _broken_off(pending, started, "ends", end)
                    break
                try:
                    received = connection.recv()
                except EOFError:
                    child.join()
                    yield _broken_off(pending, started, "survives", _death(child.exitcode))
                    break
                if received is not None:
                    yield received
                    pending.pop(0)
                    if received.status == FAILED and torch.cuda.is_available():
                        break  # what failed may have broken the GPU's context for what comes after
                started = True
        finally:
            child.kill()
            child.join()


def _broken_off(pending: list[str], started: bool, name: str, found: str) -> Report:
    """The report for a child that hung or died; before its first check that concerns the file, and so all of them."""
    first = pending.pop(0)
    where = "while this exercise was checked" if started else "while the file was run, before any check"
    if not started:
        pending.clear()
    hint = (
        "Nothing can be said about the rest until this is mended. A loop needs a step of at least one and an end that "
        "it reaches; an address needs a mask, on a GPU and in the interpreter alike."
    )
    return Report(first, FAILED, name, "The function comes back.", [("found", f"{found}\n{where}")], hint_text=hint)


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"the process was ended by {signal.Signals(-exitcode).name}: memory that is not yours was touched?"
    return f"the process ended with exit code {exitcode}"


def _child(path: Path, names: Sequence[str], connection: Connection) -> None:
    """Sends None once the file has run, then a report for each name."""
    with collecting() as functions:
        error = _run_file(path)
    connection.send(None)
    for name in names:
        connection.send(check(name, functions[name]) if name in functions else _not_reached(name, path, error))


def _run_file(path: Path) -> str:
    """Run the learner's file; returns what it raised, with its own last lines, or nothing."""
    try:
        runpy.run_path(str(path))
    except SyntaxError as error:
        return "".join(traceback.format_exception_only(error)).strip()
    except (Exception, SystemExit) as error:
        return raised(error)
    return ""


def _not_reached(name: str, path: Path, error: str) -> Report:
    found = error or f'nothing in the file calls lab.check("{name}", ...)'
    hint = f'The file is run from its top, and has to reach lab.check("{name}", your_function).'
    return Report(name, FAILED, "the file runs", f"{path.name} runs to its end.", [("found", found)], hint_text=hint)
