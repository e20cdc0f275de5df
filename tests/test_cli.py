"""The command line, on a machine with no GPU: what it says, and its exit codes."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from lab import cli
from lab.backends import registry
from lab.benchmark import environment, experiments, instruments, records, report
from lab.benchmark.ceilings import Ceilings
from lab.benchmark.timing import summarize

ROOT = Path(cli.__file__).parents[1]

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine with no GPU")


def run(capsys, *argv):
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "raised, code, says",
    [
        (IsADirectoryError(21, "Is a directory", "/x"), 2, "lab ops: [Errno 21] Is a directory: '/x'\n"),
        (NotADirectoryError(20, "Not a directory", "/x/y"), 2, "lab ops: [Errno 20] Not a directory: '/x/y'\n"),
        (SafetensorError("no space left"), 2, "lab ops: no space left\n"),
        (KeyboardInterrupt(), 130, "lab ops: interrupted\n"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(capsys, monkeypatch, raised, code, says):
    def fail(arguments):
        raise raised

    monkeypatch.setattr(cli, "_ops", fail)
    assert run(capsys, "ops") == (code, "", says)


def test_check_says_what_goes_wrong_in_a_line(capsys, monkeypatch):
    def fail(arguments):
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr(sys.modules["lab.check"], "main", fail)  # `lab.check` is the function
    assert run(capsys, "check") == (2, "", "lab check: [Errno 13] Permission denied: '/x'\n")


def test_ops_lists_everything_in_80_columns(capsys):
    code, out, _ = run(capsys, "ops")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    for op in registry.operators():
        assert f"\n{op}(" in out
        for rung in registry.implementations(op):
            assert f"    {rung.rung}: " in out
    assert "auto: " in out


def test_ops_as_json(capsys):
    code, out, _ = run(capsys, "ops", "rmsnorm", "--json")
    about = json.loads(out)
    assert code == 0 and list(about) == ["rmsnorm"]
    assert about["rmsnorm"]["auto"]["choice"] and about["rmsnorm"]["shapes"]["llama3-8b"] == [16384, 4096]
    for backend in registry.backends():
        rungs = about["rmsnorm"]["backends"][backend]
        assert [rung["rung"] for rung in rungs] == [rung.rung for rung in registry.ladder("rmsnorm", backend)]


@pytest.mark.parametrize(
    "argv, asked",
    [
        (["rmsnorm", "--shape", "llama3-8b"], (["rmsnorm"], (16384, 4096))),
        (["--shape", "8x16"], ((), (8, 16))),  # of all that it fits
    ],
)
def test_the_shape_of_resources(capsys, monkeypatch, argv, asked):
    from lab.profiling import resources

    calls = []
    monkeypatch.setattr(resources, "measure", lambda *args: calls.append(args) or resources.Published({}, ()))
    code, out, _ = run(capsys, "ops", "--resources", *argv)
    assert code == 0 and calls == [asked] and "\nrmsnorm: " in out and "\nattention: " not in out


def test_a_kernel_that_does_not_compile_is_no_traceback(capsys, monkeypatch):
    from lab.profiling import resources

    def fail(*args):
        raise resources.ResourceError("sm_75: no")

    monkeypatch.setattr(resources, "measure", fail)
    assert run(capsys, "ops", "rmsnorm", "--resources") == (2, "", "lab ops: sm_75: no\n")


def test_ops_says_why_a_rung_cannot_run(capsys, monkeypatch):
    registry.backends()
    monkeypatch.setattr(registry, "_ladders", dict(registry._ladders))
    rung = registry.ladder("rmsnorm", "torch")[0]
    warp = replace(rung, rung="warp", change="bends space", unavailable=lambda device: "needs a GPU of 2040")
    registry.register_backend("none", {"rmsnorm": warp})
    registry.register_backend("some", {"rmsnorm": [replace(rung, change="walks"), warp]})
    out = " ".join(run(capsys, "ops", "rmsnorm")[1].split())
    assert "none: cannot run: needs a GPU of 2040 warp: bends space some:" in out
    assert "some: runs here in part eager: walks warp: bends space [cannot run: needs a GPU of 2040]" in out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["ops", "nothing"], "lab ops: unknown operator 'nothing'; expected one of add_rmsnorm"),
        (["bench"], "lab bench: --op is missing; expected one of add_rmsnorm"),
        (["bench", "--op", "nothing"], "lab bench: unknown operator 'nothing'"),
        (["bench", "--op", "rmsnorm", "--backend", "pascal"], "is 'pascal'; expected a backend of torch, triton, cuda"),
        (["bench", "--op", "rmsnorm", "--backend", "torch:best"], "is 'torch:best'; expected a rung of torch: eager"),
        (["bench", "--op", "rmsnorm", "--shape", "12by3"], "lab bench: --shape is '12by3'"),
        (["bench", "--op", "rmsnorm", "--shape", "12"], "expected 2 numbers: rows, columns"),
        (["bench", "--op", "rmsnorm", "--dtype", "int8"], "dtype is 'int8'; expected one of float16"),
        (["record", "nothing"], "lab record: unknown experiment 'nothing'; expected one of baseline_torch"),
        (["reproduce", "nothing"], "lab reproduce: unknown experiment 'nothing'"),
        (["report", "nothing"], "lab report: no published record of experiment 'nothing'"),
        (["profile", "--model", "tiny", "--trace", "/"], "lab profile: --trace is '/', a folder; expected a file"),
        (["ops", "rmsnorm", "--resources", "--shape", "0x0"], "--shape is '0x0'; expected sizes of at least 1"),
        (["ops", "rmsnorm", "--resources", "--shape=-1x4"], "--shape is '-1x4'; expected sizes such as"),
        (["ops", "rmsnorm", "--resources", "--shape", f"4x{2**64}"], "expected sizes of at least 1 and below 2^31"),
        (["ops", "--resources", "--shape", "x".join("1" * 9)], "shape is 1x1x1x1x1x1x1x1x1; no operator has so many"),
        (["ops", "rmsnorm", "--model", "tiny"], "lab ops: --model goes with neither OP nor --resources nor --json"),
        (["ops", "--model", "tiny", "--json"], "lab ops: --model goes with neither OP nor --resources nor --json"),
        (["ops", "--model", "tiny", "--resources"], "lab ops: --model goes with neither OP nor"),
        (["report"], "lab report: expected either the NAME of an experiment or --all"),
    ],
)
def test_bad_names_are_one_line_and_exit_2(capsys, argv, message):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@no_gpu
@pytest.mark.parametrize("argv", [["bench", "--op", "rmsnorm"], ["record", "rmsnorm"], ["reproduce", "rmsnorm"]])
def test_timing_without_a_gpu_exits_2(capsys, argv):
    code, out, err = run(capsys, *argv)
    assert (code, out, err) == (2, "", f"lab {argv[0]}: timing needs a CUDA GPU, and this machine has none\n")


@no_gpu
def test_smoke_without_a_gpu_says_that_nothing_was_timed(capsys):
    code, out, _ = run(capsys, "bench", "--smoke")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert out.splitlines()[-1] == "Nothing was timed: this machine has no GPU."
    assert "rmsnorm: the config is valid" in out and "bench-add_rmsnorm: the config is valid" in out
    assert "268.4" in out  # MB: 16384 x 4096 bfloat16 in and out, and the weight


@no_gpu
@pytest.mark.parametrize("flag", ["--json", "--csv"])
def test_smoke_without_a_gpu_has_nothing_to_write(capsys, tmp_path, flag):
    code, out, err = run(capsys, "bench", "--smoke", "--op", "rmsnorm", flag, str(tmp_path / "f"))
    assert (code, out) == (2, "") and err.startswith("lab bench: --json and --csv write what was timed, and")


@no_gpu
def test_smoke_fails_on_a_bad_config(capsys, monkeypatch, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("seed: zero\n")
    monkeypatch.setattr("lab.benchmark.config.experiments_folder", lambda: tmp_path)
    code, _, err = run(capsys, "bench", "--smoke")
    assert code == 2 and "config.yaml: config." in err and err.count("\n") == 1


def test_check_is_handed_on(monkeypatch):
    given = []
    monkeypatch.setattr(sys.modules["lab.check"], "main", lambda arguments: given.append(list(arguments)) or 7)
    assert cli.main(["check", "rmsnorm", "--verbose"]) == 7 and given == [["rmsnorm", "--verbose"]]


def test_python_m_lab_runs_from_anywhere():
    done = subprocess.run(
        [sys.executable, "-m", "lab", "ops", "rmsnorm"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0 and "rmsnorm(x, weight, eps)" in done.stdout and done.stderr == ""


@pytest.mark.cpu
def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} -m lab ops | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("On ")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """As if there were a GPU: what is run gives this record."""
    times = {("torch", "eager"): 250.0, ("peer", "torch eager"): 300.0}
    rows = tuple(
        records.Row(
            "rmsnorm", backend, rung, None, "forward", (16384, 4096), "bfloat16", 0, 10**9, 10**8, floor_us=100.0,
            timing=summarize([us, us]), gbps=1e5 / us, tflops=1e3 / us, fraction=100 / us,
        )
        for (backend, rung), us in times.items()
    )  # fmt: skip
    here = environment.Environment(
        "GPU", (9, 0), 132, 1 << 17, None, None, None, None, None, "3", "Linux", "0", {}, None, None, "2026-01-01"
    )
    ceilings = Ceilings(1000.0, copy_bytes=1 << 32, matmul_tflops=500.0, matmul_dtype="bfloat16", matmul_size=8192)
    record = records.Record(records.SCHEMA, "rmsnorm", {}, "", here, ceilings, rows)
    asked = []
    monkeypatch.setattr("lab.benchmark.timing.require_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(instruments, "gpu_instruments", lambda: None)
    monkeypatch.setattr(experiments, "run", lambda experiment, *_: asked.append(experiment) or record)
    return record, asked


def test_bench_prints_and_writes(capsys, measured, tmp_path):
    record, asked = measured
    code, out, _ = run(
        capsys, "bench", "--level", "kernel", "--op", "rmsnorm", "--backend", "torch", "--shape", "llama3-8b",
        "--direction", "both", "--peers", "--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv"),
    )  # fmt: skip
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    lines = [line.split() for line in out.splitlines()]
    assert "rmsnorm, bfloat16" in out and any(line[:3] == ["forward", "16384x4096", "us"] for line in lines)
    assert any(line[:2] == ["torch:eager", "250.0*"] and line[-1] == "1.20" for line in lines)
    (experiment,) = asked
    assert experiment.implementations == ("torch",) and "quack" in experiment.peers
    assert [(w.shape, w.direction) for w in experiment.workloads] == [((16384, 4096), "both")]
    assert records.read(tmp_path / "r.json").rows[0].timing == record.rows[0].timing
    first, _ = csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text()))
    assert first["gpu"] == "GPU" and first["shape"] == "16384x4096" and first["median_us"] == "250.0"


def test_bench_smoke_takes_the_smallest_shape_and_few_samples(capsys, measured):
    code, _, _ = run(capsys, "bench", "--smoke", "--op", "rmsnorm", "--backend", "torch")
    (experiment,) = measured[1]
    assert code == 0 and experiment.max_samples == 10
    assert [workload.shape for workload in experiment.workloads] == [(64, 4096)]


def test_record_writes_where_it_is_told(capsys, measured, tmp_path):
    code, out, _ = run(capsys, "record", "rmsnorm", "--output", str(tmp_path))
    assert code == 0 and f"wrote {tmp_path}/results/{environment.slug('GPU')}.json" in out
    assert records.read(tmp_path / "results" / "gpu.json").experiment == "rmsnorm"


def test_reproduce_exits_1_on_drift(capsys, monkeypatch, measured):
    row = measured[0].rows[0]
    drift = experiments.Drift(row, "fraction of ceiling", 0.9, 0.8, 0.03)
    monkeypatch.setattr(experiments, "reproduce", lambda name: [drift])
    code, out, _ = run(capsys, "reproduce", "rmsnorm")
    assert code == 1
    told = "drifted: rmsnorm forward 16384x4096 torch:eager: fraction of ceiling 0.900, now 0.800 (-11.1%, allowed 3%)"
    assert told in " ".join(out.split())
    monkeypatch.setattr(experiments, "reproduce", lambda name: [])
    assert run(capsys, "reproduce", "rmsnorm")[:2] == (0, "rmsnorm: reproduced\n")


def test_report_writes_what_is_published(capsys, monkeypatch, tmp_path, measured):
    path = tmp_path / "rmsnorm" / "results" / "gpu.json"
    measured[0].write(path)
    monkeypatch.setattr(report, "all_records", lambda: [("rmsnorm", path)])
    for arguments, name in ([[], "report.md"], [["--html"], "report.html"]):
        code, out, _ = run(capsys, "report", "rmsnorm", "--output", str(tmp_path / "out"), *arguments)
        assert (code, out.strip()) == (0, str(tmp_path / "out" / "rmsnorm" / "gpu" / name))
        assert "torch:eager" in Path(out.strip()).read_text()


def test_ops_of_a_model(capsys):
    code, out, _ = run(capsys, "ops", "--model", "llama3.2-1b", "--backend", "torch,rmsnorm=triton:naive")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and out.startswith("llama3.2-1b: 16 layers, 1.24 billion weights")
    assert ["layers.0.input_layernorm", "rmsnorm", "triton:naive"] in lines
    assert ["layers.1-15.input_layernorm", "add_rmsnorm", "torch:eager"] in lines
    assert ["layers.0-15.mlp.down_proj", "linear", "torch:eager"] in lines
    assert max(map(len, out.splitlines())) <= 80


@pytest.fixture
def model_folder(tmp_path):
    from test_core import TINY, byte_tokenizer, ours

    model = ours(TINY, 0)
    model.tokenizer = byte_tokenizer()
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_generate(capsys, model_folder):
    arguments = "--model", model_folder, "--prompt", "ABC", "--max-new-tokens", "9"
    code, out, _ = run(capsys, "generate", *arguments)
    assert code == 0 and 5 <= len(out) <= 10 and out.endswith("\n")
    assert run(capsys, "generate", *arguments, "--top-k", "1", "--temperature", "1")[1] == out
    assert run(capsys, "generate", *arguments, "--backend", "torch,add_rmsnorm=triton")[1] == out
    drawn = {run(capsys, "generate", *arguments, "--temperature", "2", "--seed", str(seed))[1] for seed in range(3)}
    assert len(drawn) == 3


def test_export(capsys, model_folder, tmp_path):
    from lab.core import LLM

    output = str(tmp_path / "exported")
    code, out, _ = run(capsys, "export", "--model", model_folder, "--output", output, "--dtype", "float16")
    assert code == 0 and out == f"wrote {output}\n"
    exported, model = LLM.from_pretrained(output, device="cpu"), LLM.from_pretrained(model_folder, device="cpu")
    assert exported.config == model.config and exported.tokenizer.to_str() == model.tokenizer.to_str()
    for name, weight in exported.named_parameters():
        assert weight.dtype == torch.float16 and torch.equal(weight, model.get_parameter(name).half())


@pytest.mark.parametrize(
    "argv, message",
    [
        (["ops", "--model", "llama9"], "lab ops: --model is 'llama9'; expected a folder, or one of llama3-8b"),
        (["ops", "--backend", "torch"], "lab ops: --backend goes with --model"),
        (["ops", "--model", "tiny", "--backend", "x"], "lab ops: unknown backend 'x'"),
        (["generate", "--model", "nowhere", "--prompt", "a"], "lab generate: --model is 'nowhere'; expected a folder"),
        (["generate", "--model", "{}", "--prompt", ""], "lab generate: prompts: expected at least one"),
        (["generate", "--prompt", "\udcff"], "lab generate: --prompt is '\\udcff'; expected UTF-8"),
        (
            ["generate", "--prompt", "A", "--seed", str(2**70)],
            f"lab generate: seed is {2**70}; expected a whole number",
        ),
        (["generate", "--model", "{}", "--prompt", "A", "--top-p", "2"], "lab generate: top_p is 2.0; expected"),
        (
            ["generate", "--model", "{}", "--prompt", "A", "--max-new-tokens", "999"],
            "lab generate: max_new_tokens is",
        ),
        (["export", "--model", ".", "--output", "x"], "lab export: config.json: is not there"),
    ],
)
def test_a_model_that_cannot_be_used(capsys, model_folder, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *[part.format(model_folder) for part in argv])
    assert code == 2 and out == "" and err.startswith(message)
    assert not (tmp_path / "x").exists()
