"""From a kernel to a training step, out of planted records: times of kernels and of models are made up, so that what
must come out can be told by hand."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from test_benchmark import CEILINGS, ENVIRONMENT
from test_models_benchmark import compile_with, instruments

from lab import notebook
from lab.backends import registry
from lab.benchmark import config, experiments, records, report, timing
from lab.benchmark.figures import COLOURS, OTHER, Figure
from lab.benchmark.models import ModelRow, ModelWorkload
from lab.benchmark.records import PEER, Record, Row
from lab.benchmark.waterfall import amdahl, choices, kernels_us, steps, time_table, waterfall, waterfall_table
from lab.check.exercise import exercises

__all__ = ["compile_with"]  # a fixture of all tests here

NORMS, PRODUCTS = "torch,rmsnorm=triton,add_rmsnorm=triton", "torch,linear=cuda"
EAGER, COMPILED, TRITON = (PEER, "torch eager"), (PEER, "torch.compile"), ("triton", "tuned")
US = {
    ("rmsnorm", "forward"): {EAGER: 20.0, COMPILED: 12.0, TRITON: 5.0},
    ("add_rmsnorm", "forward"): {EAGER: 30.0, COMPILED: 15.0, TRITON: 15.0},
    ("rmsnorm", "both"): {EAGER: 60.0, COMPILED: 40.0, TRITON: 30.0},
    ("add_rmsnorm", "both"): {EAGER: 90.0, COMPILED: 50.0, TRITON: 45.0},
}  # the model has one rmsnorm and four add_rmsnorm
LAYER, MODEL, STEP = (
    ModelWorkload("tiny", *where, 1, 8, "float32")
    for where in (
        ("layer", "post_attention_layernorm", "prefill"),
        ("model", None, "prefill"),
        ("training", None, None),
    )
)


def times(us: float) -> timing.Timing:
    return timing.Timing(us, us, us, us, 0.0, us, us, 9)


def kernel(op: str, who: tuple[str, str], direction: str, us: float) -> Row:
    rates = {"gbps": 1 / us, "tflops": 1 / us, "fraction": 1 / us}
    return Row(op, *who, None, direction, (8, 64), "float32", 0, 1, 1, 1.0, timing=times(us), **rates)


def row(workload: ModelWorkload, backend: str, compiled: bool, us: float, graph_us: float | None) -> ModelRow:
    ran = {op: "triton:tuned" if f"{op}=triton" in backend else "torch:function" for op in ("add_rmsnorm", "rmsnorm")}
    called = {call.operator for call in workload.calls}
    ran = {op: which for op, which in ran.items() if op in called} | {"linear": "torch:function"}
    timed = {"timing": times(us), "graph_us": graph_us, "fraction": 1 / us, "tokens_per_s": 8e6 / us, "tflops": 1 / us}
    return ModelRow(workload, backend, compiled, 1, 1, 1.0, implementations=ran, **timed)


RECORD = Record(
    records.SCHEMA, "planted", {}, "by hand.", ENVIRONMENT, CEILINGS,
    rows=tuple(kernel(op, who, way, us) for (op, way), found in US.items() for who, us in found.items()),
    models=(
        row(LAYER, "torch", False, 100.0, 30.0), row(LAYER, NORMS, False, 125.0, 15.0),
        row(MODEL, "torch", False, 1000.0, 700.0), row(MODEL, "torch", True, 800.0, 360.0),
        row(MODEL, NORMS, False, 1250.0, 640.0), row(MODEL, NORMS, True, 640.0, 400.0),
        row(STEP, "torch", False, 4200.0, None), row(STEP, NORMS, False, 4000.0, None),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "share, kernel, whole", [(0, 5, 1), (1, 5, 5), (0.5, 2, 4 / 3), (0.5, float("inf"), 2), (0.5, 0.5, 2 / 3)]
)
def test_amdahl(share, kernel, whole):
    assert amdahl(share, kernel) == pytest.approx(whole)


def test_the_exercises_agree_with_it():
    """What a learner is told is right is what the chapter computes by."""
    answers = {name: each.answer for name, each in exercises().items() if name.startswith("waterfall.")}
    for case in exercises()["waterfall.whole"].cases:
        assert answers["waterfall.whole"](**case) == amdahl(**case)
    for case in exercises()["waterfall.at_most"].cases:
        assert answers["waterfall.at_most"](**case) == pytest.approx(amdahl(case["share"], float("inf")))
    for case in exercises()["waterfall.kernel_needed"].cases:
        needed = answers["waterfall.kernel_needed"](**case)
        if needed is None:
            assert amdahl(case["share"], float("inf")) <= case["whole"]
        else:
            assert amdahl(case["share"], needed) == pytest.approx(case["whole"])


def test_the_steps_of_a_choice():
    layer, model, training = steps(RECORD, NORMS, compiled=False)
    assert (layer.workload, layer.share, layer.kernel, layer.expected, layer.measured) == (LAYER, 1.0, 2.0, 2.0, 2.0)
    assert layer.clock == 0.8
    assert model.workload == MODEL and (model.share, model.kernel) == (140 / 700, 140 / 65)
    assert model.expected == pytest.approx(1.12) and (model.measured, model.clock) == (700 / 640, 0.8)
    assert training.workload == STEP and (training.share, training.kernel) == (420 / 4200, 2.0)
    assert training.expected == pytest.approx(1 / 0.95) and training.measured == training.clock == 4200 / 4000


def test_what_is_compiled_is_held_against_what_is_compiled():
    (model,) = steps(RECORD, NORMS, compiled=True)
    assert (model.share, model.kernel) == (72 / 360, 72 / 65)
    assert (model.measured, model.clock) == (360 / 400, 800 / 640)


def without(**matching) -> Record:
    """The record without the kernels that match."""
    rows = [each for each in RECORD.rows if any(getattr(each, key) != value for key, value in matching.items())]
    assert len(rows) < len(RECORD.rows)
    return replace(RECORD, rows=tuple(rows))


@pytest.mark.parametrize(
    "missing",
    [{"operator": "rmsnorm"}, {"label": "triton:tuned", "operator": "rmsnorm"}, {"label": "torch eager"}],
)
def test_no_share_without_the_time_of_every_kernel(missing):
    _, model, _ = steps(without(**missing), NORMS, compiled=False)
    assert model.share is model.kernel is model.expected is None and model.measured == 700 / 640
    assert waterfall_table(without(**missing), NORMS, False).rows[1][1:4] == ["-", "-", "-"]


def test_kernels_of_another_direction_dtype_or_shape_do_not_count():
    assert kernels_us(RECORD, RECORD.models[2]) == {"add_rmsnorm": 120.0, "rmsnorm": 20.0}
    assert kernels_us(without(direction="forward"), RECORD.models[2]) == {}
    for change in ({"dtype": "bfloat16"}, {"shape": (16, 64)}, {"timing": None}):
        changed = replace(RECORD, rows=tuple(replace(each, **change) for each in RECORD.rows))
        assert kernels_us(changed, RECORD.models[2]) == {} and choices(changed) == []


def test_a_share_is_at_most_the_whole():
    warm = replace(RECORD, models=tuple(replace(each, graph_us=20.0) for each in RECORD.models[:2]))
    (layer,) = steps(warm, NORMS, compiled=False)
    assert (layer.share, layer.expected) == (1.0, 2.0)


def test_what_was_not_captured_has_no_time_on_the_gpu():
    bare = replace(RECORD, models=tuple(replace(each, graph_us=None) for each in RECORD.models[2:6]))
    (model,) = steps(bare, NORMS, compiled=False)
    assert (model.kernel, model.share, model.expected, model.measured) == (140 / 65, None, None, None)
    assert time_table(bare, MODEL).rows[0][-2:] == ["-", "-"]


def test_only_what_was_timed_with_torch_is_a_step():
    failed = replace(RECORD.models[4], timing=None, error="broke")
    record = replace(RECORD, models=(RECORD.models[0], RECORD.models[1], RECORD.models[2], failed, RECORD.models[7]))
    assert [step.workload for step in steps(record, NORMS, False)] == [LAYER]


def test_choices_are_those_with_kernels_of_ours_in_the_order_of_the_record():
    assert choices(RECORD) == [NORMS]
    linear = replace(RECORD.models[3], backend=PRODUCTS, implementations={"linear": "cuda:best"})
    assert choices(replace(RECORD, models=(linear, *RECORD.models))) == [NORMS]  # no kernels of linear by themselves
    calls = [call for call in MODEL.calls if call.operator == "linear"]
    product = replace(RECORD.rows[0], operator="linear", backend="cuda", rung="best")
    rows = (*RECORD.rows, *(replace(product, shape=call.shape) for call in calls))
    assert choices(replace(RECORD, rows=rows, models=(linear, *RECORD.models))) == [PRODUCTS, NORMS]
    assert choices(replace(RECORD, rows=())) == choices(replace(RECORD, models=())) == []


def test_the_tables_say_it():
    table = waterfall_table(RECORD, NORMS, compiled=False)
    assert table.header[0] == "add_rmsnorm, rmsnorm (triton), eager"
    assert table.rows[0] == ["post_attention_layernorm prefill", "100.0", "2.000", "2.000", "2.000", "0.800"]
    assert table.rows[1] == ["model prefill", "20.0", "2.154", "1.120", "1.094", "0.800"]
    spent = time_table(RECORD, MODEL)
    assert spent.header == ["model prefill, us", "add_rmsnorm", "rmsnorm", "the rest", "all"]
    assert spent.rows == [
        ["torch, eager", "120", "20", "560", "700"],
        ["torch, compiled", "60", "12", "288", "360"],
        ["add_rmsnorm, rmsnorm (triton), eager", "60", "5", "575", "640"],
        ["add_rmsnorm, rmsnorm (triton), compiled", "60", "5", "335", "400"],
    ]


def test_the_figure_tells_its_numbers_and_is_the_same_each_time():
    drawn, again = (waterfall(RECORD, compiled=False) for _ in range(2))
    assert drawn.svg == again.svg
    assert drawn.alt == (
        "On NVIDIA Fake 80GB, times as fast as torch eager: add_rmsnorm, rmsnorm (triton): kernels, forward 2.15, "
        "kernels, training 2.00, post_attention_layernorm 2.00 (by Amdahl's law 2.00), "
        "model 1.09 (by Amdahl's law 1.12), "
        "training 1.05 (by Amdahl's law 1.05)"
    )
    assert "model 0.90" in waterfall(RECORD, compiled=True).alt
    with pytest.raises(ValueError, match="the record has no eager model with kernels"):
        waterfall(replace(RECORD, models=RECORD.models[3:4]), compiled=False)


def test_a_choice_of_two_backends_has_a_colour_of_its_own():
    assert COLOURS["triton"] in waterfall(RECORD, compiled=False).svg.upper()
    both = [
        replace(
            each, implementations={op: ran.replace("torch:f", "cuda:f") for op, ran in each.implementations.items()}
        )
        if each.backend == NORMS and each.workload == MODEL
        else each
        for each in RECORD.models
    ]  # its layer runs on triton alone
    drawn = waterfall(replace(RECORD, models=tuple(both)), compiled=False).svg.upper()
    assert OTHER in drawn and COLOURS["triton"] not in drawn


def test_two_phases_are_told_apart():
    step = replace(MODEL, phase="decode", batch=8)
    models = (*RECORD.models, row(step, "torch", False, 9.0, 9.0), row(step, NORMS, False, 9.0, 9.0))
    drawn = waterfall(replace(RECORD, models=models), compiled=False)
    for told in ("model prefill 1.09 (", "training 1.05 (", "model decode 1.00 ("):
        assert told in drawn.alt


def test_the_report_draws_it(monkeypatch):
    monkeypatch.setattr(Record, "stale", lambda self: [])
    blocks = list(report.blocks(RECORD))
    start = blocks.index("## From kernel to training step")
    assert blocks[start + 1 : start + 5] == [
        waterfall(RECORD, False), waterfall_table(RECORD, NORMS, False),
        waterfall(RECORD, True), waterfall_table(RECORD, NORMS, True),
    ]  # fmt: skip
    assert blocks[start + 5 :] == [time_table(RECORD, each) for each in (MODEL, STEP)]
    assert "## From kernel to training step" not in report.blocks(replace(RECORD, models=()))


def test_a_report_where_torch_could_not_be_compiled():
    """There is nothing to hold the compiled choices against, and nothing is drawn of them."""
    models = tuple(each for each in RECORD.models if each.backend != "torch" or not each.compiled)
    blocks = list(report.blocks(replace(RECORD, models=models)))
    assert waterfall(RECORD, False) in blocks
    assert not [each for each in blocks if isinstance(each, Figure) and "torch compiled" in each.alt.partition(":")[0]]


def test_the_experiment_times_every_kernel_that_it_replaces():
    """At every shape and in every direction that its models give them; and no other."""
    experiment = config.load("waterfall")
    timed = {(each.operator, each.shape, each.dtype, each.direction) for each in experiment.workloads}
    operators = {each.operator for each in experiment.workloads}
    called = {
        (call.operator, call.shape, workload.dtype, workload.direction)
        for workload in experiment.models
        for call in workload.calls
        if call.operator in operators
    }
    assert timed == called
    chosen = {part for choice in experiment.backends for part in choice.split(",")} - {"torch"}
    assert {part.partition("=")[0] for part in chosen} == operators
    best = {(op, registry.ladder(op, backend)[-1]) for op, _, backend in (part.partition("=") for part in chosen)}
    assert best == {
        (op, rung) for op in operators for each in experiment.implementations for rung in config.rungs(op, each)
    }


@pytest.mark.cpu
def test_a_small_one_runs_from_end_to_end(tmp_path, monkeypatch):
    """With fake times, eager: a step's share needs that the kernels by themselves ran on what the model ran on."""
    size = {"batch": 1, "tokens": 8, "dtype": "float32"}
    shapes = {(call.operator, call.shape) for where in (MODEL, STEP) for call in where.calls}
    norm = [{"shape": [8, 64], "dtype": "float32", "directions": ["forward", "both"]}]
    linear = [
        {"shape": list(shape), "dtype": "float32", "directions": ["forward", "both"]}
        for op, shape in sorted(shapes)
        if op == "linear"
    ]
    choice = f"{NORMS},linear=triton"
    raw = {
        "seed": 0, "samples": {"min": 2, "max": 2},
        "operators": {"rmsnorm": norm, "add_rmsnorm": norm, "linear": linear},
        "implementations": ["triton"], "peers": ["torch eager"],
        "models": {"tiny": [
            {"level": "layer", "module": "mlp", "phase": "prefill", **size},
            {"level": "block", "phase": "prefill", **size},
            {"level": "model", "phase": "prefill", **size},
            {"level": "training", **size},
        ]},
        "backends": ["torch", NORMS, choice], "compile": [False],
    }  # fmt: skip
    tools = replace(
        instruments(), sample=lambda fn: fn() and 4000.0, launch_overhead=lambda fn: 7.0,
        graph_times=lambda candidates: dict.fromkeys(candidates, timing.GraphTime(20000.0, None)),
    )  # fmt: skip
    record = experiments.run(config.parse("small", raw), tools, progress=False)
    assert {(row.backend, row.workload.part) for row in record.models if row.error} == {(NORMS, "mlp")}
    assert choices(record) == [NORMS, choice]
    norms, everything = steps(record, NORMS, False), steps(record, choice, False)
    assert [step.workload.part for step in norms] == ["block", "model", "training"]
    assert [step.workload.part for step in everything] == ["mlp", "block", "model", "training"]
    assert all(step.kernel == 1 and step.expected == 1 for step in [*norms, *everything])
    assert norms[0].share == 2 * 4000 / 20000 and everything[0].share == 3 * 4000 / 20000

    monkeypatch.setattr(experiments, "AUTO", tmp_path / "auto.json")
    monkeypatch.setattr(records, "experiments_folder", lambda: tmp_path)
    experiments.publish(record)
    assert not (tmp_path / "auto.json").exists(), "the shapes of one model chose what auto runs"
    experiments.publish(replace(record, models=()))
    assert json.loads((tmp_path / "auto.json").read_text())["NVIDIA Fake 80GB"].keys() == {
        "rmsnorm", "add_rmsnorm", "linear",
    }  # fmt: skip


# The chapter ----------------------------------------------------------------------------------------------------------

CHAPTER = Path(__file__).parents[1] / "book/chapters/waterfall.py"
GPU = replace(CEILINGS, copy_gbps=4000.0, matmul_tflops=700.0)  # about an H200's


def measured_so(gain: float, around: float = 1.0, fails: str = "") -> Record:
    """A record of the experiment: our kernels are `gain` times as fast as the peers', and a compiled whole that has
    them takes `around` times as long as they explain. What runs our `fails` has an error in place of a time."""
    experiment = config.load("waterfall")
    rungs = {"rmsnorm": ("triton", "tuned"), "add_rmsnorm": ("triton", "tuned"), "linear": ("cuda", "wgmma")}
    rows, us = [], {}
    for each in experiment.workloads:
        cost = registry.operator(each.operator).cost(each.shape, each.torch_dtype, each.direction)
        floor = GPU.floor_us(cost)
        for who in (EAGER, COMPILED, rungs[each.operator]):
            us[each.operator, each.shape, each.direction, who] = took = 1.5 * floor / (1 if who[0] == PEER else gain)
            made = Row(
                each.operator, *who, None, each.direction, each.shape, each.dtype, 0, cost.flops, cost.bytes, floor
            )
            timed = {"timing": times(took), "gbps": 1.0, "tflops": 1.0, "fraction": floor / took}
            broken = who[0] != PEER and each.operator == fails
            rows.append(replace(made, **({"error": "it broke"} if broken else timed)))
    models = []
    for workload in experiment.models:
        for backend in experiment.backends:
            for compiled in experiment.compile:
                ours = {op for op in rungs if f"{op}=" in backend} & {call.operator for call in workload.calls}
                took = 7e-6 * workload.config.parameters if workload.level == "training" else 0.0
                for call in workload.calls:
                    who = rungs[call.operator] if call.operator in ours else COMPILED if compiled else EAGER
                    cost = call.cost(workload.torch_dtype, workload.direction)
                    rest = (1.2 if compiled else 2.0) * GPU.floor_us(cost)
                    took += call.count * us.get((call.operator, call.shape, workload.direction, who), rest)
                took *= around if ours and compiled else 1.0
                ran = {call.operator: "torch:eager" for call in workload.calls} | {
                    op: ":".join(rungs[op]) for op in ours
                }
                made = ModelRow(workload, backend, compiled, 1, 1, 1.0, implementations=ran)
                timed = {"timing": times(took + 50), "graph_us": None if workload.level == "training" else took}
                broken = fails in ours or (backend != "torch" and not ours)
                models.append(replace(made, **({"error": "it broke"} if broken else timed)))
    return replace(RECORD, ceilings=GPU, rows=tuple(rows), models=tuple(models))


@pytest.mark.cpu
@pytest.mark.parametrize(
    "planted, says",
    [
        (
            {"gain": 1.2},
            ["torch.compile wins 0. A swap wins 10: norms in the norm's layer; products in the MLP",
             "No swap has made a whole slower", "shows no lost fusion", "candidate with kernels of ours wins: norm"],
        ),
        (
            {"gain": 0.8},
            ["torch.compile wins 12 (slower kernel: 12). A swap wins none", "eager mode: norms in the norm's layer",
             "no kernel of ours, wins: norm, MLP, block and model. No difference but noise: training step"],
        ),
        (
            {"gain": 1.2, "around": 1.3},
            ["lost around the kernel: 13", "only then: block, model and training step. That is what a lost fusion"],
        ),
        ({"gain": 1.2, "fails": "linear"}, ["torch.compile wins 0. A swap wins 2: norms in the norm's layer"]),
        ({"gain": 1.2, "fails": "add_rmsnorm"}, ["torch.compile wins 0. A swap wins 5: products in the MLP"]),
    ],
    ids=["faster", "slower", "in the way", "no products", "no norms"],
)  # fmt: skip
def test_the_chapter_says_what_its_record_says(planted, says, monkeypatch):
    """Whatever that is, and whatever is missing."""
    shown: list[object] = []
    monkeypatch.setattr(notebook, "show", lambda *things: shown.extend(things))
    monkeypatch.setattr(records, "published", lambda name, gpu=None: measured_so(**planted))
    runpy.run_path(str(CHAPTER))
    text = "\n".join(map(str, shown))
    assert not [each for each in says if each not in text]
