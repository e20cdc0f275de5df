"""The exercise checks, proven: solutions pass, empty exercises fail, each wrong answer is caught by the name of what it
violates, and nothing that a learner writes hangs or kills `lab check`."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lab.backends.hardware import ARCHITECTURES, assume
from lab.backends.registry import operator
from lab.benchmark import timing
from lab.benchmark.ceilings import Ceilings
from lab.check import check, collecting, main, progress, terminal
from lab.check.exercise import Examination, exercises
from lab.check.memory import Watch
from lab.check.report import COMPILED, FAILED, PASSED
from lab.ops.operator import Cost
from lab.profiling.roofline import Roofline

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted({name.partition(".")[0] for name in exercises()})


def wrong_answers(kind: str) -> list:
    """Of every chapter."""
    return [wrong for chapter in CHAPTERS for wrong in getattr(import_module(f"wrong_answers.{chapter}"), kind, ())]


class WRONG:
    TORCH = wrong_answers("TORCH")
    PYTHON = wrong_answers("PYTHON")
    TRITON = wrong_answers("TRITON")
    CUDA_COMPILED = wrong_answers("CUDA_COMPILED")
    CUDA_RUN = wrong_answers("CUDA_RUN")


def wrong_answer(exercise: str, mistake: str):
    every = [*WRONG.TRITON, *WRONG.CUDA_COMPILED]
    return next(wrong for wrong in every if (wrong.exercise, wrong.mistake) == (exercise, mistake))


def functions(path: Path) -> dict:
    """What a file hands to lab.check."""
    with collecting() as found:
        runpy.run_path(str(path))
    return found


@pytest.fixture(scope="module")
def solutions() -> dict:
    return {name: fn for chapter in CHAPTERS for name, fn in functions(ROOT / "solutions" / f"{chapter}.py").items()}


def mistaken(wrong, folder: Path):
    """The function of a wrong answer: the solution's text, changed between the check before it and its own."""
    name = wrong.exercise
    text = (ROOT / "solutions" / f"{name.partition('.')[0]}.py").read_text()
    end = text.index(f'\nlab.check("{name}"')
    start = text.rfind("\nlab.check(", 0, end) + 1
    assert wrong.old in text[start:end], f"{wrong.mistake}: the solution has no {wrong.old!r}"
    path = folder / "wrong.py"
    path.write_text(text[:start] + text[start:end].replace(wrong.old, wrong.new) + text[end:])
    return functions(path)[name]


def caught(wrong, folder: Path) -> None:
    report = check(wrong.exercise, mistaken(wrong, folder))
    assert (report.status, report.failed) == (FAILED, wrong.property), f"{wrong.mistake}:\n{report}"
    assert not report
    assert report.hint_text and report.findings


def identify(wrong) -> str:
    return f"{wrong.exercise}: {wrong.mistake}" if hasattr(wrong, "mistake") else str(wrong)


# solutions pass -------------------------------------------------------------------------------------------------------

TORCH = sorted(name for name, exercise in exercises().items() if exercise.language == "torch")
TRITON = sorted(name for name, exercise in exercises().items() if exercise.language == "triton")
CUDA = sorted(name for name, exercise in exercises().items() if exercise.language == "cuda")
PYTHON = sorted(name for name, exercise in exercises().items() if exercise.language == "python")


@pytest.mark.parametrize("name", TORCH)
def test_plain_solution_passes(name, solutions):
    report = check(name, solutions[name])
    assert report.status == PASSED and not report.unchecked, report
    assert report.held == [each.name for each in exercises()[name].properties]


@pytest.mark.cpu
@pytest.mark.parametrize("name", TRITON)
def test_solution_passes(name, solutions):
    report = check(name, solutions[name])
    assert report.status == PASSED, report
    assert "bytes moved" in report.held
    assert f"{exercises()[name].budget.on_a_gpu} (this machine has no GPU)" in report.unchecked


@pytest.mark.cpu
@pytest.mark.parametrize("name", CUDA)
def test_cuda_solution_compiles_and_does_not_count_as_passed(name, solutions):
    report = check(name, solutions[name])
    assert report.status == COMPILED and not report
    assert "compiled, not run: this machine has no GPU" in str(report)


@pytest.mark.parametrize("name", PYTHON)
def test_calculation_passes(name, solutions):
    report = check(name, solutions[name])
    assert report.status == PASSED and not report.unchecked, report


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("name", TRITON + CUDA)
def test_solution_passes_on_a_gpu(name, solutions):
    report = check(name, solutions[name])
    assert report.status == PASSED, report
    budget = exercises()[name].budget
    assert budget is None or budget.on_a_gpu in report.held or "no tensor cores" in report.unchecked[0]


# wrong answers are caught by name -------------------------------------------------------------------------------------


@pytest.mark.cpu
@pytest.mark.parametrize("wrong", [*WRONG.PYTHON, *WRONG.TORCH, *WRONG.TRITON, *WRONG.CUDA_COMPILED], ids=identify)
def test_wrong_answer_is_caught_by_name(wrong, tmp_path):
    caught(wrong, tmp_path)


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("wrong", WRONG.CUDA_RUN, ids=identify)
def test_wrong_answer_is_caught_by_name_on_a_gpu(wrong, tmp_path):
    caught(wrong, tmp_path)


@pytest.mark.cpu
def test_no_property_is_for_show():
    """Each is the one that catches some wrong answer."""
    named = {each.name for exercise in exercises().values() for each in exercise.properties} | {"bytes moved"}
    every = [*WRONG.PYTHON, *WRONG.TORCH, *WRONG.TRITON, *WRONG.CUDA_COMPILED, *WRONG.CUDA_RUN]
    assert named == {wrong.property for wrong in every}


@pytest.mark.parametrize("name", PYTHON)
def test_the_mistakes_of_a_calculation_give_values_of_their_own(name):
    exercise = exercises()[name]
    functions = [exercise.answer, *(mistake.value for mistake in exercise.mistakes)]
    values = [tuple(function(**case) for case in exercise.cases) for function in functions]
    assert len(set(values)) == len(values)


def test_calculations_agree_with_the_contracts_and_the_roofline():
    """What a learner is told is right is what the package computes by."""
    shape = (512, 1024)
    cost = operator("swiglu").cost(shape, torch.bfloat16, "forward")
    intensity = exercises()["roofline.swiglu_intensity"].answer(elements=shape[0] * shape[1], bits=16)
    assert intensity == pytest.approx(cost.intensity)
    m, n, k = 64, 1024, 512
    cost = operator("linear").cost((m, n, k), torch.bfloat16, "forward")
    without_bias = cost.flops - cost.flop_terms["+ bias"], cost.bytes - cost.byte_terms["read bias"]
    ours = [exercises()[f"roofline.linear_{what}"].answer for what in ("flops", "bytes")]
    assert (ours[0](m, n, k), ours[1](m, n, k, 16)) == without_bias
    for case in exercises()["roofline.floor_us"].cases:
        here = Roofline(
            Cost({"": case["flops"]}, {"": case["nbytes"]}), Ceilings(case["gbps"], 0, case["tflops"], "bfloat16", 0)
        )
        assert exercises()["roofline.floor_us"].answer(**case) == pytest.approx(here.floor_us)
        assert exercises()["roofline.bound"].answer(**case) == here.bound


def test_the_turning_batch_is_the_first_that_is_compute_bound():
    by_name = {name.removeprefix("roofline."): exercises()[name].answer for name in PYTHON}
    for case in exercises()["roofline.turning_batch"].cases:
        n, k, bits, *gpu = case.values()
        turn = by_name["turning_batch"](**case)
        batches = {1: "memory", 10**6: "memory"} if turn is None else {turn - 1: "memory", turn: "compute"}
        for m, bound in batches.items():
            assert (
                by_name["bound"](by_name["linear_flops"](m, n, k), by_name["linear_bytes"](m, n, k, bits), *gpu)
                == bound
            )


@pytest.mark.cpu
@pytest.mark.parametrize(
    "exercise, mistake",
    [
        ("rmsnorm.forward", "masks nothing"),
        ("rmsnorm.forward", "stores without a mask"),
        ("rmsnorm.forward", "uses x's stride for y"),
        ("rmsnorm.forward", "ignores x's stride"),
        ("rmsnorm.forward", "writes into x"),
        ("linear.tiled", "loads past the end of k"),
        ("linear.tiled", "stores past the last column"),
        ("linear.split_k", "the last part ends with a whole piece"),
        ("linear.dw", "loads rows past the last"),
    ],
)
def test_guard_zones_alone_catch_it_by_the_same_name(exercise, mistake, tmp_path, monkeypatch):
    """On a GPU no load or store can be watched: what was read from and written to the guard zones has to tell."""
    monkeypatch.setattr(Watch, "touched", lambda *_: None)
    caught(wrong_answer(exercise, mistake), tmp_path)


@pytest.mark.cpu
@pytest.mark.parametrize("name, says", [("rmsnorm.forward", "of its bandwidth"), ("linear.tiled", "of its speed")])
@pytest.mark.parametrize("fraction, holds", [(0.4, True), (0.6, False)])
def test_budget_of_time(name, says, fraction, holds, solutions, monkeypatch):
    """A kernel that takes twice as long as a copy, or as PyTorch, runs at half its pace. (The clock is made up; both
    are called.)"""
    times = {"peer": SimpleNamespace(median_us=10.0), "yours": SimpleNamespace(median_us=20.0)}

    def measure(candidates: dict) -> dict:
        assert set(candidates) == set(times)
        for run in candidates.values():
            run()
        return times

    monkeypatch.setattr(timing, "measure", measure)
    exercise = exercises()[name]
    shape = (64, 64, 64)[: len(exercise.budget.gpu_shape)]
    budget = replace(exercise.budget, gpu_shape=shape, fraction=fraction)
    _, violation = Examination(replace(exercise, budget=budget), solutions[exercise.name]).pace(budget)
    assert (violation is None) == holds
    assert holds or f"50% {says}" in violation.text


def test_no_speed_is_asked_for_where_triton_lacks_pytorchs_instructions():
    exercise = exercises()["linear.tiled"]
    examination = Examination(exercise, lambda **_: pytest.fail("was timed"))
    examination.device = torch.device("cuda")
    with assume(ARCHITECTURES["sm_75"]):
        report = examination.within_budget(exercise.budget, ["formula"])
    assert report.status == PASSED and report.held == ["formula"]
    assert report.unchecked == ["speed (on T4 Triton has no tensor cores, PyTorch has)"]


# reports --------------------------------------------------------------------------------------------------------------


@pytest.mark.cpu
def test_report_shows_the_first_wrong_place(tmp_path):
    wrong = wrong_answer("rmsnorm.forward", "mean over the block")
    text = str(check(wrong.exercise, mistaken(wrong, tmp_path)))
    assert "smallest case x 1x3 float32" in text  # the smallest row that no block fits
    assert re.search(r"y\[0, 0\]: yours \S+, expected \S+, difference \S+ \(allowed: \S+\)", text)
    assert "forward_kernel[(1,)](x=float32[1,3], x_stride=3" in text
    assert "BLOCK=4" in text


@pytest.mark.cpu
def test_report_points_at_the_access_out_of_bounds(tmp_path):
    wrong = wrong_answer("rmsnorm.forward", "stores without a mask")
    text = str(check(wrong.exercise, mistaken(wrong, tmp_path)))
    assert "tl.store(y + row * columns + column, value * r * w)" in text
    assert "writes 1 of 4 elements outside every tensor of the launch; the first is y + 3" in text.replace(
        "\n" + " " * 16, " "
    )


@pytest.mark.cpu
@pytest.mark.parametrize(
    "exercise, mistake, found",
    [
        ("linear.tiled", "one program for all tiles", "program 0 writes to 3 tiles of y; expected one"),
        ("linear.tiled", "tiles of 32", "2 programs were launched; expected 3"),
        ("linear.tiled", "pieces of four tiles", "the largest load or store has 1024 elements; a tile has 256"),
        (
            "linear.grouped",
            "tells one order and has another",
            "the tile of y that order[0, 1] stands for was computed by program 1; order says 2",
        ),
        (
            "linear.split_k",
            "the first part is all of k",
            "program 0 reads 64 of the weight's 64 columns; a part has 16 at most",
        ),
        (
            "linear.split_k",
            "atomics, and memory that nobody uses",
            "two programs of a launch write to the same element of the sums' memory",
        ),
        ("linear.split_k", "a launch for each part", "1, 1, 1, 1 programs were launched; expected 4"),
        ("linear.dw", "loads dy again for db", "dy is read 4 times; the budget says 2"),
        ("linear.dw", "db stored by every column of tiles", "db is written 2 times; the budget says 1"),
        (
            "linear.tile_cuda",
            "a tile for each thread",
            "a block has 0 bytes of shared memory; what it is asked to keep there takes 2048",
        ),
    ],
)
def test_report_says_what_the_programs_do(exercise, mistake, found, tmp_path):
    text = str(check(exercise, mistaken(wrong_answer(exercise, mistake), tmp_path)))
    assert found in re.sub(r"\s+", " ", text), text


@pytest.mark.cpu
def test_an_exception_is_shown_with_the_learners_own_lines(tmp_path):
    report = check("rmsnorm.forward", mistaken(wrong_answer("rmsnorm.forward", "raises"), tmp_path))
    assert "return y / undefined" in str(report)
    assert "NameError: name 'undefined' is not defined" in str(report)
    assert "Traceback" not in str(report) and "lab/check" not in str(report)


@pytest.mark.cpu
def test_a_compile_error_is_nvrtcs_first_with_the_line(tmp_path):
    wrong = wrong_answer("rmsnorm.cuda", "a syntax error")
    text = str(check(wrong.exercise, mistaken(wrong, tmp_path)))
    assert re.search(r'found +source\(\d+\): error: expected a ";"', text)
    assert text.count("error:") == 1


@pytest.mark.cpu
def test_the_hint_is_held_back_and_shows_no_code(tmp_path, capsys):
    report = check("rmsnorm.forward", mistaken(wrong_answer("rmsnorm.forward", "raises"), tmp_path))
    assert report.hint_text not in str(report)
    report.hint()
    assert capsys.readouterr().out.split() == report.hint_text.split()


@pytest.mark.cpu
def test_two_reports_of_one_function_are_equal(tmp_path):
    """Inputs are drawn from fixed seeds: a learner who changes nothing sees nothing change."""
    fn = mistaken(wrong_answer("rmsnorm.forward", "masks nothing"), tmp_path)
    assert str(check("rmsnorm.forward", fn)) == str(check("rmsnorm.forward", fn))


def test_what_an_answer_draws_is_the_same_at_each_check_and_leaves_the_callers_numbers_alone(seed):
    drawn = []

    def answer(loss, weights, index, step):
        drawn.append(torch.rand(()).item())
        return 0.0

    torch.manual_seed(seed)
    expected = torch.rand(2)
    torch.manual_seed(seed)
    found = []
    for _ in range(2):
        assert check("training.slope", answer).status == FAILED
        found.append(torch.rand(()))
    assert torch.equal(torch.stack(found), expected)
    assert len(drawn) > 2 and len(set(drawn)) == 1


@pytest.mark.cpu
def test_unknown_exercise_is_named():
    with pytest.raises(ValueError, match=r"unknown exercise 'rmsnorm\.sideways'; expected one of .*rmsnorm\.forward"):
        check("rmsnorm.sideways", print)


# what is generated ----------------------------------------------------------------------------------------------------


def build(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "solutions" / "build_exercises.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.cpu
def test_exercises_are_in_step_with_solutions():
    result = build("--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.cpu
def test_an_exercise_that_has_drifted_is_noticed_and_mended(tmp_path):
    for name in ("solutions", "exercises"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "_config.yml", tmp_path)
    exercise, solution = tmp_path / "exercises/gpu.py", tmp_path / "solutions/gpu.py"
    exercise.write_text(exercise.read_text().replace("your code here", "the answer", 1))
    (tmp_path / "exercises/timing.ipynb").unlink()
    checked = build("--check", root=tmp_path)
    drifted = ["has drifted: exercises/gpu.py", "has drifted: exercises/timing.ipynb"]
    assert checked.returncode == 1 and checked.stderr.splitlines()[:-1] == drifted
    assert build(root=tmp_path).returncode == 0 and build("--check", root=tmp_path).returncode == 0
    solution.write_text(solution.read_text() + "\n# %% [markdown]\n# One more line.\n")
    assert build("--check", root=tmp_path).stderr.count("has drifted") == 2  # .py and .ipynb


@pytest.mark.cpu
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_exercises_hold_no_answer(chapter):
    solution = (ROOT / "solutions" / f"{chapter}.py").read_text()
    answers = re.findall(r"BEGIN ANSWER.*?\n(.*?)\n *(?:#|//) END ANSWER", solution, re.S)
    count = sum(name.startswith(f"{chapter}.") for name in exercises())
    assert len(answers) >= count
    text = (ROOT / "exercises" / f"{chapter}.py").read_text()
    cells = json.loads((ROOT / "exercises" / f"{chapter}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] is None and not cell["outputs"] for cell in code)
    for shown in (text, "\n".join("".join(cell["source"]) for cell in cells)):
        assert "ANSWER" not in shown and shown.count("your code here") >= count
        assert not any(answer in shown for answer in answers)
    first = "".join(code[0]["source"])
    assert "sys.modules" in first and "git" in first  # Colab first


@pytest.mark.cpu
@pytest.mark.parametrize("name", sorted(exercises()))
def test_page_shows_what_the_unsolved_exercise_prints(name):
    path = ROOT / "exercises" / f"{name.partition('.')[0]}.py"
    text = re.sub(r"^# ?", "", path.read_text(), flags=re.M)
    shown = re.search(rf"^Unsolved, it prints:\n\n```text\n({re.escape(name)}.*?)\n```$", text, re.M | re.S)
    report = check(name, functions(path)[name])
    assert report.status == FAILED
    assert re.sub(r"line \d+", "line N", shown[1]) == re.sub(
        r"line \d+", "line N", re.sub(r"(?m)^\s+$", "", str(report))
    )


# in a terminal --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An exercises folder of the test's own."""
    monkeypatch.setattr(progress, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.cpu
def test_empty_exercise_fails_without_a_traceback(folder, capfd):
    (folder / "rmsnorm.py").write_text((ROOT / "exercises" / "rmsnorm.py").read_text())
    assert main(["rmsnorm"]) == 1
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert out.count("FAILED at") == 5 and out.endswith("5 failed\n")
    assert main([]) == 0
    assert re.search(r"^  unanswered +rmsnorm.add +The residual add", capfd.readouterr().out, re.M)


@pytest.mark.cpu
def test_solved_exercise_passes_in_a_terminal(folder, capfd):
    arguments = ["rmsnorm.forward", "rmsnorm.cuda", "--file", str(ROOT / "solutions" / "rmsnorm.py")]
    assert main(arguments) == 0
    assert capfd.readouterr().out.endswith("1 passed, 1 compiled but not run\n")


def listed(capfd) -> str:
    capfd.readouterr()
    assert main([]) == 0
    return capfd.readouterr().out


@pytest.mark.cpu
def test_progress_is_listed_by_chapter(folder, capfd):
    """Every exercise, its last verdict, and whether it is still empty; nothing is run for that."""
    (folder / "roofline.py").write_text((ROOT / "exercises" / "roofline.py").read_text())
    first = listed(capfd)
    assert all(name in first for name in exercises())
    assert "roofline: 0 of 6 passed" in first and "rmsnorm: 0 of 5 passed" in first
    assert re.search(r"^  unanswered  roofline.floor_us +The floor, in microseconds$", first, re.M)
    assert re.search(r"^  unchecked   rmsnorm.add ", first, re.M)  # there is no file that says more

    answers = (ROOT / "solutions" / "roofline.py").read_text().replace("return max(compute, memory)", "return memory")
    stub = re.search(r"def bound.*?\n\n", (folder / "roofline.py").read_text(), re.S)[0]
    (folder / "roofline.py").write_text(re.sub(r"def bound.*?\n\n", lambda _: stub, answers, flags=re.S))
    assert re.search(r"^  unchecked   roofline.floor_us", listed(capfd), re.M)
    assert main(["roofline"]) == 1
    second = listed(capfd)
    assert "roofline: 4 of 6 passed" in second
    assert re.search(r'^  FAILED      roofline.floor_us .*\n +at "operations too"$', second, re.M)
    assert re.search(r"^  unanswered  roofline.bound ", second, re.M)
    assert str(check()) in second  # and so it reads in a notebook


def test_every_exercise_is_unanswered_at_first(folder):
    for path in (ROOT / "exercises").glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    assert set(check().verdicts.values()) == {progress.UNANSWERED}


@pytest.mark.parametrize("text", ["{", "[]", '{"roofline.bound": 1}', "\udcff"])
def test_broken_progress_is_no_progress(folder, text):
    (folder / ".progress").mkdir()
    (folder / ".progress" / "verdicts.json").write_text(text, errors="surrogateescape")
    assert set(check().verdicts.values()) == {progress.UNCHECKED}


def test_a_file_that_is_not_utf8_may_be_empty_too(folder):
    text = (ROOT / "exercises" / "roofline.py").read_bytes()
    (folder / "roofline.py").write_bytes(b"# \xff\n" + text)
    assert check().verdicts["roofline.bound"] == progress.UNANSWERED


@pytest.mark.cpu
def test_a_notebook_keeps_its_verdicts_and_a_script_does_not(folder, monkeypatch):
    passes = exercises()["roofline.bound"].answer
    check("roofline.bound", passes)
    assert check().verdicts["roofline.bound"] == "unchecked"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: "a shell"))
    check("roofline.bound", passes)
    assert check().verdicts["roofline.bound"] == PASSED
    check("roofline.bound", lambda **_: "memory")
    assert check().verdicts["roofline.bound"] == 'FAILED at "value"'


def test_a_name_without_a_function_is_said():
    with pytest.raises(TypeError, match=r"fn is None; expected your function for rmsnorm\.forward"):
        check("rmsnorm.forward")


DIES = """
import os
import lab
lab.check("rmsnorm.forward", lambda x, weight, eps: os.abort())
lab.check("rmsnorm.add", lambda x, residual, weight, eps: (x + 1, x + 2))
def hang(x, weight, eps, block):
    while True:
        pass
lab.check("rmsnorm.long_rows", hang)
raise RuntimeError("the rest was not written yet")
"""


@pytest.mark.cpu
def test_a_crash_a_hang_and_a_broken_file_are_reported_and_the_rest_is_checked(folder, capfd, monkeypatch):
    monkeypatch.setattr(terminal, "TIMEOUT_S", 3.0)
    (folder / "rmsnorm.py").write_text(DIES)
    assert main(["rmsnorm.forward", "rmsnorm.add", "rmsnorm.long_rows", "rmsnorm.backward", "--hint"]) == 1
    out, err = capfd.readouterr()
    assert 'rmsnorm.forward: FAILED at "survives"' in out and "SIGABRT" in out
    assert 'rmsnorm.add: FAILED at "launches a kernel"' in out
    assert 'rmsnorm.long_rows: FAILED at "ends"' in out and "still running after 3 seconds" in out
    assert 'rmsnorm.backward: FAILED at "the file runs"' in out and "RuntimeError: the rest was not written yet" in out
    assert "A kernel is launched with kernel[grid](arguments)." in out  # a hint
    assert "Traceback" not in out + err


@pytest.mark.cpu
@pytest.mark.parametrize("arguments", [["softmacks"], ["rmsnorm", "--file", "nowhere.py"]])
def test_what_cannot_be_checked_is_said(arguments, folder, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("lab check: ")


@pytest.mark.cpu
def test_the_command_line_reaches_the_checks():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lab", "check", "rmsnorm.sideways"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 2 and "unknown exercise 'rmsnorm.sideways'" in result.stderr
    assert "rmsnorm.forward" in result.stderr and "softmax" not in result.stderr
