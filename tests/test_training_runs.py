"""Experiments that train, on a machine with no GPU: the ceilings are faked, all else runs, on a tiny shape."""

import json

import pytest
import torch
import yaml
from test_benchmark import CEILINGS, ENVIRONMENT
from test_training import RAW, changed

from lab import cli, datasets
from lab.backends import registry
from lab.backends.hardware import default_device
from lab.benchmark import records, report, training_runs
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
    monkeypatch.setattr(training_runs, "experiments_folder", lambda: tmp_path / "experiments")
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
        "fake", {"linear": registry.Implementation(function=linear.function, unavailable=lambda device: "needs Hopper")}
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
    config = training_runs.configs("one")[0]
    model = LLM.from_pretrained(house / "out" / "model")
    assert model.embed_tokens.weight.dtype == torch.bfloat16 and model.tokenizer.encode("é").ids == list("é".encode())
    held_out = datasets.spaced_windows(datasets.load(None, None, 0.1).validation, 17, 2)
    loss = Trainer(config, model.float()).evaluate(held_out)
    assert record.runs[0].validation_losses[-1] == pytest.approx(loss, rel=1e-4)
    monkeypatch.setattr(training_runs, "SHIPPED", house / "models")
    assert cli.main(["record", "one"]) == 0
    weights = house / "models" / "one" / "model.safetensors"
    assert weights.read_bytes() == (house / "out" / "model" / "model.safetensors").read_bytes()
    assert (house / "experiments" / "one" / "results" / "nvidia-fake-80gb.json").exists()
    monkeypatch.setattr(records, "experiments_folder", lambda: house / "experiments")
    assert report.all_records() == []  # which `lab report` could not read


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
    for config in training_runs.configs(name):
        assert config.model.parameters * 2 < 4 << 20  # bytes in bfloat16
        assert config.batch.length <= config.model.max_position_embeddings


def test_published_records_are_valid_and_not_taken_for_others():
    others = [path for _, path in report.all_records()]
    for name in training_runs.names():
        for path in (experiments_folder() / name).glob("results/*.json"):
            assert training_runs.read_record(path).experiment == name and path not in others


# The model that comes with the lab -----------------------------------------------------------------------------------


def test_generate_without_a_model_takes_the_labs_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    assert cli.main(["generate", "--prompt", "a"]) == 2
    said = "lab generate: --model is missing, and this lab comes with no model; expected a folder\n"
    assert capsys.readouterr() == ("", said)
    model = LLM(parse(RAW, tmp_path).model)
    model.tokenizer = datasets.byte_level()
    model.save_pretrained(tmp_path / "pydoc")
    arguments = ["generate", "--prompt", "a", "--max-new-tokens", "3"]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--model", str(tmp_path / "pydoc")]) == 0
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :]


def test_the_labs_own_model(capsys):
    """It is small and knows more than pairs of bytes; where it has not been trained yet, `lab generate` says so."""
    folder = checkpoint.SHIPPED / cli.OWN_MODEL
    code = cli.main(["generate", "--prompt", "The ", "--max-new-tokens", "20"])
    out, err = capsys.readouterr()
    if not folder.exists():
        assert (code, out) == (2, "") and "this lab comes with no model" in err
        return
    assert code == 0 and len(out.encode()) > 10
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 << 20
    dataset = datasets.load(None, None, 0.1)
    held_out = datasets.spaced_windows(dataset.validation, 257, 8)
    model = LLM.from_pretrained(folder, dtype=torch.float32, device="cpu", backend="torch")
    with torch.no_grad():
        loss = model.loss(held_out[:, :-1], held_out[:, 1:]).item()
    assert loss < datasets.bigram_loss(dataset.train, held_out, 256)
