"""Experiments that train, on a machine with no GPU: the ceilings are faked, all else runs, on a tiny shape."""

import json
import statistics
from dataclasses import replace

import pytest
import torch
import yaml
from test_benchmark import CEILINGS, ENVIRONMENT
from test_training import RAW, changed

from lab import cli, datasets
from lab.backends import registry
from lab.backends.hardware import default_device
from lab.backends.implementation import Implementation
from lab.benchmark import config, figures, records, report, training_runs
from lab.benchmark.instruments import Instruments
from lab.benchmark.records import RecordError, experiments_folder
from lab.config import ConfigError
from lab.core import LLM, checkpoint
from lab.core.cost import training_cost
from lab.training import Trainer
from lab.training.config import parse


def never(*_):
    raise AssertionError("nothing but the ceilings is used")


INSTRUMENTS = Instruments(default_device(), ENVIRONMENT, CEILINGS, never, never, synchronize=lambda: None)
RUNS = [{"backend": "torch", "seeds": [0, 1]}, {"backend": "triton", "seeds": [0]}, {"backend": "fake", "seeds": [0]}]


@pytest.fixture(autouse=True)
def one_thread_and_one_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def house(monkeypatch, tmp_path):
    """A folder of experiments with two in it."""
    for module in (training_runs, records, config):
        monkeypatch.setattr(module, "experiments_folder", lambda: tmp_path / "experiments")
    monkeypatch.setattr(training_runs, "gpu_instruments", lambda: INSTRUMENTS)
    raw = changed(steps=3, optimizer__warmup=1, evaluation__every=2, evaluation__sequences=2, batch__sequences=1)
    for name in ("one", "several"):
        folder = tmp_path / "experiments" / name
        folder.mkdir(parents=True)
        (folder / "train.yaml").write_text(yaml.safe_dump(raw | ({"dtype": "bfloat16"} if name == "one" else {})))
    (folder / "runs.yaml").write_text(yaml.safe_dump(RUNS))
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """A backend whose linear is not for this GPU."""
    registry.backends()
    monkeypatch.setattr(registry, "_ladders", {name: dict(ops) for name, ops in registry._ladders.items()})
    linear = registry.ladder("linear", "torch")[0]
    registry.register_backend(
        "fake", {"linear": Implementation(function=linear.function, unavailable=lambda device: "needs Hopper")}
    )
    yield
    vars(registry._bound).clear()


@pytest.mark.cpu
def test_every_run_is_recorded(house, fake):
    path = training_runs.record("several", house / "out")
    assert path == house / "out" / "results" / "nvidia-fake-80gb.json"
    assert {each.name for each in (house / "out").iterdir()} == {"results", "env.txt"}
    record = training_runs.read_record(path)
    assert record.data == datasets.load(None, None, 0.1).digest and record.environment == ENVIRONMENT
    assert record.config["steps"] == 3 and 2 < record.bigram_loss < 3
    shape = parse(RAW, house).model
    assert record.parameters == shape.parameters
    assert record.flops == training_cost(shape, 1, 16, torch.float32).flops
    first, second, triton, fake_run = record.runs
    assert [(run.backend, run.seed) for run in (first, second)] == [("torch", 0), ("torch", 1)]
    assert len(first.losses) == 3 and first.evaluated == (2, 3) and len(first.validation_losses) == 2
    assert first.losses[0] != second.losses[0] and triton.losses == pytest.approx(first.losses, abs=1e-4)
    assert triton.backend == "torch,add_rmsnorm=triton,linear=triton,rmsnorm=triton" and triton.seed == 0
    best = str(registry.ladder("rmsnorm", "triton")[-1])
    assert triton.implementations["rmsnorm"] == best and triton.implementations["rope"] == "torch:eager"
    assert fake_run.error == "cannot run: linear on fake: best: needs Hopper" and fake_run.losses == ()
    assert first.tokens_per_s == pytest.approx(16 / first.seconds, rel=1e-4)
    assert first.tflops == pytest.approx(record.flops / first.seconds / 1e12, rel=1e-4)
    assert first.mfu == pytest.approx(first.tflops / CEILINGS.matmul_tflops, rel=1e-4)
    lines = training_runs.table(record).text().splitlines()
    assert lines[2] == "torch, seed 0" and lines[3].split()[0] == f"{first.validation_losses[-1]:.4f}"
    assert lines[-1].split() == ["-"] * 5


@pytest.mark.cpu
def test_a_single_run_gives_its_model(house, capsys, monkeypatch):
    assert cli.main(["record", "one", "--output", str(house / "out")]) == 0
    out = capsys.readouterr().out
    record = training_runs.read_record(house / "out" / "results" / "nvidia-fake-80gb.json")
    assert f"a bigram model's validation loss: {record.bigram_loss:.4f}\nwrote {house}/out/results" in out
    trained = training_runs.configs("one")[0]
    model = LLM.from_pretrained(house / "out" / "model")
    assert model.embed_tokens.weight.dtype == torch.bfloat16 and model.tokenizer.encode("é").ids == list("é".encode())
    held_out = datasets.spaced_windows(datasets.load(None, None, 0.1).validation, 17, 2)
    loss = Trainer(trained, model.float()).evaluate(held_out)
    assert record.runs[0].validation_losses[-1] == pytest.approx(loss, rel=1e-4)
    monkeypatch.setattr(training_runs, "SHIPPED", house / "models")
    assert cli.main(["record", "one"]) == 0
    weights = house / "models" / "one" / "model.safetensors"
    assert weights.read_bytes() == (house / "out" / "model" / "model.safetensors").read_bytes()
    assert (house / "experiments" / "one" / "results" / "nvidia-fake-80gb.json").exists()
    assert report.all_records() == [] and len(report.training_records()) == 1
    assert report.not_recorded() == ["several"]


def test_when_no_run_ends_nothing_is_written(house, fake):
    (house / "experiments" / "several" / "runs.yaml").write_text(yaml.safe_dump([{"backend": "fake", "seeds": [0]}]))
    with pytest.raises(ValueError, match="several: no run came to its end; the first: cannot run: linear on fake"):
        training_runs.record("several", house / "out")
    assert not (house / "out").exists()


@pytest.mark.parametrize(
    "runs, message",
    [
        ([], r"runs is \[\]; expected a list with something in it"),
        ([{"backend": "torch"}], r"runs\[0\].seeds is missing"),
        ([{"backend": "pascal", "seeds": [0]}], r"runs\[0\].backend is 'pascal'; expected one of torch, triton, cuda"),
        ([{"backend": "torch", "seeds": [0, -1]}], r"runs\[0\].seeds\[1\] is -1; expected a whole number of at least"),
    ],
)
def test_bad_runs(house, runs, message):
    (house / "experiments" / "several" / "runs.yaml").write_text(yaml.safe_dump(runs))
    with pytest.raises(ConfigError, match=message):
        training_runs.configs("several")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: raw | {"schema": 0}, "schema is 0; expected 1"),
        (lambda raw: raw | {"flops": "many"}, "record.flops is 'many'; expected int"),
        (lambda raw: raw["runs"][0].update(losses=[1.0]) or raw, r"runs\[0\] has 1 losses, its error is None"),
        (lambda raw: raw["runs"][0].update(error="x") or raw, r"runs\[0\] has 3 losses, its error is 'x'"),
    ],
)
def test_a_bad_record_is_named(house, change, message):
    path = training_runs.record("one", house / "out")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(RecordError, match=rf"nvidia-fake-80gb.json: .*{message}"):
        training_runs.read_record(path)


@pytest.mark.parametrize("name", training_runs.names())
def test_an_experiment_of_the_book_is_valid(name):
    for each in training_runs.configs(name):
        assert each.model.parameters * 2 < 4 << 20  # bytes in bfloat16
        assert each.batch.length <= each.model.max_position_embeddings


def outdated(record: training_runs.TrainingRecord, configs: list) -> list[str]:
    """What of a record is not what its experiment would train now: the config, the runs, or a step's FLOPs. (What the
    backends' operators are by now does not count.)"""
    first = configs[0]
    flops = training_cost(first.model, first.batch.sequences, first.batch.length, first.dtype).flops
    runs = [(training_runs.TrainingRun(each.backend, each.seed).runs_on, each.seed) for each in configs]
    pairs = {
        "config": (record.config | {"backend": None}, first.raw | {"backend": None}),
        "runs": ([(each.runs_on, each.seed) for each in record.runs], runs),
        "flops": ((record.flops, record.parameters), (flops, first.model.parameters)),
    }
    return [what for what, (then, now) in pairs.items() if then != now]


@pytest.mark.parametrize("name", training_runs.names())
def test_published_records_are_valid_and_of_the_present_experiments(name):
    paths = list((experiments_folder() / name).glob("results/*.json"))
    assert paths and not set(paths) & {path for _, path in report.all_records()}
    for path in paths:
        record = training_runs.read_record(path)
        stale = outdated(record, training_runs.configs(name))
        assert record.experiment == name and not stale, f"{path}: {stale} changed: run `lab record {name}`"


def test_an_outdated_record_is_found(house, fake):
    record = training_runs.read_record(training_runs.record("several", house / "out"))
    configs = training_runs.configs("several")
    assert outdated(record, configs) == []
    assert outdated(replace(record, config=record.config | {"steps": 4}), configs) == ["config"]
    assert outdated(replace(record, runs=record.runs[:-1]), configs) == ["runs"]
    assert outdated(replace(record, flops=1), configs) == ["flops"]


def test_published_backends_train_alike():
    """The mean over a backend's seeds stays inside the spread of PyTorch's, and each run is nearer to that on PyTorch
    with its seed than two seeds there mostly are to each other."""
    paths = list((experiments_folder() / "training_backends").glob("results/*.json"))
    assert paths
    for path in paths:
        found = training_runs.spread(training_runs.read_record(path))
        assert len(found.seeds) == 5 and set(found.backends) == {"triton", "cuda"}
        apart = statistics.median(found.seeds_apart())
        for backend, runs in found.backends.items():
            assert len(runs) == 5 and not found.outside(backend) and found.off_twins(backend)[-1] < apart, path


# How far runs are apart, and their figures ---------------------------------------------------------------------------

NORMS = "torch,add_rmsnorm=triton,rmsnorm=triton:naive"


def run(backend: str, seed: int, *validation: float, **other) -> training_runs.TrainingRun:
    losses = tuple(6.0 - step / 10 + seed for step in range(4))
    return training_runs.TrainingRun(backend, seed, None, {}, losses, (2, 4), validation, 1.0, 1.0, 1.0, 0.1, **other)


def a_record(*runs: training_runs.TrainingRun) -> training_runs.TrainingRecord:
    about = {"steps": 4, "evaluation": {"every": 2}}
    return training_runs.TrainingRecord(
        training_runs.SCHEMA, "planted", about, "", ENVIRONMENT, CEILINGS, "", 1, 1, 2.5, runs
    )


SEEDS = (run("torch", 0, 3.0, 2.0), run("torch", 1, 3.5, 2.2), run("torch", 2, 3.1, 1.9))
FAILED = training_runs.TrainingRun("torch,linear=cuda", 0, "cannot run: no GPU")


def test_the_spread_of_seeds():
    near, far = run(NORMS, 0, 3.2, 2.05), run(NORMS, 2, 3.0, 2.6)
    cuda = run("torch,linear=cuda", 1, 2.9, 2.2)
    found = training_runs.spread(a_record(near, *SEEDS, FAILED, cuda, far, run(NORMS, 3, 3.0, 2.0)))
    assert found.seeds == SEEDS and found.twin(far) == SEEDS[2]
    assert found.backends == {"triton": (near, far), "cuda": (cuda,)}  # no seed 3 on PyTorch, and one that failed
    assert found.off_twins("triton") == pytest.approx([0.2, 0.7]) and found.off_twins("cuda") == pytest.approx([0.6])
    assert found.outside("triton") == [4] and found.outside("cuda") == [2]
    assert found.seeds_apart() == pytest.approx([0.1, 0.4, 0.5])


@pytest.mark.parametrize("runs", [(), SEEDS[:1], (*SEEDS[:1], FAILED, run(NORMS, 1, 3.0, 2.0))])
def test_one_seed_has_no_spread(runs):
    with pytest.raises(ValueError, match=rf"the record has {min(1, len(runs))} runs on PyTorch; expected at least 2"):
        training_runs.spread(a_record(*runs))


def test_a_loss_curve():
    drawn = figures.loss_curve(a_record(SEEDS[0]))
    told = (
        "trained on 6.00 at step 1, 5.70 at step 4; held out 3.00 after 2 steps and 2.00 after 4; a bigram model 2.50."
    )
    assert drawn.alt == f"Loss of planted on {ENVIRONMENT.gpu}, nats a token: {told}"
    assert ">a bigram model</text>" in drawn.svg and drawn == figures.loss_curve(a_record(SEEDS[0]))
    words = replace(a_record(SEEDS[0]), bigram_loss=None)
    assert "bigram" not in figures.loss_curve(words).svg
    with pytest.raises(ValueError, match="the run did not come to its end: cannot run: no GPU"):
        figures.loss_curve(a_record(FAILED))


def test_the_spread_is_drawn(monkeypatch):
    others = run(NORMS, 0, 3.01, 2.1), run(NORMS, 1, 3.5, 2.2), run("torch,linear=cuda", 1, 3.5, 2.1)
    drawn = figures.seed_spread(a_record(*SEEDS, *others))
    assert "two of torch's 3 seeds by 0.1 to 0.5; a run on triton and the one on torch with its seed by at" in drawn.alt
    assert drawn.alt.endswith("on cuda and the one on torch with its seed by at most 0.1.")
    for label in ("torch, 3 seeds", "triton, mean of 2", "cuda"):
        assert drawn.svg.count(f">{label}</text>") == 1
    assert drawn == figures.seed_spread(a_record(*SEEDS, *others))
    monkeypatch.setattr(figures, "figure", lambda fig, alt: fig)
    above, below = figures.seed_spread(a_record(*SEEDS, *others), mean_of=2).axes
    assert list(above.lines[0].get_ydata()) == pytest.approx([6.5, 6.45, 6.35, 6.25])
    assert [list(line.get_ydata()) for line in below.lines] == [[0.0] * 4] * 3  # each is as its twin
    moved = replace(others[1], losses=(7.0, 6.9, 6.8, 6.8))
    _, below = figures.seed_spread(a_record(*SEEDS, others[0], moved, others[2]), mean_of=1).axes
    assert list(below.lines[1].get_ydata()) == pytest.approx([0, 0, 0, 0.1])


@pytest.mark.parametrize("name", ["one", "several"])
def test_report(house, fake, capsys, name):
    assert cli.main(["report", name]) == 2
    training_runs.record(name, house / "experiments" / name)
    assert cli.main(["report", name, "--output", str(house / "reports")]) == 0
    path = house / "reports" / name / "nvidia-fake-80gb"
    assert capsys.readouterr().out == f"{path / 'report.md'}\n"
    text, record = (path / "report.md").read_text(), training_runs.published(name)
    assert f"# {name} on NVIDIA Fake 80GB" in text and training_runs.table(record).markdown() in text
    assert f"a bigram model has a loss of {record.bigram_loss:.4f}." in text
    drawn = figures.loss_curve(record) if name == "one" else figures.seed_spread(record)
    assert (path / "figure-1.svg").read_text() == drawn.svg and f"![{drawn.alt}](figure-1.svg)" in text
    assert ("needs Hopper" in text) == (name == "several")


# The model that comes with the lab -----------------------------------------------------------------------------------


def test_generate_without_a_model_takes_the_labs_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    assert cli.main(["generate", "--prompt", "a"]) == 2
    why = "this lab comes with no model (`lab record pydoc` trains one, on a GPU)"
    assert capsys.readouterr() == ("", f"lab generate: --model is missing, and {why}; expected a folder\n")
    model = LLM(parse(RAW, tmp_path).model)
    model.tokenizer = datasets.byte_level()
    model.save_pretrained(tmp_path / "pydoc")
    arguments = ["generate", "--prompt", "a", "--max-new-tokens", "3"]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--model", str(tmp_path / "pydoc")]) == 0
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :]


def test_the_labs_own_model(capsys):
    """It is small, and knows more than pairs of bytes."""
    folder = checkpoint.SHIPPED / cli.OWN_MODEL
    assert cli.main(["generate", "--prompt", "The ", "--max-new-tokens", "20"]) == 0
    assert len(capsys.readouterr().out.encode()) > 10
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 << 20
    dataset = datasets.load(None, None, 0.1)
    held_out = datasets.spaced_windows(dataset.validation, 257, 8)
    model = LLM.from_pretrained(folder, dtype=torch.float32, device="cpu", backend="torch")
    with torch.no_grad():
        loss = model.loss(held_out[:, :-1], held_out[:, 1:]).item()
    assert loss < datasets.bigram_loss(dataset.train, held_out, 256)
