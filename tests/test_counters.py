"""What Nsight Compute counts is read right, given to the calls whose it is, and asked for in vain with a reason."""

import csv
import io
import stat
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lab import cli
from lab.backends import registry
from lab.benchmark.timing import CannotTime
from lab.core import LLM, MODELS, KVCache
from lab.core.cost import operator_calls
from lab.profiling import counters, profiler
from lab.profiling.counters import READ, WRITTEN, Kernel, Traffic

TINY = replace(MODELS["tiny"], vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=8)
COLUMNS = (
    "ID", "Process ID", "Process Name", "Host Name",
    "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg",
    "Id:Domain:Start/Stop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg",
    "Kernel Name", "Context", "Stream", "Block Size", "Grid Size", "Device", "CC", "Section Name",
    "Metric Name", "Metric Unit", "Metric Value",
)  # fmt: skip
DENIED = (
    "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the "
    "target device 0. For instructions on enabling permissions and to get more information see "
    "https://developer.nvidia.com/ERR_NVGPUCTRPERM\n"
)


def printed(kernels: list[tuple[str, list[str], int, int]]) -> str:
    """What ncu writes for kernels: (name, its ranges from the outermost on, bytes read, bytes written)."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    rows.writerow(COLUMNS)
    for index, (name, ranges, *values) in enumerate(kernels):
        stack = "  ".join(f'"<default domain>:{each}:none:none:none:none:none:none"' for each in ranges)
        for metric, value in zip((READ, WRITTEN), values):
            rows.writerow(
                [index, 4242, "python3.12", "127.0.0.1", f"13416  {stack} " if ranges else "", "", name, 1, 7,
                 "(128, 1, 1)", "(16, 1, 1)", 0, "9.0", "Command line profiler metrics", metric, "byte", f"{value:,}"]
            )  # fmt: skip
    head = "==PROF== Connected to process 4242 (/usr/bin/python3.12)\n"
    names = "".join(
        f'==PROF== Profiling "{name}" - {i}: 0%....50%....100% - 1 pass\n' for i, (name, *_) in enumerate(kernels)
    )
    return f"{head}{names}==PROF== Disconnected from process 4242\n{buffer.getvalue()}"


def ranges_of(module: str, operator: str) -> list[str]:
    parts = module.split(".")
    outer = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return ["module: LLM", *(f"module: {path}" for path in outer), f"operator: {operator} torch eager forward"]


def test_kernels_are_read_with_their_ranges():
    text = printed(
        [
            ("void gemv<(int)8, float>(T2 *, int)", ranges_of("layers.1.mlp.up_proj", "linear"), 12_345_678, 1_024),
            ("elementwise, vectorized", ["module: LLM", "module: rotary"], 96, 0),
            ("memset", [], 0, 4_096),
        ]
    )
    assert counters.read(text) == [
        Kernel("void gemv<(int)8, float>(T2 *, int)", "layers.1.mlp.up_proj", "linear", 12_345_678, 1_024),
        Kernel("elementwise, vectorized", "rotary", "", 96, 0),
        Kernel("memset", "", "", 0, 4_096),
    ]
    assert counters.read("==PROF== Connected to process 1\n==WARNING== No kernels were profiled.\n") == []


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('"byte","2,048"', '"Kbyte","2"', "dram__bytes_read.sum of copy is '2' Kbyte; expected a number of bytes"),
        ('"byte","2,048"', '"byte","n/a"', "dram__bytes_read.sum of copy is 'n/a' byte; expected a number of bytes"),
        (READ, "dram__throughput.sum", "copy has no dram__bytes_read.sum"),
    ],
)
def test_what_is_no_number_of_bytes_is_refused(old, new, said):
    text = printed([("copy", [], 2_048, 2_048)])
    assert old in text
    with pytest.raises(ValueError, match=said):
        counters.read(text.replace(old, new))


def test_bytes_stand_beside_those_of_the_contracts():
    calls = operator_calls(TINY, 2, 1, context=8)
    kernels = [
        Kernel("a", "layers.0.mlp.up_proj", "linear", 100, 10),
        Kernel("b", "layers.1.mlp.up_proj", "linear", 200, 20),
        Kernel("c", "layers.1.mlp.up_proj", "linear", 1, 2),
        Kernel("d", "embed_tokens", "", 7, 8),
        Kernel("e", "layers.0.self_attn", "", 3, 4),
    ]
    rows = {row[:2]: row for row in counters.beside_contracts(kernels, calls, torch.float32)}
    linear = next(call for call in calls if call.module == "layers.*.mlp.up_proj")
    assert rows["layers.*.mlp.up_proj", "linear"][2:] == (2, 3, 2 * linear.cost(torch.float32).bytes, 301, 32)
    assert rows["", profiler.ELSEWHERE][2:] == (0, 2, 0, 10, 12)
    assert rows["lm_head", "linear"][2:] == (1, 0, calls[-1].cost(torch.float32).bytes, 0, 0)
    assert len(rows) == len({(call.module, call.operator) for call in calls}) + 1
    assert sum(row.least for row in rows.values()) == sum(call.count * call.cost(torch.float32).bytes for call in calls)


def test_the_table_adds_up():
    rows = [Traffic("mlp", "linear", 2, 3, 4_000_000, 5_000_000, 1_000_000), Traffic("", "rest", 0, 1, 0, 2_000_000, 0)]
    assert [list(row) for row in counters.table(rows).rows] == [
        ["linear", "mlp", "2", "3", "5.00", "1.00", "4.00", "1.50"],
        ["rest", "", "0", "1", "2.00", "0.00", "-", "-"],
        ["all", "", "2", "4", "7.00", "1.00", "4.00", "2.00"],
    ]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_ranges_name_the_modules_and_operators_of_the_contracts(phase):
    """Or no kernel would find its call."""
    model, ids = LLM(TINY).use("torch"), torch.zeros(2, 5, dtype=torch.int64)
    new, context = (1, 4) if phase == "decode" else (5, 0)
    cache = KVCache(TINY, 2, 5, device="cpu", dtype=torch.float32)
    open_ranges: list[str] = []
    found: Counter[tuple[str, str]] = Counter()

    class Watched:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            open_ranges.append(self.name)
            if self.name.startswith(profiler.OPERATOR):
                text = printed([("k", open_ranges, 1, 1)])
                (kernel,) = counters.read(text)
                found[
                    kernel.module.replace("layers.0.", "layers.*.").replace("layers.1.", "layers.*."), kernel.operator
                ] += 1

        def __exit__(self, *_):
            open_ranges.pop()

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        if phase == "decode":
            model(ids[:, :4], cache)
        patch.setattr(profiler, "_range", Watched)
        with profiler.named_ranges(model):
            model(ids[:, :new], cache if phase == "decode" else None)
    calls = operator_calls(TINY, 2, new, context)
    assert found == Counter({(call.module, call.operator): call.count for call in calls})


# The command ----------------------------------------------------------------------------------------------------------

FAKE = """\
#!{python}
import sys
from pathlib import Path
here = Path(__file__).parent
arguments = sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write("\\t".join(arguments) + "\\n")
which = "probe" if "-c" in arguments else "step"
Path(arguments[arguments.index("--log-file") + 1]).write_text((here / which).read_text())
if (here / f"{{which}} stderr").exists():
    sys.exit((here / f"{{which}} stderr").read_text())
"""


@pytest.fixture
def ncu(tmp_path, monkeypatch):
    """A folder with an `ncu` that writes the files `probe` and `step` of that folder to its log, and fails with what
    `step stderr` says; `calls` holds how it was called."""
    path = tmp_path / "ncu"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "probe").write_text(printed([("fill", [], 0, 4)]))
    return tmp_path


TINY_DECODE = [
    "profile", "--model", "tiny", "--phase", "decode", "--batch", "2", "--tokens", "9", "--dtype", "float32", "--ncu",
    "--backend",
]  # fmt: skip
DECODE = [*TINY_DECODE, "torch"]


def test_the_command(ncu, capsys):
    calls = operator_calls(MODELS["tiny"], 2, 1, context=9)
    kernels = []
    for call in calls:  # as many bytes as the contracts say, and in one operator twice as many
        least = call.cost(torch.float32).bytes
        for layer in range(call.count):
            stack = ranges_of(call.module.replace("*", str(layer)), call.operator)
            kernels += [("k", stack, least - 4, 4)] * (2 if call.operator == "swiglu" else 1)
    (ncu / "step").write_text(printed([*kernels, ("copy", ["module: LLM"], 5_000, 1_000)]))
    assert cli.main(DECODE) == 0
    first, header, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny, decode, 2 x 9 tokens: bytes of device memory in a step")
    assert header.split()[:2] == ["operator", "in"]
    times = {tuple(line.split()[:2]): line.split()[-1] for line in lines}
    assert times["swiglu", "layers.*.mlp"] == "2.00" and times["linear", "layers.*.mlp.up_proj"] == "1.00"
    assert times["decode_attention", "layers.*.self_attn"] == "1.00" and times["outside", "of"] == "-"
    probe, step = ((ncu / "calls").read_text()).splitlines()
    assert "torch.cuda.profiler.start()" in probe
    options, _, command = step.partition(f"\t{sys.executable}\t")
    assert f"--metrics\t{READ},{WRITTEN}" in options and "--profile-from-start\toff" in options and "--nvtx" in options
    assert command.split("\t")[:3] == ["-m", "lab", "profile"] and command.endswith("\t--dtype=float32\t--mark")
    marked = cli._parser().parse_args(command.split("\t")[2:])
    assert (marked.model, marked.phase, marked.batch, marked.tokens, marked.backend) == (
        "tiny",
        "decode",
        2,
        9,
        "torch",
    )
    assert marked.mark and not marked.ncu


@pytest.mark.parametrize(
    "log, stderr, said",
    [
        (DENIED, "", "may not read the GPU's counters (ERR_NVGPUCTRPERM); expected root"),
        ("==WARNING== No kernels were profiled.\n", "", "has counted nothing: no kernel was launched"),
        (
            "==ERROR== The application returned an error code (1).\n",
            "Traceback\nRuntimeError: No CUDA GPUs are available\n",
            "==ERROR== The application returned an error code (1).; RuntimeError: No CUDA GPUs are available",
        ),
    ],
)
def test_what_is_in_the_way_is_said_before_the_model_is_run(ncu, capsys, log, stderr, said):
    (ncu / "probe").write_text(log)
    if stderr:
        (ncu / "probe stderr").write_text(stderr)
    assert cli.main(DECODE) == 2
    out, err = capsys.readouterr()
    assert err.startswith("lab profile: ncu ") and said in err and not out
    assert len((ncu / "calls").read_text().splitlines()) == 1  # the step was not run


def test_a_step_that_fails_under_ncu_is_no_result(ncu, capsys):
    (ncu / "step").write_text(printed([("k", [], 1, 1)]))
    (ncu / "step stderr").write_text("torch.OutOfMemoryError: CUDA out of memory.\n")
    assert cli.main(DECODE) == 2
    assert "has counted nothing: torch.OutOfMemoryError: CUDA out of memory." in capsys.readouterr().err


def test_without_ncu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(DECODE) == 2
    assert "ncu is not on the PATH; expected Nsight Compute" in capsys.readouterr().err
    with pytest.raises(CannotTime):
        counters.count(["-c", "raise SystemExit('was run')"])


def test_training_is_not_counted(ncu, capsys):
    assert cli.main(["profile", "--model", "tiny", "--phase", "train", "--ncu"]) == 2
    assert "--ncu goes with --phase prefill or decode" in capsys.readouterr().err
    assert not (ncu / "calls").exists()


@pytest.mark.cpu
def test_a_backend_that_cannot_run_is_said_first(ncu, capsys):
    assert cli.main([*TINY_DECODE, "torch,rmsnorm=cuda"]) == 2
    assert "rmsnorm" in capsys.readouterr().err and not (ncu / "calls").exists()


@pytest.mark.cpu
def test_a_step_is_marked_on_a_gpu_alone(capsys, monkeypatch):
    monkeypatch.setattr(registry, "resolve", lambda *_: pytest.fail("a model was made"))
    assert cli.main(["profile", "--model", "tiny", "--mark"]) == 2
    assert "--mark needs a CUDA GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_a_marked_step(phase, monkeypatch, capsys):
    """Once, between start and stop."""
    seen = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: seen.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: seen.append("stop"))
    forward = LLM.forward
    monkeypatch.setattr(LLM, "forward", lambda *args, **named: seen.append("step") or forward(*args, **named))
    assert (
        cli.main(["profile", "--model", "tiny", "--phase", phase, "--tokens", "9", "--backend", "torch", "--mark"]) == 0
    )
    assert seen[-3:] == ["start", "step", "stop"] and seen.count("start") == 1 and not capsys.readouterr().out
