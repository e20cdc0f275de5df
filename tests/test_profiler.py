"""A profile says whose the time is."""

import gzip
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lab
from lab import cli
from lab.backends import implementation, registry
from lab.backends.hardware import default_device
from lab.benchmark.timing import CannotTime
from lab.core import LLM, MODELS
from lab.profiling import profiler

DEVICE = default_device()
TINY = replace(MODELS["tiny"], vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=8)
on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="plants CPU time")


@pytest.fixture
def slow(monkeypatch):
    """A backend like PyTorch's, but for two slow passes: swiglu's forward, and the backward of attention."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            time.sleep(0.1)
            return grad

    def swiglu(gate, up):
        time.sleep(0.2)
        return torch.nn.functional.silu(gate) * up

    registry.backends()
    monkeypatch.setattr(registry, "_ladders", dict(registry._ladders))
    rungs = {op: registry.ladder(op, "torch")[0] for op in registry.operators()}
    attention = rungs["attention"].function
    rungs["swiglu"] = replace(rungs["swiglu"], function=swiglu)
    rungs["attention"] = replace(rungs["attention"], function=lambda *args: Slow.apply(attention(*args)))
    registry.register_backend("slow", rungs)
    return "slow"


def training(model, ids):
    def step():
        model.zero_grad()
        model.loss(ids, ids).backward()

    return step


@pytest.fixture
def ids():
    return torch.randint(TINY.vocab_size, (2, 9)).to(DEVICE)


@on_cpu
def test_time_goes_to_the_pass_that_takes_it(slow, ids):
    """Held against the sleeps, and the clock: on a busy machine all else may take any time."""
    model, seconds = LLM(TINY).use(slow), []
    step = training(model, ids)

    def timed():
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)

    found = profiler.profile(model, timed, steps=3)
    us = {(row.operator, row.direction): row.us for row in found.rows}
    assert us["swiglu", "forward"] >= 0.4e6 and us["attention", "backward"] >= 0.2e6  # two layers
    assert found.us <= sum(seconds[-3:]) / 3 * 1e6  # no time is given to two
    assert {row.backend for row in found.rows} == {"slow", ""}


def test_every_pass_is_there_once(ids):
    model = LLM(TINY).use("torch").to(DEVICE)
    step = training(model, ids)
    found = profiler.profile(model, step, steps=2)
    with lab.trace() as calls:
        step()
    assert found.device == DEVICE.type and sum(row.share for row in found.rows) == pytest.approx(1)
    assert found.us == pytest.approx(sum(row.us for row in found.rows)) and found.us > 0
    counts = {(row.operator, row.direction): row.calls for row in found.rows if row.backend}
    forward = Counter(call.operator for call in calls)
    assert {op: n for (op, direction), n in counts.items() if direction == "forward"} == forward
    assert {op: n for (op, direction), n in counts.items() if direction == "backward"} == forward
    assert [row.operator for row in found.rows if not row.backend] == [profiler.ELSEWHERE]
    assert list(found.rows) == sorted(found.rows, key=lambda row: -row.us)


def test_the_trace_names_modules_and_operators(ids, tmp_path):
    model = LLM(TINY).use("torch").to(DEVICE)
    profiler.profile(model, training(model, ids), trace=tmp_path / "trace.json.gz")
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"module: layers.1.mlp.gate_proj", "operator: linear torch eager forward", "module: LLM"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json.gz"]


def test_a_step_that_fails_leaves_no_hooks(ids):
    model = LLM(TINY).use("torch").to(DEVICE)
    count = iter(range(9))

    def step():
        model(ids)
        if next(count) == 3:
            model(ids[0])

    with pytest.raises(ValueError, match="input_ids has shape"):
        profiler.profile(model, step)
    hooks = [*model.modules()]
    assert (
        not any(module._forward_hooks or module._forward_pre_hooks for module in hooks) and not implementation._ranges
    )


@on_cpu
def test_the_interpreter_is_not_profiled(ids):
    model = LLM(TINY).use("torch,rmsnorm=triton")
    with pytest.raises(CannotTime, match="Triton's interpreter"):
        profiler.profile(model, lambda: model(ids))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_kernels_of_ours_have_their_time_on_the_gpu(backend, ids):
    config = replace(MODELS["tiny"], hidden_size=4096, max_position_embeddings=4096, num_hidden_layers=1)
    model = LLM(config).to(DEVICE, torch.bfloat16).use(f"torch,rmsnorm={backend},add_rmsnorm={backend}")
    ids = torch.randint(64, (4, 4096), device=DEVICE)
    found = profiler.profile(model, training(model, ids))
    us = {(row.operator, row.direction, row.backend): row.us for row in found.rows}
    for direction in ("forward", "backward"):
        assert us["add_rmsnorm", direction, backend] > 50  # microseconds: it moves hundreds of megabytes


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_the_command(capsys, phase, tmp_path):
    trace = tmp_path / "trace.json.gz"
    arguments = ["--model", "tiny", "--phase", phase, "--tokens", "9", "--backend", "torch", "--trace", str(trace)]
    assert cli.main(["profile", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"tiny, {phase}, 1 x 9 tokens: ") and trace.exists()
    lines = {tuple(line.split()[:3]) for line in out.splitlines()}
    attention = "decode_attention" if phase == "decode" else "attention"
    assert ("linear", "forward", "torch:eager") in lines and (attention, "forward", "torch:eager") in lines
    assert (("linear", "backward", "torch:eager") in lines) == (phase == "train")


@pytest.mark.parametrize("argv", [["--tokens", "256"], ["--tokens", "0"], ["--batch", "0"]])
def test_a_profile_of_nothing(capsys, argv):
    assert cli.main(["profile", "--model", "tiny", *argv]) == 2
    assert "expected at least 1, and at most 255 tokens" in capsys.readouterr().err


def test_the_help_opens_the_same_run_in_nsight_systems(capsys):
    """With the command that the chapter explains."""
    with pytest.raises(SystemExit):
        cli.main(["profile", "--help"])
    told = capsys.readouterr().out
    command = next(line.strip() for line in told.splitlines() if "nsys profile" in line)
    chapter = Path(__file__).parents[1] / "book/chapters/profiling.py"
    assert f"# {command.partition('--output')[0]}" in chapter.read_text() and "--mark" in told.partition(command)[2]
