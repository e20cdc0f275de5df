"""The command line: `lab ops`, `bench`, `record`, `reproduce`, `report`, `train`, `generate`, `export`, `profile`,
`check`. Also `python -m lab`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from lab.backends import registry
from lab.backends.hardware import default_device, gpu_of, half_dtype
from lab.backends.implementation import BackendUnavailable
from lab.benchmark.timing import CannotTime
from lab.ops.operator import DTYPE_NAMES

if TYPE_CHECKING:
    from lab.benchmark.config import Experiment
    from lab.benchmark.records import Record
    from lab.benchmark.training_runs import TrainingRecord
    from lab.core import LLM, ModelConfig

WIDTH = 80
OWN_MODEL = "pydoc"  # that `lab generate` takes by itself
# Modules that a command alone needs are imported in it: `lab ops` should not wait for matplotlib and torch.compile.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 what was checked is not so, 2 it cannot be done as asked."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["check"]:
        from lab.check import main as check

        return _exit_code("check", lambda: check(argv[1:]))
    arguments = _parser().parse_args(argv)
    return _exit_code(arguments.name, lambda: arguments.command(arguments))


def _exit_code(name: str, command: Callable[[], int]) -> int:
    """That of a command; what it cannot do is said in a line."""
    try:
        code = command()
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing is left to say at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, SafetensorError, FloatingPointError, BackendUnavailable, CannotTime) as error:
        print(f"lab {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lab {name}: interrupted", file=sys.stderr)
        return 130  # as a shell has it: 128 + SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="LLM Kernel Lab.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    ops = commands.add_parser("ops", help="operators, backends, rungs, and what can run here")
    ops.add_argument("op", nargs="?", metavar="OP", help="one operator (default: all)")
    ops.add_argument("--resources", action="store_true", help="registers, spills and shared memory per architecture")
    ops.add_argument("--shape", help="with --resources: such as 4096x65536, or of one OP a name (default: its first)")
    ops.add_argument("--model", metavar="MODEL", help="what a model's modules run on: a folder, or a shape's name")
    ops.add_argument("--backend", metavar="CHOICE", help='with --model: such as "torch,rmsnorm=triton"')
    ops.add_argument("--json", action="store_true", help="print JSON")
    ops.set_defaults(command=_ops)

    bench = commands.add_parser("bench", help="time an operator's implementations, a model or a part of it")
    bench.add_argument(
        "--level", choices=["kernel", "layer", "block", "model", "training"], default="kernel", help="default: kernel"
    )
    bench.add_argument(
        "--backend", action="append", metavar="CHOICE",
        help='of a kernel "triton", "triton:naive" or "triton:*"; of a model "torch,rmsnorm=triton"; may be repeated',
    )  # fmt: skip
    bench.add_argument("--peers", action="store_true", help="time the peers that are installed too")
    bench.add_argument("--dtype", default="bfloat16", help="default: bfloat16")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    bench.add_argument("--csv", type=Path, metavar="FILE", help="write the rows")
    bench.add_argument("--smoke", action="store_true", help="something small, few samples; no GPU needed")
    kernel = bench.add_argument_group("of a kernel")
    kernel.add_argument("--op", help="operator")
    kernel.add_argument(
        "--shape", action="append", help="such as 16384x4096, or a name that `lab ops OP` lists; may be repeated"
    )
    kernel.add_argument("--direction", choices=["forward", "backward", "both"], help="default: forward")
    model = bench.add_argument_group("of a layer, a block, a model or a training step")
    model.add_argument("--model", help="a shape's name, such as llama3.2-1b")
    model.add_argument("--module", help="self_attn, post_attention_layernorm or mlp (default: each of them)")
    model.add_argument("--phase", choices=["prefill", "decode"], help="default: both")
    model.add_argument("--batch", type=int, metavar="N", help="sequences (default: 1)")
    model.add_argument("--tokens", type=int, metavar="N", help="of each, or in the cache (default: 2048 or fewer)")
    model.add_argument("--compile", action="store_true", help="time it under torch.compile too")
    bench.set_defaults(command=_bench)

    record = commands.add_parser("record", help="measure an experiment and publish its record")
    record.add_argument("experiment", metavar="NAME")
    record.add_argument("--resources", action="store_true", help="registers and shared memory, in place of times")
    record.add_argument("--output", type=Path, metavar="DIR", help="write here, and not into the checkout")
    record.set_defaults(command=_record)

    reproduce = commands.add_parser("reproduce", help="measure an experiment again; exit 1 if it has drifted")
    reproduce.add_argument("experiment", metavar="NAME")
    reproduce.set_defaults(command=_reproduce)

    report = commands.add_parser("report", help="tables and charts out of published records")
    report.add_argument("experiment", nargs="?", metavar="NAME")
    report.add_argument("--all", action="store_true", help="every published record")
    report.add_argument("--output", type=Path, default=Path("reports"), metavar="DIR", help="default: reports")
    report.add_argument("--html", action="store_true", help="one HTML page instead of Markdown")
    report.set_defaults(command=_report)

    train = commands.add_parser("train", help="train a model")
    train.add_argument("config", type=Path, metavar="CONFIG.yaml", help="see `lab.training.config`")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    train.add_argument("--output", type=Path, metavar="DIR", help="default: runs/CONFIG")
    train.set_defaults(command=_train)

    generate = commands.add_parser("generate", help="continue a text")
    generate.add_argument("--model", type=Path, metavar="FOLDER", help="a Hugging Face folder (default: the lab's own)")
    generate.add_argument("--prompt", required=True, metavar="TEXT")
    generate.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default: 128")
    generate.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest P only")
    generate.add_argument("--seed", type=int, default=0, help="default: 0")
    generate.add_argument("--backend", default="auto", metavar="CHOICE", help='such as "torch,rmsnorm=triton"')
    generate.add_argument("--dtype", choices=DTYPE_NAMES, help="default: the checkpoint's")
    generate.set_defaults(command=_generate)

    export = commands.add_parser("export", help="write a model as a Hugging Face folder")
    export.add_argument("--model", required=True, type=Path, metavar="FOLDER", help="what to read")
    export.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="what to write")
    export.add_argument("--dtype", choices=DTYPE_NAMES, help="default: the checkpoint's")
    export.set_defaults(command=_export)

    profile = commands.add_parser(
        "profile", help="where the time of a model goes, operator by operator",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="the same run in Nsight Systems:\n"
        "  nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --output=step \\\n"
        "      python -m lab profile --model MODEL --mark\n"
        "  nsys-ui step.nsys-rep",
    )  # fmt: skip
    profile.add_argument(
        "--model", required=True, metavar="MODEL", help="a shape's name, or a folder; weights are random"
    )
    profile.add_argument("--phase", choices=["prefill", "decode", "train"], default="prefill", help="default: prefill")
    profile.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default: 1)")
    profile.add_argument("--tokens", type=int, default=128, metavar="N", help="of each sequence (default: 128)")
    profile.add_argument("--backend", default="auto", metavar="CHOICE", help='such as "torch,rmsnorm=triton"')
    profile.add_argument(
        "--dtype", choices=DTYPE_NAMES, help="default: bfloat16 on a GPU (float16 if it has none), else float32"
    )
    instead = profile.add_mutually_exclusive_group()
    instead.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace, gzipped")
    instead.add_argument("--ncu", action="store_true", help="count bytes of device memory with Nsight Compute instead")
    instead.add_argument("--mark", action="store_true", help="only run, one step marked for Nsight Systems or Compute")
    profile.set_defaults(command=_profile)

    commands.add_parser("check", help="check a solution of an exercise; see `lab check --help`")
    return parser


# lab ops ------------------------------------------------------------------------------------------------------------


def _ops(arguments: argparse.Namespace) -> int:
    names = [registry.operator(arguments.op).name] if arguments.op else list(registry.operators())
    if arguments.model and (arguments.op or arguments.resources or arguments.json):
        raise ValueError("--model goes with neither OP nor --resources nor --json")
    if arguments.resources:
        return _resources(arguments, names)
    if arguments.shape:
        raise ValueError("--shape goes with --resources")
    if arguments.model:
        return _placements(arguments)
    if arguments.backend:
        raise ValueError("--backend goes with --model")
    described = {name: _describe(name) for name in names}
    if arguments.json:
        print(json.dumps(described, indent=2))
        return 0
    device = default_device()
    print(f"On {gpu_of(device).name if device.type == 'cuda' else 'this machine, which has no GPU'}:")
    for name, about in described.items():
        print(f"\n{name}({', '.join(about['arguments'])})")
        _wrapped("auto: ", f"{about['auto']['choice']} ({about['auto']['reason']})", "  ")
        for backend, rungs in about["backends"].items():
            reasons = list({rung["unavailable"]: None for rung in rungs})
            if len(reasons) == 1:
                state = "runs here" if reasons[0] is None else f"cannot run: {reasons[0]}"
            else:
                state = "runs here in part" if reasons else "does not implement it"
            _wrapped(f"{backend}: ", state, "  ")
            for rung in rungs:
                own = f" [cannot run: {rung['unavailable']}]" if len(reasons) > 1 and rung["unavailable"] else ""
                _wrapped(f"{rung['rung']}: ", rung["change"] + own, "    ")
        shapes = (f"{shape} {'x'.join(map(str, sizes))}" for shape, sizes in about["shapes"].items())
        _wrapped("shapes: ", ", ".join(shapes), "  ")
    return 0


def _resources(arguments: argparse.Namespace, names: list[str]) -> int:
    from lab.profiling import resources

    shape = None
    if arguments.shape:
        named = registry.operator(arguments.op).shapes if arguments.op else {}
        shape = tuple(named.get(arguments.shape) or _shape(arguments.shape))
    try:
        measured = resources.measure(names if arguments.op else (), shape)
    except resources.ResourceError as error:
        raise ValueError(str(error)) from error
    if shape:
        names = [name for name in names if len(shape) == len(registry.operator(name).dims)]
    if arguments.json:
        print(json.dumps(asdict(measured), indent=2))
        return 0
    print(", ".join(f"{name} {version}" for name, version in measured.compilers.items()))
    print("registers of a thread [+ bytes spilled] / KiB of shared memory of a block")
    for name in names:
        rows = [row for row in measured.rows if row.operator == name]
        if not rows:
            print(f"\n{name}: no backend has kernels of its own")
            continue
        shapes = ", ".join(dict.fromkeys("x".join(map(str, row.shape)) for row in rows))
        print(f"\n{name} {shapes}, {' or '.join(dict.fromkeys(row.dtype for row in rows))}")
        print(resources.table(rows).text())
    return 0


def _placements(arguments: argparse.Namespace) -> int:
    """What each module of a model runs on. Layers that are alike are shown as one."""
    from lab.benchmark.tables import Table
    from lab.core import LLM

    config = _config(arguments.model)
    with torch.device("meta"):
        model = LLM(config).use(arguments.backend or "auto")
    print(f"{arguments.model}: {config.num_hidden_layers} layers, {config.parameters / 1e9:.3g} billion weights")
    alike: dict[tuple[str, ...], list[str]] = {}  # the layers that have such a line
    for name, op, runs in model.placements():
        layer = re.match(r"layers\.(\d+)\.", name)
        index = layer[1] if layer else ""
        alike.setdefault((name.replace(f".{index}.", ".{}.", 1), op, str(runs.implementation)), []).append(index)
    rows = [
        [name.format("-".join(dict.fromkeys([indices[0], indices[-1]]))) or "the model itself", op, runs_on]
        for (name, op, runs_on), indices in alike.items()
    ]
    print(Table(["module", "operator", "runs on"], rows).text())
    return 0


def _wrapped(name: str, text: str, indent: str) -> None:
    print(textwrap.fill(name + text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  "))


def _describe(name: str) -> dict:
    op, device = registry.operator(name), default_device()
    auto = registry.resolve(name, "auto", device)
    return {
        "arguments": [str(parameter) for parameter in op.signature.parameters],
        "auto": {"choice": str(auto.implementation), "reason": auto.reason.removeprefix("auto: ")},
        "backends": {
            backend: [
                {"rung": rung.rung, "change": rung.change, "unavailable": rung.unavailable(device)}
                for rung in registry.ladder(name, backend)
            ]
            for backend in registry.backends()
        },
        "shapes": {shape: list(sizes) for shape, sizes in op.shapes.items()},
    }


# lab bench ----------------------------------------------------------------------------------------------------------


OF_KERNEL = ("op", "shape", "direction")
OF_MODEL = ("model", "module", "phase", "batch", "tokens", "compile")


def _bench(arguments: argparse.Namespace) -> int:
    from lab.benchmark import timing

    of_kernel = arguments.level == "kernel"
    for name in OF_MODEL if of_kernel else OF_KERNEL:
        if getattr(arguments, name) is not None and getattr(arguments, name) is not False:
            raise ValueError(f"--{name} {'goes' if not of_kernel else 'does not go'} with --level kernel")
    if not of_kernel:
        experiments = [_ad_hoc_model(arguments)]
    elif arguments.smoke or arguments.op:
        experiments = [_ad_hoc(arguments, op) for op in ([arguments.op] if arguments.op else registry.operators())]
    else:
        raise ValueError(f"--op is missing; expected one of {', '.join(registry.operators())}")
    if arguments.smoke and not torch.cuda.is_available():
        if arguments.json or arguments.csv:
            raise ValueError("--json and --csv write what was timed, and this machine has no GPU to time on")
        return _without_gpu(experiments)
    timing.require_gpu()
    from lab.benchmark.experiments import run
    from lab.benchmark.instruments import Instruments, gpu_instruments

    instruments: Instruments = gpu_instruments()
    measured = [run(experiment, instruments) for experiment in experiments]
    for record in measured:
        _print_record(record)
    for path, written in ((arguments.json, _json_text), (arguments.csv, _csv_text)):
        if path is not None:
            from lab.files import write_text

            write_text(path, written(measured))
    return 0


def _ad_hoc(arguments: argparse.Namespace, op: str) -> Experiment:
    """The experiment that the arguments of `lab bench` describe."""
    from lab.benchmark import config
    from lab.benchmark.peers import peers

    contract = registry.operator(op)
    named = arguments.shape or [next(iter(contract.shapes))]
    if arguments.smoke and not arguments.shape:
        dtype = torch.float32
        named = [min(contract.shapes, key=lambda shape: contract.cost(contract.shapes[shape], dtype, "forward").bytes)]
    shapes = [list(contract.shapes[text]) if text in contract.shapes else _shape(text) for text in named]
    direction = arguments.direction or "forward"
    every = [f"{backend}:*" for backend in registry.backends() if registry.ladder(op, backend)]
    return config.parse(
        f"bench-{op}",
        {
            "seed": 0,
            "samples": {"min": 5, "max": 10} if arguments.smoke else {"min": 20, "max": 60},
            "operators": {op: [{"shape": s, "dtype": arguments.dtype, "directions": [direction]} for s in shapes]},
            "implementations": arguments.backend or every,
            "peers": list(peers(op)) if arguments.peers else [],
        },
    )


def _shape(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(x\d+)*", text.lower()):
        raise ValueError(f"--shape is {text!r}; expected sizes such as 16384x4096, or a shape's name")
    sizes = [int(size) for size in text.lower().split("x")]
    if not all(1 <= size < 2**31 for size in sizes):
        raise ValueError(f"--shape is {text!r}; expected sizes of at least 1 and below 2^31")
    return sizes


def _ad_hoc_model(arguments: argparse.Namespace) -> Experiment:
    """The same where the arguments are about a model."""
    from lab.benchmark import config
    from lab.benchmark.models import PHASES
    from lab.benchmark.peers import MODEL_PEERS
    from lab.core.config import MODELS
    from lab.core.cost import LAYERS

    if arguments.level != "layer" and arguments.module:
        raise ValueError("--module goes with --level layer")
    if arguments.level == "training" and arguments.phase:
        raise ValueError("--phase does not go with --level training")
    name = arguments.model or ("tiny" if arguments.smoke else None)
    if name not in MODELS:
        is_it = f"is {name!r}" if name else "is missing"
        raise ValueError(f"--model {is_it}; expected one of {', '.join(MODELS)}")
    modules: list[dict] = [{}]
    if arguments.level == "layer":
        modules = [{"module": module} for module in ([arguments.module] if arguments.module else LAYERS)]
    tokens = min(64 if arguments.smoke else 2048, MODELS[name].max_position_embeddings - 1)
    sizes = {
        "batch": 1 if arguments.batch is None else arguments.batch,
        "tokens": tokens if arguments.tokens is None else arguments.tokens,
        "dtype": arguments.dtype,
    }
    phases: list[dict] = [{"phase": phase} for phase in ([arguments.phase] if arguments.phase else PHASES)]
    if arguments.level == "training":
        phases = [{}]
    workloads = [{"level": arguments.level, **sizes, **module, **phase} for module in modules for phase in phases]
    return config.parse(
        f"bench-{name}",
        {
            "seed": 0,
            "samples": {"min": 5, "max": 10} if arguments.smoke else {"min": 20, "max": 60},
            "models": {name: workloads},
            "backends": (arguments.backend or ["torch", "auto"]) + (list(MODEL_PEERS) if arguments.peers else []),
            "compile": [False, True] if arguments.compile else [False],
        },
    )


def _without_gpu(bench: list[Experiment]) -> int:
    """What can be said honestly where nothing can be timed."""
    from lab.benchmark import config
    from lab.benchmark.estimates import estimates

    for ad_hoc, experiments in ((True, bench), (False, map(config.load, config.names()))):
        for experiment in experiments:
            for part in estimates(experiment, ad_hoc):
                print(part)
    print("Nothing was timed: this machine has no GPU.")
    return 0


def _print_record(record: Record) -> None:
    from lab.benchmark.tables import ladder_table, model_table, trap_table

    c = record.ceilings
    product = f"{c.matmul_dtype} product {c.matmul_tflops:.0f} TFLOP/s"
    print(f"{record.environment.gpu}: copy {c.copy_gbps:.0f} GB/s, {product}")
    for op, direction, shape, dtype in dict.fromkeys(row.workload for row in record.rows):
        print(f"\n{op}, {dtype}")
        print(ladder_table(record, op, direction, shape, dtype).text())
    for workload in record.model_workloads():
        print()
        print(model_table(record, workload).text())
    for trap in record.traps:
        print()
        print(trap_table(trap).text())
    for row in record.all_rows:
        if row.error:
            _wrapped(f"not timed: {row}: ", row.error, "")


def _json_text(measured: list[Record]) -> str:
    from lab.benchmark.records import as_json

    return as_json(measured[0]) if len(measured) == 1 else f"[{','.join(map(as_json, measured))}]\n"


def _csv_text(measured: list[Record]) -> str:
    lines = []
    for record in measured:
        for row in record.all_rows:
            flat = asdict(row)
            timing, workload = flat.pop("timing") or {}, flat.pop("workload", {})
            flat |= {name: "x".join(map(str, size)) for name, size in flat.items() if name == "shape"}
            ran = flat.pop("implementations", {})
            flat |= {"implementations": ",".join(f"{op}={rung}" for op, rung in ran.items())} if ran else {}
            lines.append({"gpu": record.environment.gpu, **workload, **flat, "notes": "; ".join(row.notes), **timing})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


# lab record, reproduce, report --------------------------------------------------------------------------------------


def _record(arguments: argparse.Namespace) -> int:
    from lab.benchmark import config, experiments, training_runs
    from lab.profiling import resources

    if arguments.resources:
        print(f"wrote {resources.publish(arguments.experiment, arguments.output)}")
        return 0
    name, trains = arguments.experiment, training_runs.names()
    if name in trains:
        return _record_training(arguments)
    if name not in config.names():
        raise ValueError(
            f"unknown experiment {name!r}; expected one of {', '.join(sorted([*config.names(), *trains]))}"
        )
    record = experiments.run(config.load(name))
    path = experiments.publish(record, arguments.output)
    _print_record(record)
    print(f"\nwrote {path}")
    return 0


def _record_training(arguments: argparse.Namespace) -> int:
    from lab.benchmark import training_runs

    path = training_runs.record(arguments.experiment, arguments.output)
    found = training_runs.read_record(path)
    print(training_runs.table(found).text())
    if found.bigram_loss is not None:
        print(f"a bigram model's validation loss: {found.bigram_loss:.4f}")
    for run in found.runs:
        if run.error:
            _wrapped(f"did not end: {run.backend}, seed {run.seed}: ", run.error, "")
    print(f"wrote {path}")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from lab.benchmark import experiments, training_runs

    if (name := arguments.experiment) in training_runs.names():
        raise ValueError(f"experiment {name!r} trains, and has no ratios that could be compared")
    drifted = experiments.reproduce(arguments.experiment)
    for drift in drifted:
        _wrapped("drifted: ", str(drift), "")
    print(f"{arguments.experiment}: {f'{len(drifted)} ratios have drifted' if drifted else 'reproduced'}")
    return 1 if drifted else 0


def _report(arguments: argparse.Namespace) -> int:
    from lab.benchmark import records, report, training_runs

    if bool(arguments.experiment) == arguments.all:
        raise ValueError("expected either the NAME of an experiment or --all")

    def wanted(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
        return [(name, path) for name, path in found if arguments.all or name == arguments.experiment]

    measured: list[tuple[str, Path, Record | TrainingRecord]] = [
        *((name, path, records.read(path)) for name, path in wanted(report.all_records())),
        *((name, path, training_runs.read_record(path)) for name, path in wanted(report.training_records())),
    ]
    if not measured:
        raise ValueError(f"no published record{'' if arguments.all else f' of experiment {arguments.experiment!r}'}")
    for name, path, record in measured:
        print(report.write(record, arguments.output / name / path.stem, arguments.html))
    if arguments.all and (missing := report.not_recorded()):
        print(f"not yet recorded: {', '.join(missing)}", file=sys.stderr)
    return 0


# lab train ----------------------------------------------------------------------------------------------------------


def _train(arguments: argparse.Namespace) -> int:
    from lab.benchmark.ceilings import measure_ceilings
    from lab.benchmark.timing import ColdSampler
    from lab.training import load, metrics, train

    config = load(arguments.config)
    run = arguments.output or Path("runs") / arguments.config.stem
    peak_flops = None
    with suppress(CannotTime):  # then there is no MFU to show
        peak_flops = measure_ceilings(ColdSampler()).matmul_tflops * 1e12
    path = train(config, run, arguments.resume, peak_flops)
    first, *entries = metrics.read(run)
    losses = [entry["validation_loss"] for entry in entries if "validation_loss" in entry]
    bigram = first["run"]["bigram_loss"]
    print(f"wrote {path}: validation loss {losses[-1]:.3f}{f', a bigram model {bigram:.3f}' if bigram else ''}")
    return 0


# lab generate, export, profile ---------------------------------------------------------------------------------------


def _config(model: str) -> ModelConfig:
    """That of a named shape, or of a folder."""
    from lab.core import MODELS, read_config

    if model in MODELS:
        return MODELS[model]
    if Path(model).is_dir():
        return read_config(Path(model))
    raise ValueError(f"--model is {model!r}; expected a folder, or one of {', '.join(MODELS)}")


def _load(arguments: argparse.Namespace, backend: str) -> LLM:
    from lab.core import LLM

    if not arguments.model.is_dir():
        raise ValueError(f"--model is {str(arguments.model)!r}; expected a folder")
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    return LLM.from_pretrained(arguments.model, dtype=dtype, backend=backend)


def _generate(arguments: argparse.Namespace) -> int:
    from lab.core import Sampling, checkpoint, generate_text

    if re.search("[\ud800-\udfff]", arguments.prompt):  # how Python holds bytes that are not UTF-8
        raise ValueError(f"--prompt is {arguments.prompt!r}; expected UTF-8")
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    if arguments.model is None:
        arguments.model = checkpoint.SHIPPED / OWN_MODEL
        if not arguments.model.is_dir():
            made = f"this lab comes with no model (`lab record {OWN_MODEL}` trains one, on a GPU)"
            raise ValueError(f"--model is missing, and {made}; expected a folder")
    model = _load(arguments, arguments.backend)
    for piece in generate_text(model, arguments.prompt, arguments.max_new_tokens, sampling):
        print(piece, end="", flush=True)
    print()
    return 0


def _export(arguments: argparse.Namespace) -> int:
    _load(arguments, "torch").save_pretrained(arguments.output)
    print(f"wrote {arguments.output}")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from lab.benchmark.tables import Table
    from lab.profiling import profiler

    device, config = default_device(), _config(arguments.model)
    batch, tokens = arguments.batch, arguments.tokens
    if not (batch >= 1 and 1 <= tokens < config.max_position_embeddings):
        most = config.max_position_embeddings - 1
        raise ValueError(f"--batch is {batch}, --tokens {tokens}; expected at least 1, and at most {most} tokens")
    by_default = half_dtype(device) if device.type == "cuda" else torch.float32
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else by_default
    what = f"{arguments.model}, {arguments.phase}, {batch} x {tokens} tokens"
    if arguments.trace and arguments.trace.is_dir():  # before the time is spent
        raise ValueError(f"--trace is {str(arguments.trace)!r}, a folder; expected a file")
    if arguments.ncu:
        return _count(arguments, config, dtype, what)
    if arguments.mark and device.type != "cuda":
        raise CannotTime("--mark needs a CUDA GPU, and this machine has none")
    model, step = _step(arguments, config, dtype, device)
    if arguments.mark:
        profiler.mark(model, step)
        return 0
    found = profiler.profile(model, step, trace=arguments.trace)
    rows = [
        [row.operator, row.direction, ":".join(filter(None, (row.backend, row.rung))), f"{row.calls:.0f}",
         f"{row.us:.1f}", f"{100 * row.share:.1f}"]
        for row in found.rows
    ]  # fmt: skip
    where = gpu_of(device).name if found.device == "cuda" else "the CPU"
    print(f"{what}: {found.us / 1e3:.2f} ms a step on {where}")
    print(Table(["operator", "pass", "runs on", "calls", "us", "%"], rows).text())
    if arguments.trace:
        print(f"wrote {arguments.trace}: open it in https://ui.perfetto.dev")
    return 0


def _step(
    arguments: argparse.Namespace, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> tuple[LLM, Callable[[], None]]:
    """A model with random weights, and a step of the phase."""
    from lab.core import LLM, KVCache

    batch, tokens = arguments.batch, arguments.tokens
    with torch.device(device):
        model = LLM(config).to(dtype).use(arguments.backend)
        ids = torch.randint(config.vocab_size, (batch, tokens))

    def train() -> None:
        model.zero_grad()
        model.loss(ids, ids).backward()

    @torch.no_grad()
    def prefill() -> None:
        model(ids)

    cache = KVCache(config, batch, tokens + 1, device=device, dtype=dtype)
    if arguments.phase == "decode":
        with torch.no_grad():
            model(ids, cache)

    @torch.no_grad()
    def decode() -> None:
        model(ids[:, :1], cache)
        cache.trim([tokens] * batch)

    return model, {"prefill": prefill, "decode": decode, "train": train}[arguments.phase]


def _count(arguments: argparse.Namespace, config: ModelConfig, dtype: torch.dtype, what: str) -> int:
    """Run the same command under Nsight Compute, with --mark in place of --ncu."""
    from lab.core import LLM
    from lab.core.cost import operator_calls
    from lab.profiling import counters

    if arguments.phase == "train":
        raise ValueError("--ncu goes with --phase prefill or decode: PyTorch's own backward passes are in no range")
    with torch.device("meta"):
        LLM(config).use(arguments.backend)  # raises for a backend that cannot run
    own = ("model", "phase", "batch", "tokens", "backend")
    given = [f"--{name}={getattr(arguments, name)}" for name in own]
    dtype_name = str(dtype).removeprefix("torch.")
    kernels = counters.count(["-m", "lab", "profile", *given, f"--dtype={dtype_name}", "--mark"])
    decode = arguments.phase == "decode"
    new, context = (1, arguments.tokens) if decode else (arguments.tokens, 0)
    rows = counters.beside_contracts(kernels, operator_calls(config, arguments.batch, new, context), dtype)
    print(f"{what}: bytes of device memory in a step on {gpu_of(default_device()).name}, L2 cold for every kernel")
    print(counters.table(rows).text())
    return 0
