"""Benchmarks of a model, a block and a layer, on a machine with no GPU: times are faked, all else runs, on the tiny
shape."""

import copy
import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from importlib import metadata

import pytest
import torch
import torch.nn.functional as F
from test_benchmark import CEILINGS, ENVIRONMENT
from test_benchmark import CONFIG as OPERATORS

from lab import cli
from lab.backends import registry
from lab.backends.hardware import default_device
from lab.backends.implementation import BackendUnavailable, Call, Implementation, trace
from lab.backends.triton import rmsnorm as triton_rmsnorm
from lab.benchmark import (
    config,
    experiments,
    figures,
    model_runs,
    peers,
    records,
    report,
    tables,
    timing,
    training_runs,
)
from lab.benchmark import fingerprint as fingerprints
from lab.benchmark.candidates import WrongResult
from lab.benchmark.instruments import Instruments
from lab.benchmark.model_runs import ForwardPass, NotRun, TrainingStep
from lab.benchmark.models import PHASES, ModelWorkload
from lab.core import MODELS, KVCache
from lab.core import cost as costs
from lab.core.cost import LAYERS
from lab.core.model import AddRMSNorm

DEVICE = default_device()
SWAPPED = "torch,rmsnorm=triton,add_rmsnorm=triton"


def workload(part="model", phase="decode", batch=2, tokens=6, dtype="float32") -> ModelWorkload:
    level, module = ("layer", part) if part in LAYERS else (part, None)
    return ModelWorkload("tiny", level, module, phase, batch, tokens, dtype)


parts = pytest.mark.parametrize("part", ["model", "block", *LAYERS])
phases = pytest.mark.parametrize("phase", PHASES)


@pytest.fixture(autouse=True)
def compile_with(monkeypatch):
    """Without Inductor, which would call the C++ compiler for a minute; what is traced runs as it is."""

    def compile_with(backend: str) -> None:
        compiled = partial(torch.compile, backend=backend, dynamic=False, fullgraph=True)
        monkeypatch.setattr(model_runs, "compiled", compiled)

    compile_with("eager")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on so small a model, more would only wait for one another
    yield compile_with
    torch.set_num_threads(threads)
    torch._dynamo.reset()


@pytest.fixture
def ladders(monkeypatch):
    """The registry, to put backends into; as it was after the test."""
    registry.backends()
    monkeypatch.setattr(registry, "_ladders", {name: dict(ops) for name, ops in registry._ladders.items()})
    yield registry.register_backend
    vars(registry._bound).clear()


def wrong(op: str, result) -> Implementation:
    """Torch's, but for what `result` makes of its outputs."""
    right = registry.ladder(op, "torch")[0]

    def function(*args):
        outputs = right.function(*args)
        return result(outputs)

    return replace(right, rung="best", function=function)


# What is called -------------------------------------------------------------------------------------------------------


@parts
@phases
def test_what_is_called_is_what_a_model_does(part, phase):
    """The result, and what is stored, are those of the module called the ordinary way."""
    forward = ForwardPass(workload(part, phase), DEVICE, seed=3)
    found = forward.results(forward.call_of("torch", compile=False))
    config, context = MODELS["tiny"], 0 if phase == "prefill" else 6
    if part == "model":
        cache = KVCache(config, 2, 64, device=DEVICE, dtype=torch.float32)
        for to, source in zip([*cache.k, *cache.v], [*forward.cache.k, *forward.cache.v], strict=True):
            to[..., :context, :] = source[..., :context, :]
        cache.lengths += context
        cache.longest = context
        ids = forward.arguments[0]
        assert ids.shape == (2, 6 if phase == "prefill" else 1)
        with torch.no_grad():
            logits = forward.module.use("torch")(ids, cache)
        expected = {"output": logits[:, -1]}
        for name, stored in (("keys", cache.k), ("values", cache.v)):
            expected[name] = torch.stack(stored)[..., context : context + ids.shape[1], :]
    else:
        with torch.no_grad():
            outputs = forward.module.use("torch")(*forward.arguments)
        expected = dict(zip(("output", "residual"), outputs if isinstance(outputs, tuple) else (outputs,)))
        if forward.cache is not None:
            stored = {"keys": forward.cache.k, "values": forward.cache.v}
            expected |= {name: torch.stack(layers)[..., context:, :] for name, layers in stored.items()}
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-4), name
        assert not tensor.isnan().any() and tensor.std() > 0.1


@parts
@phases
def test_every_call_does_the_same(part, phase, compile_with):
    compile_with("aot_eager")  # which makes functions of what is written in place, as Inductor does
    forward = ForwardPass(workload(part, phase), DEVICE, seed=3)
    for choice, compile in (("torch", False), (SWAPPED if part not in ("mlp", "self_attn") else "torch", True)):
        call = forward.call_of(choice, compile)
        first, *others = [[output.clone() for output in call()] for _ in range(4)]
        for other in others:
            assert all(torch.equal(one, two) for one, two in zip(first, other))
    if part == "model":
        assert forward.cache.longest == 6 + (phase == "decode")
        assert forward.cache.lengths.tolist() == [forward.cache.longest] * 2


def test_candidates_share_their_weights_and_nothing_else():
    forward = ForwardPass(workload(), DEVICE, seed=0)
    before = forward.module.lm_head.backend
    calls = [forward.call_of(choice, False) for choice in ("torch", SWAPPED)]
    assert forward.module.lm_head.backend == before
    weight = forward.module.layers[1].mlp.up_proj.weight
    old = [call()[0].clone() for call in calls]
    with torch.no_grad():
        weight.mul_(2)
    for call, was in zip(calls, old):
        assert not torch.allclose(call()[0], was)


def test_compiled_candidates_do_not_share_what_is_compiled():
    """Otherwise the second would be a recompilation of the first, and both would look through each other's guards."""
    forward = ForwardPass(workload("block"), DEVICE, seed=0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        calls = [forward.call_of(choice, True) for choice in ("torch", SWAPPED)]
        for _ in range(3):
            for call in calls:
                call()


def test_a_tied_model_stays_tied_and_in_its_dtype(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], tie_word_embeddings=True, qkv_bias=True))
    forward = ForwardPass(workload(dtype="bfloat16"), DEVICE, seed=0)
    assert forward.module.lm_head.weight is forward.module.embed_tokens.weight
    assert {weight.dtype for weight in forward.module.parameters()} == {torch.bfloat16}
    assert forward.module.rotary.frequencies.dtype == torch.float32 == torch.get_default_dtype()
    assert forward.weights == 2 * MODELS["tiny"].parameters
    (output,) = forward.call_of("torch", False)()
    assert output.dtype == torch.bfloat16 and output.shape == (2, 256)


def test_the_same_seed_draws_the_same():
    first, again, other = (ForwardPass(workload(), DEVICE, seed).call_of("torch", False)()[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# What is checked ------------------------------------------------------------------------------------------------------

WRONG = {
    "rmsnorm": lambda y: 1.25 * y,
    "add_rmsnorm": lambda outputs: (1.25 * outputs[0], outputs[1]),
    "linear": lambda y: 1.25 * y,
    "rope": lambda outputs: (outputs[0], outputs[1].roll(1, -1)),
    "attention": lambda y: 1.25 * y,
    "decode_attention": lambda y: 1.25 * y,
    "swiglu": lambda y: 1.25 * y,
}


@parts
@phases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_operator_is_found_wherever_it_is_called(part, phase, dtype, ladders):
    forward = ForwardPass(workload(part, phase, dtype=dtype), DEVICE, seed=0)
    expected = forward.results(forward.call_of("torch", False))
    forward.check(forward.results(forward.call_of("torch", False)), expected)
    for op in {call.operator for call in forward.workload.calls}:
        ladders("fake", {op: wrong(op, WRONG[op])})
        with pytest.raises(WrongResult, match="is off torch eager's by"):
            forward.check(forward.results(forward.call_of(f"torch,{op}=fake", False)), expected)


@pytest.mark.parametrize("part", ["model", "block", "self_attn"])
@phases
def test_what_is_not_stored_is_found(part, phase, monkeypatch):
    forward = ForwardPass(workload(part, phase), DEVICE, seed=0)
    call = forward.call_of("torch", False)
    expected = forward.results(call)
    monkeypatch.setattr("lab.core.cache.LayerCache.append", lambda self, k, v: None)
    with pytest.raises(WrongResult, match="nan"):
        forward.check(forward.results(call), expected)


def ran(forward: ForwardPass, choice: str, compile: bool) -> list[Call]:
    call = forward.call_of(choice, compile)
    call()
    with trace() as calls:
        call()
    return calls


@parts
@phases
@pytest.mark.parametrize("compile", [False, True])
def test_what_ran_is_what_was_chosen(part, phase, compile):
    forward = ForwardPass(workload(part, phase), DEVICE, seed=0)
    for choice in ("torch", SWAPPED) if part not in ("mlp", "self_attn") else ("torch",):
        chosen, trace = forward.implementations(choice, DEVICE), ran(forward, choice, compile)
        forward.check_ran(trace, chosen, compile)
        norms = [call for call in trace if call.backend == "triton"]
        count = {"model": 5, "block": 2, "post_attention_layernorm": 1}.get(part, 0)
        assert len(norms) == (count if choice == SWAPPED else 0)
        if compile:
            assert len(trace) == len(norms)
    if part in ("mlp", "self_attn"):
        with pytest.raises(BackendUnavailable, match=f"{part} calls none of add_rmsnorm, rmsnorm"):
            forward.implementations(SWAPPED, DEVICE)


@pytest.mark.parametrize("compile", [False, True])
def test_what_did_not_run_is_found(compile):
    forward = ForwardPass(workload(), DEVICE, seed=0)
    chosen = forward.implementations(SWAPPED, DEVICE)
    trace = ran(forward, SWAPPED, compile)
    for changed in (trace[:-1], [*trace, trace[0]], [trace[0]._replace(rung="naive"), *trace[1:]], []):
        with pytest.raises(NotRun, match=r"ran on (triton|torch):\w+ \d+ times; expected \d+"):
            forward.check_ran(changed, chosen, compile)
    with pytest.raises(NotRun):
        forward.check_ran(ran(forward, "torch", compile), chosen, compile)


# A whole run, with fake times -----------------------------------------------------------------------------------------

ENTRY = {"level": "model", "phase": "decode", "batch": 2, "tokens": 6, "dtype": "float32"}
STEP = {"level": "training", "batch": 2, "tokens": 6, "dtype": "float32"}
CONFIG = {
    "seed": 0,
    "samples": {"min": 5, "max": 6},
    "models": {
        "tiny": [
            ENTRY,
            ENTRY | {"level": "block", "phase": "prefill"},
            ENTRY | {"level": "layer", "module": "mlp"},
        ]
    },
    "backends": ["torch", SWAPPED, "torch,add_rmsnorm=fake:wrong", "torch,swiglu=fake", "torch,linear=fake"],
    "compile": [False, True],
}
FEW = CONFIG | {"samples": {"min": 2, "max": 2}}
US = 5000.0


class Clock:
    """Gives each call that it is shown its time in turn, after having made it."""

    def __init__(self, us=lambda call: US) -> None:
        self.us = us

    def __call__(self, fn):
        fn()
        return self.us(fn)


def instruments(latency=None, **changes) -> Instruments:
    def never(fn):
        raise AssertionError("a model is timed by the clock on the wall")

    return Instruments(
        DEVICE, ENVIRONMENT, CEILINGS, never, latency or Clock(),
        graph_times=lambda candidates: {
            name: timing.GraphTime(None, f"faked for {calls}") for name, (_, calls) in candidates.items()
        },
        launch_overhead=never, peak_memory=lambda fn: fn() and 3 << 20, synchronize=lambda: None, **changes,
    )  # fmt: skip


@pytest.fixture
def fakes(ladders):
    swiglu, linear = (registry.ladder(op, "torch")[0] for op in ("swiglu", "linear"))
    ladders("fake", {
        "add_rmsnorm": replace(wrong("add_rmsnorm", WRONG["add_rmsnorm"]), rung="wrong"),
        "swiglu": replace(swiglu, rung="refuses", refuses=lambda *args: "too long"),
        "linear": replace(linear, rung="hopper", unavailable=lambda device: "needs Hopper"),
    })  # fmt: skip


_measured = []


@pytest.fixture
def record(fakes):
    if not _measured:  # once: a record cannot be changed
        _measured.append(experiments.run(config.parse("fake", CONFIG), instruments(), progress=False))
    return _measured[0]


def rows_of(record, part) -> dict:
    return {row.label: row for row in record.models if row.workload.part == part}


def test_run_records_every_candidate(record):
    labels = [f"{choice} {how}" for choice in CONFIG["backends"] for how in ("eager", "compiled")]
    assert [(row.workload.part, row.label) for row in record.models] == [
        (part, label) for part in ("model", "block", "mlp") for label in labels
    ]
    assert record.rows == () and record.method == model_runs.METHOD
    assert [str(each) for each in record.model_workloads()] == [
        "tiny model decode 2x6 float32", "tiny block prefill 2x6 float32", "tiny mlp decode 2x6 float32",
    ]  # fmt: skip


def test_run_measures_the_right_and_gives_the_rest_their_errors(record):
    for row in record.models:
        part, choice, what = row.workload.part, row.backend, (row.error or "").partition(": ")
        if choice == "torch" or (choice == SWAPPED and part != "mlp"):
            assert row.error is None and row.timing.median_us == US
        elif choice == "torch,add_rmsnorm=fake:wrong" and part != "mlp":
            assert what[0] == "WrongResult" and "is off torch eager's by" in what[2]
        elif choice == "torch,swiglu=fake":
            assert what[2].startswith("swiglu on fake:refuses: too long") or row.compiled
            assert row.error.startswith("cannot run: ") or row.compiled
        elif choice == "torch,linear=fake":
            assert row.error == "cannot run: linear on fake: hopper: needs Hopper"
        else:
            assert row.error.startswith("cannot run: mlp calls none of ")
        if row.error:
            assert row.timing is row.fraction is row.tokens_per_s is row.graph_us is row.fingerprint is None


def test_a_row_holds_what_follows_from_its_time(record):
    row = rows_of(record, "block")[f"{SWAPPED} compiled"]
    cost = row.workload.cost
    assert (row.flops, row.bytes, row.floor_us) == (cost.flops, cost.bytes, CEILINGS.floor_us(cost))
    assert row.tokens_per_s == pytest.approx(2 * 6 / US * 1e6) and row.tflops == pytest.approx(cost.flops / US / 1e6)
    assert row.fraction == pytest.approx(row.floor_us / US)
    assert row.weights == 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64 + 2 * 64)
    assert row.peak_memory == 3 << 20 and row.compile_s > 0
    assert row.implementations == {
        "add_rmsnorm": str(registry.ladder("add_rmsnorm", "triton")[-1]),
        "attention": "torch:eager", "linear": "torch:eager", "rope": "torch:eager", "swiglu": "torch:eager",
    }  # fmt: skip
    assert row.notes == ("graph: faked for 1",) and row.graph_us is None
    decode = rows_of(record, "model")["torch eager"]
    assert decode.tokens_per_s == pytest.approx(2 / US * 1e6)
    assert decode.weights == 4 * MODELS["tiny"].parameters


def test_a_graph_holds_more_calls_the_shorter_they_are(fakes):
    raw = CONFIG | {"models": {"tiny": [ENTRY]}, "backends": ["torch"], "compile": [False]}
    ceilings = replace(CEILINGS, copy_gbps=1e6)
    for us, calls in ((1.0, 20), (150.0, 14), (1999.0, 2), (2001.0, 1)):
        instrument = replace(instruments(Clock(lambda fn, us=us: us)), ceilings=ceilings)
        (row,) = experiments.run(config.parse("fake", raw), instrument, progress=False).models
        assert row.notes == (f"graph: faked for {calls}",)


def test_times_are_those_of_their_own_candidate(fakes):
    """Every candidate's call is told by its order of first being timed: its time must end up in its own row."""
    raw = CONFIG | {"models": {"tiny": [ENTRY]}, "backends": ["torch", SWAPPED]}
    seen = {}

    def us(fn):
        with trace() as calls:
            fn()
        swapped = any(call.backend == "triton" for call in calls)
        compiled = not any(call.operator == "linear" for call in calls)
        seen[id(fn)] = swapped, compiled
        return US * (1 + 2 * swapped + compiled)

    record = experiments.run(config.parse("fake", raw), instruments(Clock(us)), progress=False)
    assert {row.label: row.timing.median_us for row in record.models} == {
        "torch eager": US, "torch compiled": 2 * US, f"{SWAPPED} eager": 3 * US, f"{SWAPPED} compiled": 4 * US,
    }  # fmt: skip
    assert len(seen) == 4


def test_an_impossible_time_is_an_error_and_no_time(fakes):
    raw = CONFIG | {"models": {"tiny": [ENTRY]}, "backends": ["torch"]}
    floor_us = CEILINGS.floor_us(workload().cost)
    for factor, possible in ((0.85, False), (0.95, True)):
        clock = Clock(lambda fn, factor=factor: factor * floor_us)
        record = experiments.run(config.parse("fake", raw), instruments(clock), progress=False)
        for row in record.models:
            assert (row.timing is not None) == possible
            assert possible or row.error.startswith("ImpossibleTiming: ")


@pytest.mark.parametrize("when", ["to build", "to call", "to time"])
def test_running_out_of_memory_is_recorded(fakes, monkeypatch, when):
    def out_of_memory(*args):
        raise torch.cuda.OutOfMemoryError("out of memory")

    instrument = instruments(out_of_memory if when == "to time" else None)
    if when == "to build":
        monkeypatch.setattr(model_runs, "KVCache", lambda *args, **kwargs: out_of_memory())
    if when == "to call":
        instrument = replace(instrument, peak_memory=out_of_memory)
    raw = CONFIG | {"models": {"tiny": [ENTRY]}, "backends": ["torch"], "compile": [False]}
    (row,) = experiments.run(config.parse("fake", raw), instrument, progress=False).models
    assert row.error == "OutOfMemoryError: out of memory" and row.timing is None


def test_a_broken_gpu_ends_the_run(fakes):
    def dead():
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory"):
        experiments.run(config.parse("fake", CONFIG), replace(instruments(), synchronize=dead), progress=False)


def test_a_choice_that_another_backend_answers_is_an_error(fakes, monkeypatch):
    """As if a module ignored what it was told to use."""
    stubborn = property(lambda self: "torch", lambda self, backend: None)
    monkeypatch.setattr(AddRMSNorm, "backend", stubborn, raising=False)
    raw = CONFIG | {"models": {"tiny": [ENTRY]}, "backends": [SWAPPED]}
    for row in experiments.run(config.parse("fake", raw), instruments(), progress=False).models:
        assert row.error.startswith("NotRun: add_rmsnorm forward ran on ") and row.timing is None


def test_operators_and_models_go_into_one_record(fakes):
    operators = {"rmsnorm": [{"shape": [4, 64], "dtype": "float32", "directions": ["forward"]}]}
    raw = OPERATORS | CONFIG | {"operators": operators, "implementations": ["torch"], "backends": ["torch"]}
    raw |= {"compile": [False]}
    both = replace(instruments(), sample=lambda fn: fn() and 4000.0)
    both = replace(
        both, launch_overhead=lambda fn: 7.0,
        graph_times=lambda candidates: dict.fromkeys(candidates, timing.GraphTime(1.0, None)),
    )  # fmt: skip
    record = experiments.run(config.parse("fake", raw | {"peers": []}), both, progress=False)
    assert len(record.rows) == 1 and len(record.models) == 3 and "Ours are timed" in record.method
    assert model_runs.METHOD in record.method and record.rows[0].timing.median_us == 4000.0


def test_a_row_by_its_names():
    record = records.published("baseline_torch")
    decode = record.model_workload("llama3.2-1b", "decode")
    assert (decode.model, decode.phase, decode.part) == ("llama3.2-1b", "decode", "model")
    row = record.model_row(decode, "torch compiled")
    assert row in record.models and (row.workload, row.backend, row.compiled) == (decode, "torch", True)
    with pytest.raises(ValueError, match=r"has 0 workloads .*, mlp, sideways; expected one"):
        record.model_workload("llama3.2-1b", "sideways", "mlp")
    with pytest.raises(ValueError, match=r"no 'triton eager' of .*; expected one of torch eager, torch compiled"):
        record.model_row(decode, "triton eager")


# The clock on the wall ------------------------------------------------------------------------------------------------


def test_latency_clears_first_and_waits_before_and_after(monkeypatch):
    log, now = [], iter([1.0, 1.00025])

    class Buffer:
        def zero_(self):
            log.append("clear")

    sampler = object.__new__(timing.ColdSampler)
    sampler.buffer = Buffer()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: log.append("clock") or next(now))
    assert sampler.latency(lambda: log.append("call")) == pytest.approx(250.0)
    assert log == ["clear", "synchronize", "clock", "call", "synchronize", "clock"]


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["model", "block", *LAYERS])
def test_a_real_run_times_eager_and_compiled(part, monkeypatch):
    monkeypatch.undo()  # Inductor itself
    level, module = ("layer", {"module": part}) if part in LAYERS else (part, {})
    entries = [ENTRY | {"level": level, "phase": phase, "dtype": "float16"} | module for phase in PHASES]
    choices = ["torch", SWAPPED] if part not in ("mlp", "self_attn") else ["torch"]
    raw = CONFIG | {"models": {"tiny": entries}, "backends": choices}
    record = experiments.run(config.parse("real", raw), progress=False)
    for row in record.models:
        assert row.error is None, f"{row}: {row.error}"
        assert row.graph_us is not None and row.graph_us < row.timing.median_us, row.notes
        assert row.peak_memory > 0 and row.compile_s > 0
    assert not record.stale()


# Records --------------------------------------------------------------------------------------------------------------


def test_a_record_of_models_survives_json(record, tmp_path):
    record.write(tmp_path / "r.json")
    again = records.read(tmp_path / "r.json")
    again.write(tmp_path / "again.json")
    assert (tmp_path / "r.json").read_text() == (tmp_path / "again.json").read_text()
    assert [row.workload for row in again.models] == [row.workload for row in record.models]
    assert again.models[0].implementations == record.models[0].implementations


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda row: row.update(extra=1), r"models\[0\] is \['extra'\]"),
        (lambda row: row.update(compiled="yes"), r"models\[0\].compiled is 'yes'; expected bool"),
        (lambda row: row.update(weights=1.5), r"models\[0\].weights is 1.5; expected int"),
        (lambda row: row["workload"].update(level="head"), r"models\[0\].workload.level is 'head'"),
        (lambda row: row["workload"].update(phase="train"), r"models\[0\].workload.phase is 'train'"),
        (lambda row: row["workload"].update(module="mlp"), r"models\[0\].workload.module is 'mlp'"),
        (lambda row: row["workload"].pop("batch"), r"models\[0\].workload is \['batch'\]"),
        (lambda row: row["implementations"].update(linear=3), r"models\[0\].implementations is 3|expected str"),
        (lambda row: row.update(timing=None), "either a timing or an error"),
        (lambda row: row.update(fraction=0.99), "floor over median"),
        (lambda row: row["timing"].update(p80_us=1.0), "p20 <= median <= p80"),
        (lambda row: row.update(graph_us=float("inf")), "a finite number"),
    ],
)
def test_a_broken_row_is_refused(record, tmp_path, break_it, message):
    path = tmp_path / "r.json"
    record.write(path)
    raw = json.loads(path.read_text())
    break_it(raw["models"][0])
    path.write_text(json.dumps(raw))
    with pytest.raises(records.RecordError, match=message):
        records.read(path)


def test_a_fresh_record_is_not_stale(record):
    assert record.stale() == []


def test_another_launch_makes_the_models_that_call_it_stale(record, monkeypatch):
    monkeypatch.setattr(triton_rmsnorm, "_warps", lambda block: 2)
    workloads = "tiny model decode 2x6 float32", "tiny block prefill 2x6 float32"
    assert record.stale() == [f"{each} {SWAPPED} {how}" for each in workloads for how in ("eager", "compiled")]


def test_another_cost_or_model_makes_it_stale(record, monkeypatch):
    with monkeypatch.context() as patched:
        cost = registry.operator("rmsnorm").forward_cost
        patched.setattr(type(registry.operator("swiglu")), "forward_cost", lambda self, *args: cost(*args))
        assert len(record.stale()) == 4 + 4 + 2  # every row that has a time
    with monkeypatch.context() as patched:
        patched.setitem(MODELS, "tiny", replace(MODELS["tiny"], hidden_size=128))
        assert len(record.stale()) == 4 + 4 + 2
    with monkeypatch.context() as patched:
        patched.delitem(MODELS, "tiny")
        assert len(record.stale()) == 4 + 4 + 2
    assert record.stale() == []


def test_a_rung_that_is_gone_or_surpassed_makes_it_stale(record, monkeypatch, ladders):
    triton = registry.ladder("add_rmsnorm", "triton")
    workloads = "tiny model decode 2x6 float32", "tiny block prefill 2x6 float32"
    swapped = [f"{each} {SWAPPED} {how}" for each in workloads for how in ("eager", "compiled")]
    for changed in (triton[:-1], (*triton, replace(triton[-1], rung="better"))):
        ladders("triton", {"add_rmsnorm": changed})
        assert record.stale() == swapped
    ladders("triton", {"add_rmsnorm": (triton[0], replace(triton[0], rung="new"), *triton[1:])})
    assert record.stale() == []  # beside the one that ran, and below it
    named = record.models[2]
    named = replace(named, backend=f"torch,rmsnorm=triton,add_rmsnorm={triton[-1]}")
    fingerprint = named.workload.fingerprint(named.backend, named.implementations, ENVIRONMENT.launchers_gpu)
    alone = replace(record, models=(replace(named, fingerprint=fingerprint),))
    ladders("triton", {"add_rmsnorm": (*triton, replace(triton[-1], rung="better"))})
    assert alone.stale() == []  # asked for by name


def test_another_torch_rung_makes_all_that_ran_on_it_stale(record, monkeypatch):
    torchs = registry.ladder("decode_attention", "torch")[0]
    moved = replace(torchs, function=registry.ladder("attention", "torch")[0].function)
    monkeypatch.setitem(registry._ladders["torch"], "decode_attention", (moved,))
    assert {name.split()[1] for name in record.stale()} == {"model"}


# Configs --------------------------------------------------------------------------------------------------------------


def changed(entry=None, **changes):
    return CONFIG | {"backends": ["torch"]} | ({"models": {"tiny": [ENTRY | entry]}} if entry else {}) | changes


def without(raw, *keys):
    return {key: value for key, value in raw.items() if key not in keys}


@pytest.mark.parametrize(
    "raw, message",
    [
        (
            without(CONFIG, "models", "backends", "compile"),
            "^config.operators, config.models and config.traps are missing",
        ),
        (without(CONFIG, "backends"), "^config.backends is missing"),
        (without(CONFIG, "compile"), "^config.compile is missing"),
        (without(CONFIG, "models"), "^config.models is missing"),
        (CONFIG | {"operators": OPERATORS["operators"]}, "^config.implementations is missing"),
        (CONFIG | {"peers": []}, "^config.implementations is missing"),
        (changed(colour="red"), "^config.colour is not a key; expected backends, compile, impl"),
        (changed(models={}), "^models is "),
        (changed(models={"tiny": []}), r"^models.tiny is \[\]"),
        (changed(models={"llama9": [ENTRY]}), "^models.llama9 is 'llama9'; expected one of llama3-8b, "),
        (changed(models={"tiny": [3]}), r"^models.tiny\[0\] is 3; expected a mapping"),
        (changed(models={"tiny": [ENTRY, ENTRY]}), "^models is .*; expected no workload twice"),
        (changed({"level": "head"}), r"^models.tiny\[0\].level is 'head'; expected one of layer, block, model, tr"),
        (changed({"level": "training"}), r"^models.tiny\[0\].phase is not a key; expected batch, dtype, level, tokens"),
        (changed(models={"tiny": [STEP | {"tokens": 1}]}), r"^models.tiny\[0\].tokens is 1; expected a whole number"),
        (changed(models={"tiny": [STEP | {"tokens": 257}]}), r"^models.tiny\[0\].tokens is 257; expected at most 256"),
        (
            changed(models={"tiny": [STEP | {"dtype": "float64"}]}),
            r"^models.tiny\[0\].dtype is 'float64'; expected one",
        ),
        (changed({"level": ["model"]}), r"^models.tiny\[0\].level is \['model'\]"),
        (changed({"phase": "train"}), r"^models.tiny\[0\].phase is 'train'; expected one of prefill, decode"),
        (changed({"dtype": "int8"}), r"^models.tiny\[0\].dtype is 'int8'"),
        (changed({"batch": 0}), r"^models.tiny\[0\].batch is 0"),
        (changed({"tokens": True}), r"^models.tiny\[0\].tokens is True"),
        (changed({"phase": "prefill", "tokens": 1}), r"^models.tiny\[0\].tokens is 1; expected a whole number of at"),
        (changed({"phase": "prefill", "tokens": 257}), r"^models.tiny\[0\].tokens is 257; expected at most 256"),
        (changed({"tokens": 256}), r"^models.tiny\[0\].tokens is 256; expected at most 255"),
        (changed({"module": "mlp"}), r"^models.tiny\[0\].module is not a key"),
        (changed({"level": "layer"}), r"^models.tiny\[0\].module is missing"),
        (changed({"level": "layer", "module": "lm_head"}), r"^models.tiny\[0\].module is 'lm_head'; expected one of s"),
        (changed({"size": 1}), r"^models.tiny\[0\].size is not a key"),
        (changed(backends=[]), r"^backends is \[\]"),
        (changed(backends=[3]), r"^backends\[0\] is 3"),
        (changed(backends=["pascal"]), r"^backends\[0\] is 'pascal': unknown backend 'pascal'"),
        (changed(backends=["torch,foo=triton"]), r"^backends\[0\] is 'torch,foo=triton': unknown operator 'foo'"),
        (changed(backends=["torch", "torch"]), "^backends is .*; expected no choice twice"),
        (changed(compile=True), "^compile is True; expected a list"),
        (changed(compile=["yes"]), r"^compile\[0\] is 'yes'; expected true or false"),
        (changed(compile=[True, True]), "^compile is .*; expected no value twice"),
    ],
)
def test_a_bad_config_is_refused_by_key(raw, message):
    with pytest.raises(config.ConfigError, match=message):
        config.parse("bad", raw)


def test_the_longest_context_that_a_model_has():
    for phase, tokens in (("prefill", 256), ("decode", 255)):
        (parsed,) = config.parse("good", changed({"phase": phase, "tokens": tokens})).models
        assert parsed.context + parsed.new == MODELS["tiny"].max_position_embeddings
    with torch.no_grad():
        ForwardPass(parsed, DEVICE, 0).call_of("torch", False)()


def test_bfloat16_gives_way_where_there_is_none():
    assert config.without_bfloat16(workload(dtype="bfloat16"), (7, 5)) == workload(dtype="float16")
    assert config.without_bfloat16(workload(dtype="bfloat16"), (8, 0)).dtype == "bfloat16"


@pytest.mark.parametrize("name", [name for name in config.names() if config.load(name).models])
def test_the_experiments_about_models(name):
    """Their baseline is there, every choice does something somewhere, and their shapes are those that they are for."""
    experiment = config.load(name)
    assert "torch" in experiment.backends and False in experiment.compile
    called = {call.operator for workload in experiment.models for call in workload.calls}
    for choice in set(experiment.backends) - set(peers.MODEL_PEERS):
        assert set(registry.parse_choice(choice)) - {""} <= called
    assert {workload.model for workload in experiment.models} <= {"llama3.2-1b", "llama3-8b-4-layers"}


# Training -------------------------------------------------------------------------------------------------------------


def step_of(dtype="float32", seed=0) -> TrainingStep:
    return TrainingStep(ModelWorkload("tiny", "training", None, None, 2, 6, dtype), DEVICE, seed)


@pytest.mark.parametrize("compile", [False, True])
def test_a_timed_step_is_a_training_step(compile, compile_with):
    compile_with("aot_eager")
    task = step_of(seed=3)
    before = {name: weight.detach().clone() for name, weight in task.model.named_parameters()}
    plain = copy.deepcopy(task.model).use("torch")
    call = task.call_of("torch", compile)
    first, again = task.results(call), task.results(call)
    loss = plain.loss(*task.arguments)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    assert set(first) == {"loss", "the norm of the gradient", *(f"the gradient of {name}" for name in before)}
    for name, weight in plain.named_parameters():
        for found in (first, again):
            assert torch.allclose(found[f"the gradient of {name}"], weight.grad, atol=1e-5), name
        own = task.optimizer.weights[name]
        assert torch.equal(own, before[name]) and task.optimizer.adamw.state[own]["step"] == 2
    outputs = [output.item() for output in call()]
    assert outputs == pytest.approx([loss.item(), norm.item()], rel=1e-4)


@pytest.mark.parametrize("dtype, bytes_each", [("float32", 12), ("bfloat16", 14)])
def test_the_memory_of_training(dtype, bytes_each):
    assert step_of(dtype).weights == bytes_each * MODELS["tiny"].parameters


def twice(x):
    """x, with twice the gradient."""
    return x + (x - x.detach())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_pass_is_found_in_training(dtype, ladders):
    task = step_of(dtype)
    expected = task.results(task.call_of("torch", False))
    task.check(task.results(task.call_of("torch", False)), expected)
    forward = WRONG | {"cross_entropy": lambda loss: 1.25 * loss}

    def backward(outputs):
        return tuple(map(twice, outputs)) if isinstance(outputs, tuple) else twice(outputs)

    for op in {call.operator for call in task.workload.calls}:
        for result in (forward[op], backward):
            ladders("fake", {op: wrong(op, result)})
            with pytest.raises(WrongResult, match="is off torch eager's by"):
                task.check(task.results(task.call_of(f"torch,{op}=fake", False)), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_candidate_that_breaks_down_leaves_the_others_alone(ladders, dtype):
    """All share their weights, and the optimizer's."""

    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dx):
            raise RuntimeError("too many resources requested for launch")

    ladders("fake", {"swiglu": wrong("swiglu", Raises.apply), "linear": wrong("linear", lambda y: math.nan * y)})
    choices = ["torch,linear=fake", "torch,swiglu=fake", "torch"]
    raw = CONFIG | {"models": {"tiny": [STEP | {"dtype": dtype}]}, "backends": choices, "compile": [False]}
    spoils, raises, right = experiments.run(config.parse("fake", raw), instruments(), progress=False).models
    assert raises.error == "RuntimeError: too many resources requested for launch" and right.error is None
    assert re.fullmatch("WrongResult: the gradient of .* is missing or not finite", spoils.error)


@pytest.mark.parametrize("compile", [False, True])
def test_both_passes_of_what_was_chosen_ran(compile, compile_with):
    compile_with("aot_eager")
    task = step_of()
    chosen, trace = task.implementations(SWAPPED, DEVICE), ran(task, SWAPPED, compile)
    task.check_ran(trace, chosen, compile)
    backward = [call for call in trace if call.direction == "backward"]
    assert len(backward) == 5 and {call.backend for call in backward} == {"triton"}
    for changed in ([call for call in trace if call not in backward], trace[:-1], [*trace, trace[-1]]):
        with pytest.raises(NotRun, match=r"rmsnorm backward ran on triton:\w+ \d times; expected \d"):
            task.check_ran(changed, chosen, compile)


def test_a_record_of_training(ladders, tmp_path):
    ladders("fake", {"linear": wrong("linear", WRONG["linear"])})
    raw = FEW | {"models": {"tiny": [STEP]}, "backends": ["torch", SWAPPED, "torch,linear=fake"]}
    record = experiments.run(config.parse("fake", raw), instruments(), progress=False)
    record.write(tmp_path / "r.json")
    assert records.read(tmp_path / "r.json").models[0].workload == record.models[0].workload
    rows = rows_of(record, "training")
    cost = costs.training_cost(MODELS["tiny"], 2, 6, torch.float32)
    for label in ("torch eager", "torch compiled", f"{SWAPPED} eager", f"{SWAPPED} compiled"):
        assert rows[label].error is None and rows[label].tokens_per_s == pytest.approx(2 * 6 / US * 1e6)
        assert (rows[label].flops, rows[label].bytes) == (cost.flops, cost.bytes)
        assert rows[label].notes == ("graph: AdamW is not captured",) and rows[label].graph_us is None
    assert all("WrongResult" in rows[f"torch,linear=fake {how}"].error for how in ("eager", "compiled"))
    table = tables.model_table(record, record.model_workloads()[0])
    mfu = 100 * cost.flops / US / 1e6 / CEILINGS.matmul_tflops
    assert table.header[:6] == ["tiny training 2x6 float32", "us", "tokens/s", "TFLOP/s", "% floor", "MFU %"]
    assert table.rows[0][5] == f"{mfu:.1f}"
    assert record.stale() == []


def test_the_backward_pass_is_in_a_steps_fingerprint(monkeypatch):
    step = step_of().workload
    chosen = {op: str(each) for op, each in step_of().implementations(SWAPPED, DEVICE).items()}
    before = step.fingerprint(SWAPPED, chosen, ENVIRONMENT.launchers_gpu)
    fingerprint = fingerprints.fingerprint
    monkeypatch.setattr(
        fingerprints, "fingerprint", lambda rung, each, gpu: fingerprint(rung, replace(each, direction="forward"), gpu)
    )
    assert step.fingerprint(SWAPPED, chosen, ENVIRONMENT.launchers_gpu) != before


@pytest.mark.parametrize("package, version", [("torch", metadata.version("torch")), ("no-such-package", None)])
def test_a_peers_operators(package, version, monkeypatch):
    peer = peers.Peer(package, lambda: lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps))
    monkeypatch.setattr(peers, "peers_in_a_model", lambda op: {"liger": peer} if op == "rmsnorm" else {})
    raw = FEW | {"models": {"tiny": [STEP, ENTRY]}, "backends": ["torch", "liger"]}
    record = experiments.run(config.parse("fake", raw), instruments(), progress=False)
    for part in ("training", "model"):
        for how in ("eager", "compiled"):
            row = rows_of(record, part)[f"liger {how}"]
            if version is None:
                assert row.error == "absent: no-such-package is not installed"
            else:
                assert row.error is None and row.implementations["rmsnorm"] == f"liger:{version}"
                assert row.implementations["add_rmsnorm"] == "torch:eager" and row.fingerprint is None
    assert rows_of(record, "training")["torch eager"].error is None
    assert record.stale() == [] and "liger" not in registry.backends()


def test_a_peer_that_writes_over_its_inputs_runs_in_models_alone():
    for op in ("swiglu", "rope", "cross_entropy"):
        assert "liger" in peers.peers_in_a_model(op) and "liger" not in peers.peers(op)
    assert peers.peers_in_a_model("rmsnorm") == peers.peers("rmsnorm") and peers.peers_in_a_model("no_such") == {}


def test_a_peer_that_has_nothing_to_give(monkeypatch):
    monkeypatch.setattr(peers, "peers_in_a_model", lambda op: {})
    raw = CONFIG | {"models": {"tiny": [STEP]}, "backends": ["liger"], "compile": [False]}
    (row,) = experiments.run(config.parse("fake", raw), instruments(), progress=False).models
    assert row.error.startswith("absent: liger has none of add_rmsnorm, attention, cross_entropy, ")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_real_run_times_training(monkeypatch, dtype):
    monkeypatch.undo()  # Inductor itself
    entry = STEP | {"tokens": 64, "dtype": dtype}
    raw = CONFIG | {"models": {"tiny": [entry]}, "backends": ["torch", SWAPPED, "auto", "liger"]}
    record = experiments.run(config.parse("real", raw), progress=False)
    for row in record.models:
        if row.error and row.backend == "liger":  # it need not be here, and its loss may branch on what is in a tensor
            refused = row.compiled and row.error == "Unsupported: Data-dependent branching"
            assert refused or row.error == "absent: liger-kernel is not installed"
            continue
        assert row.error is None, f"{row}: {row.error}"
        assert row.peak_memory > 0 and row.compile_s > 0
    assert not record.stale()


# Publishing and reproducing -------------------------------------------------------------------------------------------


def slower(record, factor, label=f"{SWAPPED} eager"):
    """The record, had the candidate taken `factor` times as long."""

    def row_of(row):
        if row.timing is None or row.label != label:
            return row
        t = row.timing
        scaled = {name: getattr(t, name) * factor for name in t.__dataclass_fields__ if name != "count"}
        per_s, fraction = row.tokens_per_s / factor, row.fraction / factor
        return replace(row, timing=timing.Timing(**scaled, count=t.count), fraction=fraction, tokens_per_s=per_s)

    return replace(record, models=tuple(map(row_of, record.models)))


@pytest.fixture
def house(tmp_path, monkeypatch, record):
    """A checkout of its own with the experiment "fake"; its record is published."""
    folder = tmp_path / "experiments"
    (folder / "fake").mkdir(parents=True)
    (folder / "fake" / "config.yaml").write_text(json.dumps(CONFIG))
    for module in (records, config, training_runs):
        monkeypatch.setattr(module, "experiments_folder", lambda: folder)
    monkeypatch.setattr(experiments, "AUTO", tmp_path / "auto.json")
    experiments.publish(record)
    return tmp_path


def test_publish_leaves_auto_alone(house):
    folder = house / "experiments" / "fake"
    assert records.published("fake", "NVIDIA Fake 80GB").models and (folder / "env.txt").exists()
    assert not (house / "auto.json").exists()


@pytest.mark.parametrize("factor, drifted", [(1.0, False), (1.02, False), (1.04, True), (0.96, True), (1.1, True)])
def test_reproduce_finds_a_planted_slowdown(house, record, monkeypatch, factor, drifted):
    monkeypatch.setattr(experiments, "run", lambda *args: slower(record, factor))
    found = experiments.reproduce("fake", instruments())
    ratios = {"fraction of ceiling", "speedup over torch eager"} if drifted else set()
    parts = {"model", "block"} if drifted else set()
    assert {(drift.row.workload.part, drift.row.label, drift.ratio) for drift in found} == {
        (part, f"{SWAPPED} eager", ratio) for part in parts for ratio in ratios
    }
    if drifted:
        assert str(found[0]).startswith(f"tiny model decode 2x6 float32 {SWAPPED} eager: fraction of ceiling ")


def test_a_slower_baseline_is_found_too(house, record, monkeypatch):
    monkeypatch.setattr(experiments, "run", lambda *args: slower(record, 1.1, "torch eager"))
    found = experiments.reproduce("fake", instruments())
    of_the_others = [drift for drift in found if drift.row.label != "torch eager"]
    assert {drift.ratio for drift in of_the_others} == {"speedup over torch eager"}
    assert {drift.ratio for drift in found if drift not in of_the_others} == {"fraction of ceiling"}


def test_reproduce_runs_the_experiment_and_notices_what_can_no_longer_be_timed(house, record, ladders):
    smaller = CONFIG | {"models": {"tiny": [ENTRY]}, "backends": ["torch", SWAPPED], "compile": [False]}
    (house / "experiments" / "fake" / "config.yaml").write_text(json.dumps(smaller))
    rows = [row for row in record.models if row.workload == workload() and not row.compiled]
    experiments.publish(replace(record, models=tuple(rows[:2])))
    assert experiments.reproduce("fake", instruments(), progress=False) == []
    rung = registry.ladder("add_rmsnorm", "triton")[-1]
    ladders("triton", {"add_rmsnorm": replace(rung, refuses=lambda *args: "too long")})
    found = experiments.reproduce("fake", instruments(), progress=False)
    assert len(found) == 2 and all(drift.measured is None and drift.row.backend == SWAPPED for drift in found)


# Tables, figures, reports ---------------------------------------------------------------------------------------------


def test_the_table_of_a_workload(record):
    graphed = replace(record.models[2], graph_us=1234.56)
    shown = tables.model_table(slower(replace(record, models=(*record.models[:2], graphed, *record.models[3:])), 0.5),
                               record.models[0].workload)  # fmt: skip
    assert [row[0] for row in shown.rows] == [row.label for row in record.models[:10]]
    columns = dict(zip(shown.header, shown.rows[2]))
    row = record.models[2]
    assert columns == {
        "tiny model decode 2x6 float32": f"{SWAPPED} eager", "us": "2500.0", "tokens/s": "800",
        "TFLOP/s": f"{row.tflops:.3g}", "% floor": f"{200 * row.fraction:.0f}", "graph us": "1234.6", "MiB": "3.0",
        "compile s": f"{row.compile_s:.1f}", "vs torch": "2.00",
    }  # fmt: skip
    assert shown.rows[0][-1] == tables.NOTHING and shown.rows[4][1:] == [tables.NOTHING] * 8
    assert shown.best == {(2, 1)}
    lines = shown.text().splitlines()
    assert max(map(len, lines)) <= 80 and lines[0] == "tiny model decode 2x6 float32"
    assert lines[6] == f"{SWAPPED} eager" and lines[7].split()[0] == "2500.0*"
    assert f"| {SWAPPED} eager | **2500.0** | 800 |" in shown.markdown()


def test_the_chart_of_a_workload(record):
    where = record.models[0].workload
    first, again = (figures.tokens_per_second(record, where) for _ in range(2))
    assert first.svg == again.svg and "compiled 400" in first.alt and "fake" not in first.alt
    assert figures.tokens_per_second(slower(record, 0.5), where).svg != first.svg
    assert [figures.colour(row) for row in record.models[:3:2]] == [figures.COLOURS["torch"], figures.COLOURS["triton"]]
    with pytest.raises(ValueError, match="no time for tiny mlp prefill"):
        figures.tokens_per_second(record, workload("mlp", "prefill"))


@pytest.mark.parametrize("as_html", [False, True])
def test_report(record, tmp_path, as_html):
    text = report.write(record, tmp_path, as_html).read_text()
    for expected in (
        "tiny block prefill 2x6 float32",
        f"{SWAPPED} compiled",
        "mlp calls none of",
        "clock on the wall",
    ):
        assert expected in text
    assert text.count("<svg" if as_html else "![") == 3
    shutil.rmtree(tmp_path)


def test_an_experiment_without_a_record_is_said_to_be_that(house, record, capsys, monkeypatch, tmp_path):
    assert report.not_recorded() == []
    (house / "experiments" / "new").mkdir()
    (house / "experiments" / "new" / "config.yaml").write_text(json.dumps(CONFIG))
    assert report.not_recorded() == ["new"]
    assert cli.main(["report", "--all", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "not yet recorded: new\n"
    assert cli.main(["report", "new"]) == 2
    assert "no published record of experiment 'new'" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--smoke", "--op", "rmsnorm"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "new: the config is valid; not yet recorded; floors at the ceilings of NVIDIA Fake 80GB model" in out
    assert "fake: the config is valid; floors at the ceilings of NVIDIA Fake 80GB model" in out


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(record, monkeypatch, capsys):
    """`lab bench` as if there were a GPU: what is run gives the record. Returns what was printed and what asked for."""
    asked = []
    monkeypatch.setattr("lab.benchmark.timing.require_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("lab.benchmark.instruments.gpu_instruments", lambda: None)
    monkeypatch.setattr(experiments, "run", lambda experiment, *_: asked.append(experiment) or record)

    def run(*argv):
        assert cli.main(["bench", *argv]) == 0
        return capsys.readouterr().out, asked.pop()

    return run


def test_bench_prints_and_writes(bench, record, tmp_path):
    out, experiment = bench(
        "--level", "model", "--model", "tiny", "--phase", "decode", "--batch", "2", "--tokens", "6", "--backend",
        "torch", "--backend", SWAPPED, "--compile", "--dtype", "float32", "--json", str(tmp_path / "r.json"), "--csv",
        str(tmp_path / "r.csv"),
    )  # fmt: skip
    assert experiment.models == (workload(),) and experiment.workloads == ()
    assert (experiment.backends, experiment.compile) == (("torch", SWAPPED), (False, True))
    assert max(map(len, out.splitlines())) <= 80 and f"\n{SWAPPED} compiled\n" in out
    assert "not timed: tiny mlp decode 2x6 float32 torch,linear=fake eager: cannot run: " in " ".join(out.split())
    assert records.read(tmp_path / "r.json").models[0].timing == record.models[0].timing
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert len(rows) == len(record.models)
    assert (rows[2]["backend"], rows[2]["phase"], rows[2]["median_us"], rows[2]["compiled"]) == (
        SWAPPED, "decode", "5000.0", "False",
    )  # fmt: skip
    assert "add_rmsnorm=triton:" in rows[2]["implementations"] and rows[2]["gpu"] == "NVIDIA Fake 80GB"


@pytest.mark.parametrize(
    "argv, told",
    [
        (["--level", "model", "--model", "llama3.2-1b"], ["llama3.2-1b model {} 1x2048 bfloat16"]),
        (["--level", "block", "--model", "tiny", "--batch", "4"], ["tiny block {} 4x255 bfloat16"]),
        (["--level", "layer", "--smoke", "--dtype", "float16"], [f"tiny {each} {{}} 1x64 float16" for each in LAYERS]),
        (["--level", "layer", "--model", "tiny", "--tokens", "9", "--module", "mlp"], ["tiny mlp {} 1x9 bfloat16"]),
    ],
)
def test_what_bench_measures_unless_told_otherwise(bench, argv, told):
    _, experiment = bench(*argv)
    assert [str(each) for each in experiment.models] == [each.format(phase) for each in told for phase in PHASES]
    assert (experiment.backends, experiment.compile) == (("torch", "auto"), (False,))
    assert experiment.max_samples == (10 if "--smoke" in argv else 60)


@pytest.mark.parametrize(
    "argv, told, backends, compile",
    [
        ([], "tiny training 1x255 bfloat16", ("torch", "auto"), (False,)),
        (["--tokens", "256", "--peers"], "tiny training 1x256 bfloat16", ("torch", "auto", "liger"), (False,)),
        (
            ["--backend", "torch", "--compile", "--batch", "4"],
            "tiny training 4x255 bfloat16",
            ("torch",),
            (False, True),
        ),
    ],
)
def test_what_bench_measures_of_training(bench, argv, told, backends, compile):
    _, experiment = bench("--level", "training", "--model", "tiny", *argv)
    assert [str(each) for each in experiment.models] == [told]
    assert (experiment.backends, experiment.compile) == (backends, compile)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--level", "model"], "lab bench: --model is missing; expected one of llama3-8b, "),
        (["--level", "model", "--model", "llama9"], "lab bench: --model is 'llama9'; expected one of llama3-8b, "),
        (["--level", "block", "--model", "tiny", "--op", "rmsnorm"], "lab bench: --op goes with --level kernel"),
        (["--level", "block", "--model", "tiny", "--shape", "1"], "lab bench: --shape goes with --level kernel"),
        (["--level", "training", "--model", "tiny", "--phase", "decode"], "--phase does not go with --level training"),
        (["--op", "rmsnorm", "--batch", "0"], "lab bench: --batch does not go with --level kernel"),
        (["--op", "rmsnorm", "--compile"], "lab bench: --compile does not go with --level kernel"),
        (["--level", "model", "--model", "tiny", "--module", "mlp"], "lab bench: --module goes with --level layer"),
        (["--level", "layer", "--model", "tiny", "--module", "x"], "module is 'x'; expected one of self_attn, "),
        (["--level", "model", "--model", "tiny", "--batch", "0"], "batch is 0; expected a whole number of at least 1"),
        (["--level", "model", "--model", "tiny", "--tokens", "999"], "tokens is 999; expected at most 256"),
        (["--level", "model", "--model", "tiny", "--dtype", "int8"], "dtype is 'int8'; expected one of float16"),
        (["--level", "model", "--model", "tiny", "--backend", "x"], "backends[0] is 'x': unknown backend 'x'"),
    ],
)
def test_what_bench_refuses(capsys, argv, message):
    assert cli.main(["bench", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine with no GPU")
def test_without_a_gpu(capsys):
    assert cli.main(["bench", "--level", "model", "--model", "tiny"]) == 2
    assert capsys.readouterr() == ("", "lab bench: timing needs a CUDA GPU, and this machine has none\n")
    assert cli.main(["bench", "--smoke", "--level", "model", "--model", "llama3.2-1b", "--phase", "decode"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.splitlines()[-1] == "Nothing was timed: this machine has no GPU."
    lines = [line.split() for line in out.splitlines()]
    assert ["llama3.2-1b", "model", "decode", "1x64", "bfloat16"] in lines
    attention = ["decode_attention", "1x32x8x65x64", "16"]
    assert any(line[:3] == attention for line in lines) and any(
        line[:2] == ["linear", "1x128256x2048"] for line in lines
    )
    assert cli.main(["bench", "--smoke", "--level", "training", "--model", "llama3.2-1b", "--peers"]) == 0
    trained = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["llama3.2-1b", "training", "1x64", "bfloat16"] in trained
    assert any(line[:3] == ["cross_entropy", "64x128256", "1"] for line in trained)
    cost = costs.training_cost(MODELS["llama3.2-1b"], 1, 64, torch.bfloat16)
    assert any(line[:2] == [f"{cost.bytes / 1e6:.1f}", f"{cost.flops / 1e6:.1f}"] for line in trained)
    cost = replace(workload(tokens=64, batch=1, dtype="bfloat16"), model="llama3.2-1b").cost
    assert any(line[:2] == [f"{cost.bytes / 1e6:.1f}", f"{cost.flops / 1e6:.1f}"] for line in lines)


def test_resources_of_an_experiment_about_models(house, capsys):
    assert cli.main(["record", "fake", "--resources"]) == 2
    assert "experiment 'fake' has no operators" in capsys.readouterr().err
