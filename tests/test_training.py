"""Training: what a step does, that a run which is killed and resumed is the same run, and what configs must hold."""

import copy
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import lab
from lab import cli, datasets, training
from lab.backends import registry
from lab.config import ConfigError
from lab.core import LLM, CheckpointError
from lab.core.cost import training_calls, training_cost
from lab.ops.cross_entropy import cross_entropy
from lab.training import Trainer, checkpoint, metrics
from lab.training.config import parse
from lab.training.schedule import learning_rate

ROOT = Path(lab.__file__).parents[1]
SHIPPED = sorted((ROOT / "book" / "experiments").glob("*/t*.yaml"))

RAW = {
    "seed": 3,
    "steps": 12,
    "dtype": "float32",
    "backend": "torch",
    "compile": False,
    "model": {
        "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
    },
    "data": {"text": "pydoc", "tokenizer": "bytes", "validation": 0.1},
    "batch": {"sequences": 4, "length": 16, "accumulation": 1},
    "optimizer": {"lr": 0.01, "min_lr": 0.001, "warmup": 4, "betas": [0.9, 0.95], "weight_decay": 0.1, "clip": 1.0},
    "evaluation": {"every": 5, "sequences": 8},
    "checkpoint": {"every": 5, "keep": 2},
}  # fmt: skip


def changed(**changes) -> dict:
    """RAW with other values: `optimizer__lr=1` for RAW["optimizer"]["lr"]; None takes the key away."""
    raw = copy.deepcopy(RAW)
    for name, value in changes.items():
        *path, key = name.split("__")
        place = raw
        for part in path:
            place = place[part]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return raw


def config(folder=ROOT, **changes) -> training.Config:
    return parse(changed(**changes), folder)


def trainer(seed=0, **changes) -> Trainer:
    torch.manual_seed(seed)
    parsed = config(**changes)
    return Trainer(parsed, LLM(parsed.model))


def windows(seed, count=4, length=17):
    return torch.randint(256, (count, length), generator=torch.Generator().manual_seed(seed))


def entries(run, *without):
    return [{key: value for key, value in entry.items() if key not in without} for entry in metrics.read(run)]


@pytest.fixture(autouse=True)
def one_thread_and_one_cache(monkeypatch, tmp_path_factory):
    """Tiny models: more threads only get in each other's way."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# A step --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup, step, expected", [
    (4, 1, 0.0025), (4, 3, 0.0075), (4, 4, 0.01), (4, 8, 0.001 + 0.009 * (1 + math.sqrt(0.5)) / 2), (4, 12, 0.0055),
    (4, 20, 0.001), (0, 1, 0.001 + 0.009 * (1 + math.cos(math.pi / 20)) / 2), (0, 20, 0.001), (19, 20, 0.001),
])  # fmt: skip
def test_learning_rate(warmup, step, expected):
    assert learning_rate(step, 20, config(steps=20, optimizer__warmup=warmup).optimizer) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_batch_can_be_learnt_by_heart(dtype, seed):
    # No byte twice: of two windows that begin alike nobody can tell how either goes on, and rotary attention takes a
    # first byte and its repetition for one.
    learner, batch = trainer(seed, dtype=dtype, optimizer__weight_decay=0.0), torch.randperm(256)[:68].view(4, 17)
    first = learner.step(batch, 0.003)[0]
    assert first == pytest.approx(math.log(256), abs=0.3)
    for _ in range(150):
        last = learner.step(batch, 0.003)[0]
    assert last < 0.02 and learner.evaluate(batch) < 0.02


def test_accumulation_is_a_bigger_batch(seed):
    whole, parts = trainer(seed), trainer(seed, batch__accumulation=4)
    sizes, loss = [], parts.loss
    parts.loss = lambda *tensors: sizes.append([len(tensor) for tensor in tensors]) or loss(*tensors)
    for step in range(3):
        expected, found = (each.step(windows(seed + step), 0.001) for each in (whole, parts))
        assert found == pytest.approx(expected, rel=1e-4)
    for name, weight in whole.optimizer.weights.items():
        assert torch.allclose(parts.optimizer.weights[name], weight, atol=2e-4), name
    assert sizes == [[1, 1]] * 12


def test_gradients_are_accumulated_in_float32():
    optimizer = trainer(dtype="bfloat16").optimizer
    weight = optimizer.model.norm.weight
    for gradient in (1.0, 2**-12):  # bfloat16 has 8 bits: its sum would be 1
        weight.grad = torch.full_like(weight, gradient)
        optimizer.take_gradients()
    assert weight.grad is None and (optimizer.weights["norm.weight"].grad == 1 + 2**-12).all()


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_gradients_are_clipped(clip, seed, monkeypatch):
    learner, norms = trainer(seed, optimizer__clip=clip), []
    step = learner.optimizer.adamw.step

    def spy():
        gradients = [weight.grad for weight in learner.optimizer.weights.values()]
        norms.append(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item())
        step()

    monkeypatch.setattr(learner.optimizer.adamw, "step", spy)
    _, norm = learner.step(windows(seed), 0.001)
    assert norm > 0.1  # as it was before
    assert norms == [pytest.approx(min(norm, clip), rel=1e-4)]


def test_a_bfloat16_model_has_float32_weights_behind_it(seed):
    learner = trainer(seed, dtype="bfloat16")
    before = {name: weight.detach().clone() for name, weight in learner.optimizer.weights.items()}
    assert all(weight.dtype == torch.bfloat16 for weight in learner.model.parameters())
    for step in range(5):
        learner.step(windows(seed + step), 1e-6)  # too little to show in most bfloat16 weights
    for name, weight in learner.model.named_parameters():
        own = learner.optimizer.weights[name]
        assert own.dtype == torch.float32 and torch.equal(own.bfloat16(), weight), name
        assert (own != before[name]).float().mean() > (0.5 if name != "embed_tokens.weight" else 0.1), name


def test_norms_do_not_decay():
    learner = trainer(optimizer__weight_decay=0.5)
    weights = learner.optimizer.weights
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    learner.optimizer.step(0.1)
    for name, weight in weights.items():
        assert torch.allclose(weight, before[name] * (1 if "norm" in name else 0.95), rtol=1e-6), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_is_the_mean_over_all_tokens(dtype, seed):
    learner, held_out = trainer(seed, dtype=dtype), windows(seed, count=7)  # no multiple of the batch
    logits = learner.model(held_out[:, :-1].to(learner.device)).float()
    expected = cross_entropy(logits, held_out[:, 1:].to(learner.device)).item()
    assert learner.evaluate(held_out) == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 1e-3)


@pytest.mark.cpu
def test_compiled_is_the_same(seed, monkeypatch):
    compiled = []
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f: compiled.append(f) or compile(f, backend="aot_eager", fullgraph=True)
    )
    fast, plain = trainer(seed, compile=True), trainer(seed)
    for step in range(3):
        assert fast.step(windows(step), 0.001) == pytest.approx(plain.step(windows(step), 0.001), rel=1e-4)
    assert len(compiled) == 1


@pytest.mark.cpu
def test_torch_and_triton_train_alike(seed):
    """The same seed, 50 steps, float32: every operator that Triton has, in its interpreter."""
    settings = {"steps": 50, "optimizer__lr": 0.003, "model__num_hidden_layers": 1}
    called = {call.operator for call in training_calls(config(**settings).model, 1, 4)}
    ops = [op for op in called if registry.ladder(op, "triton")]
    choice = ",".join(["torch", *(f"{op}=triton" for op in ops)])
    ours, torchs = trainer(seed, backend=choice, **settings), trainer(seed, **settings)
    text = datasets.load(None, None, 0.1).train
    losses = []
    with lab.trace() as calls:
        for step in range(1, 51):
            lr = learning_rate(step, 50, ours.config.optimizer)
            batch = datasets.random_windows(text, 5, 1, seed, step)
            losses.append([each.step(batch, lr)[0] for each in (ours, torchs)])
    found, expected = zip(*losses)
    assert found == pytest.approx(expected, abs=1e-4, rel=0)
    ran = {(call.operator, call.direction) for call in calls if call.backend == "triton"}
    assert ran == {(op, direction) for op in ops for direction in ("forward", "backward")} and ops
    assert min(expected) < expected[0] - 1


# A run ---------------------------------------------------------------------------------------------------------------


def test_metrics_say_what_the_run_was(tmp_path, capsys):
    began = config(batch__accumulation=2)
    path = training.train(began, tmp_path)
    first, *rest = metrics.read(tmp_path)
    dataset, about = datasets.load(None, None, 0.1), first["run"]
    assert about["config"] == began.raw and about["data"] == dataset.digest
    assert (about["train_tokens"], about["validation_tokens"]) == (len(dataset.train), len(dataset.validation))
    assert about["parameters"] == sum(weight.numel() for weight in LLM.from_pretrained(path).parameters())
    assert torch.__version__.startswith(about["versions"]["torch"]) and about["versions"]["lab"] == lab.__version__
    held_out = datasets.spaced_windows(dataset.validation, 17, 8)
    assert about["bigram_loss"] == datasets.bigram_loss(dataset.train, held_out, 256)
    steps = [entry for entry in rest if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 13))
    assert [entry["tokens"] for entry in steps] == [64 * step for step in range(1, 13)]
    assert [entry["lr"] for entry in steps] == [learning_rate(step, 12, began.optimizer) for step in range(1, 13)]
    assert all(0 < entry["seconds"] < 60 and entry["grad_norm"] > 0 for entry in steps)
    evaluated = [entry for entry in rest if "validation_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [5, 10, 12] and len(rest) == 15
    last = Trainer(began, LLM.from_pretrained(path))
    assert evaluated[-1]["validation_loss"] == pytest.approx(last.evaluate(held_out), rel=1e-5)
    torch.manual_seed(3)
    batch = datasets.random_windows(dataset.train, 17, 4, seed=3, step=1)
    assert steps[0]["loss"] == pytest.approx(Trainer(began, LLM(began.model)).step(batch, 0.1)[0], rel=1e-5)
    shown = capsys.readouterr().err
    assert "12/12" in shown and f"loss {steps[-1]['loss']:.3f}" in shown and "tokens/s" in shown
    assert "MFU" not in shown and ("GB" in shown) == torch.cuda.is_available()


def test_mfu_is_shown_against_the_ceiling_that_is_given(tmp_path, capsys):
    training.train(config(), tmp_path, peak_flops=1e9)
    last = [entry for entry in metrics.read(tmp_path) if "loss" in entry][-1]
    about = metrics.read(tmp_path)[0]["run"]
    mfu = about["flops"] / last["seconds"] / about["peak_flops"]
    assert about["flops"] == training_cost(config().model, 4, 16, torch.float32).flops and about["peak_flops"] == 1e9
    assert f"MFU {mfu:.1%}" in capsys.readouterr().err


@pytest.mark.cpu
def test_validation_loss_falls_below_a_bigram_models(tmp_path):
    training.train(
        config(
            model="tiny", steps=150, batch={"sequences": 16, "length": 64, "accumulation": 1}, checkpoint__every=150,
            optimizer__warmup=20, evaluation={"every": 150, "sequences": 64},
        ),
        tmp_path,
    )  # fmt: skip
    first, *_, last = metrics.read(tmp_path)
    assert last["validation_loss"] < first["run"]["bigram_loss"] < 2.6


def test_only_the_last_checkpoints_are_kept(tmp_path):
    training.train(config(checkpoint__every=2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "step-000010", "step-000012"]


def test_a_checkpoint_is_a_hugging_face_folder(tmp_path, capsys):
    path = training.train(config(dtype="bfloat16"), tmp_path)
    assert cli.main(["generate", "--model", str(path), "--prompt", "The é", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out
    weights = load_file(path / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert (path / "optimizer.safetensors").stat().st_mode == (path / "model.safetensors").stat().st_mode


def test_weights_to_begin_with(tmp_path):
    path = training.train(config(), tmp_path / "first")
    again = config(tmp_path, model={"init": str(path.relative_to(tmp_path))}, optimizer__lr=1e-9, optimizer__min_lr=0)
    training.train(again, tmp_path / "second")
    of_first, of_second = ([e["validation_loss"] for e in entries(tmp_path / run)
                            if "validation_loss" in e] for run in ("first", "second"))  # fmt: skip
    assert of_second == pytest.approx(of_first[-1:] * 3, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    step = Trainer.step
    seen = []

    def diverge(self, *arguments):
        seen.append(1)
        return (math.nan, 1.0) if len(seen) == 7 else step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", diverge)
    with pytest.raises(FloatingPointError, match=r"step 7: loss nan, gradient norm 1\.0; expected finite"):
        training.train(config(checkpoint__every=1), tmp_path)
    assert list(checkpoint.steps(tmp_path)) == [5, 6]
    assert entries(tmp_path)[-1]["step"] == 6


# Resuming ------------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_at(monkeypatch, step: int) -> None:
    """The next run ends where it would begin that step."""
    real = Trainer.step

    def until(self, *arguments):
        nonlocal step
        step -= 1
        if step == 0:
            raise Stopped
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "step", until)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["untied", "tied"])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, monkeypatch, dtype, model):
    settings = config(dtype=dtype, batch__accumulation=2, model=RAW["model"] | {"tie_word_embeddings": model == "tied"})
    whole = training.train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 9)
        training.train(settings, tmp_path / "stopped")
    assert entries(tmp_path / "stopped")[-1]["step"] == 8
    torch.manual_seed(99)
    resumed = training.train(settings, tmp_path / "stopped", resume=True)
    assert entries(tmp_path / "stopped", "seconds") == entries(tmp_path / "whole", "seconds")
    for name in ("model.safetensors", "optimizer.safetensors", "training.json", "config.json", "tokenizer.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


def kill(*arguments) -> list[dict]:
    """What tests/kill_training.py prints."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kill_training.py"), *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.cpu
def test_killed_at_any_moment(tmp_path, seed):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(changed(checkpoint__every=2)))
    kills = kill(*(tmp_path / name for name in ("run.yaml", "whole", "killed")), seed)
    assert {kill["by"] for kill in kills} == {"event", "time"}, kills
    assert all(kill["step"] - kill["checkpoint"] <= 2 for kill in kills), kills
    assert entries(tmp_path / "killed", "seconds") == entries(tmp_path / "whole", "seconds")
    assert sorted(path.name for path in (tmp_path / "killed").glob(".step-*")) == []
    for name in ("model.safetensors", "optimizer.safetensors"):
        killed, whole = (tmp_path / run / "step-000012" / name for run in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes(), name


@pytest.mark.cpu
def test_killed_before_every_operation_on_a_checkpoints_files(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RAW))
    kills = kill(tmp_path / "run.yaml", tmp_path / "runs")
    assert [kill["checkpoint"] for kill in kills] == sorted(kill["checkpoint"] for kill in kills)
    found = [kill["files"] for kill in kills]
    before, written, done = (["step-000001", "step-000002"], [f"step-00000{i}" for i in (1, 2, 3)],
                             ["step-000002", "step-000003"])  # fmt: skip
    assert found == sorted(found, key=[before, written, done].index)  # one after the other, and nothing else
    assert found.count(before) > 10 and found.count(written) >= 1 and found.count(done) > 3


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    monkeypatch.setattr(os, "rename", lambda *paths: done.append("rename") or rename(*paths))
    path = training.train(config(steps=5), tmp_path)
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    *files, folder = before
    assert {Path(each).name for each in files} == {each.name for each in path.iterdir()}
    assert {str(Path(each).parent) for each in files} == {folder} and after == [str(tmp_path)]


def test_a_line_of_metrics_that_was_not_finished_is_left_out(tmp_path):
    training.train(config(checkpoint__every=5), tmp_path)
    before = entries(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    assert entries(tmp_path) == before
    training.train(config(checkpoint__every=5), tmp_path, resume=True)
    assert entries(tmp_path) == before and (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


def test_a_checkpoint_that_cannot_be_finished_is_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    training.train(config(steps=5), tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "step-000005").iterdir()}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(checkpoint, "save_file", full)
        checkpoint.save(tmp_path, 6, trainer().model, trainer().optimizer, {}, keep=1)
    assert list(checkpoint.steps(tmp_path)) == [5] and not list(tmp_path.glob(".step-*"))
    assert {path: path.read_bytes() for path in (tmp_path / "step-000005").iterdir()} == before


@pytest.mark.cpu
def test_resuming_before_the_first_checkpoint_begins_again(tmp_path):
    training.train(config(), tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "metrics.jsonl").write_text('{"run": {}}\n{"step": 1, "loss": 5.0}\n{"st')
    (tmp_path / "killed" / ".step-000005.abc").mkdir()
    training.train(config(), tmp_path / "killed", resume=True)
    assert entries(tmp_path / "killed", "seconds") == entries(tmp_path / "whole", "seconds")
    assert not (tmp_path / "killed" / ".step-000005.abc").exists()


def test_resuming_what_is_done_changes_nothing(tmp_path):
    path = training.train(config(), tmp_path)
    before = entries(tmp_path)
    assert training.train(config(), tmp_path, resume=True) == path and entries(tmp_path) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimizer__lr": 0.02}, r"optimizer.lr is 0.02; expected 0.01, with which .*step-000012 was made"),
        ({"model": "tiny"}, r"model is 'tiny'; expected \{'vocab_size'"),
        ({"data__validation": 0.2}, r"data.validation is 0.2; expected 0.1"),
        ({"seed": 4}, r"seed is 4; expected 3"),
    ],
)
def test_another_config_cannot_resume(tmp_path, changes, message):
    training.train(config(), tmp_path)
    before = entries(tmp_path)
    with pytest.raises(ConfigError, match=message):
        training.train(config(**changes), tmp_path, resume=True)
    assert entries(tmp_path) == before


@pytest.mark.parametrize(
    "text, message",
    [
        ("? [a, b]\n: 1\n", r"c.yaml: the key in line 1 is a sequence; expected a text"),
        ("a: 2026-13-45\n", r"c.yaml: month must be in 1..12"),
    ],
)
def test_yaml_that_python_cannot_hold_names_the_file(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        training.load(tmp_path / "c.yaml")


def test_a_seed_that_pytorch_cannot_take():
    with pytest.raises(ConfigError, match=rf"seed is {2**70}; expected a whole number below 2\^63"):
        config(seed=2**70)


def test_a_key_that_is_gone_cannot_resume(tmp_path):
    training.train(config(model__tie_word_embeddings=True), tmp_path)
    with pytest.raises(ConfigError, match=r"model.tie_word_embeddings is None; expected True, with which"):
        training.train(config(), tmp_path, resume=True)


def test_another_text_cannot_resume(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc " * 300)
    settings = config(tmp_path, data__text=["text.txt"])
    training.train(settings, tmp_path / "run")
    text.write_text("abd " * 300)
    with pytest.raises(ConfigError, match=r"^data is '\w{64}'; expected '\w{64}'"):
        training.train(settings, tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten_and_must_be_there_to_resume(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not there; expected the folder of a run to resume"):
        training.train(config(), tmp_path / "nowhere", resume=True)
    training.train(config(), tmp_path)
    with pytest.raises(ValueError, match=r"step-000012 is there already; expected --resume, or a folder without"):
        training.train(config(), tmp_path)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "training.json", "model.safetensors"])
def test_a_checkpoint_broken_by_others_is_named(tmp_path, name):
    path = training.train(config(), tmp_path)
    (path / name).write_bytes((path / name).read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=name):
        training.train(config(), tmp_path, resume=True)


@pytest.mark.parametrize("text", ["", "garbage\n", "[]\n", "{}\n"])
def test_broken_metrics_are_named(tmp_path, text):
    training.train(config(), tmp_path)
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: (cannot be read|expected lines of JSON objects)"):
        training.train(config(), tmp_path, resume=True)


def test_a_state_that_is_no_object_is_named(tmp_path):
    path = training.train(config(), tmp_path)
    (path / "training.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"training.json: is a list; expected a JSON object"):
        training.train(config(), tmp_path, resume=True)


def test_a_checkpoint_without_the_state_of_a_weight_is_refused(tmp_path):
    """AdamW would begin anew with that weight, and nobody would know."""
    file = training.train(config(), tmp_path) / "optimizer.safetensors"
    state = load_file(file)
    name = next(name for name in state if name.endswith(".exp_avg"))
    save_file({other: value for other, value in state.items() if other != name}, file)
    with pytest.raises(CheckpointError, match=rf"optimizer.safetensors: cannot be read: '{re.escape(name)}'"):
        training.train(config(), tmp_path, resume=True)


# The config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_is_valid_and_its_model_small(path):
    shipped = training.load(path)
    assert shipped.model.parameters * 2 < 4 << 20  # bytes in bfloat16
    assert shipped.batch.length <= shipped.model.max_position_embeddings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"colour": "red"}, r"^config.colour is not a key; expected backend, batch"),
        ({"seed": None}, r"^config.seed is missing"),
        ({"seed": -1}, r"^seed is -1; expected a whole number of at least 0"),
        ({"seed": True}, r"^seed is True; expected a whole number"),
        ({"steps": 0}, r"^steps is 0; expected a whole number of at least 1"),
        ({"dtype": "float16"}, r"^dtype is 'float16'; expected float32 or bfloat16"),
        ({"dtype": ["float32"]}, r"^dtype is \['float32'\]; expected float32 or bfloat16"),
        ({"backend": 5}, r"^backend is 5; expected a choice such as"),
        ({"backend": "pascal"}, r"^backend is 'pascal': unknown backend 'pascal'; expected one of auto, torch"),
        ({"backend": "torch,norm=triton"}, r"^backend is 'torch,norm=triton': unknown operator 'norm'"),
        ({"compile": "no"}, r"^compile is 'no'; expected true or false"),
        ({"model": "huge"}, r"^model is 'huge'; expected one of llama3-8b, .*, sizes, or init: FOLDER"),
        ({"model": ["tiny"]}, r"^model is \['tiny'\]; expected a mapping"),
        ({"model": {"init": "nowhere"}}, r"^model.init is 'nowhere'; expected a folder"),
        ({"model": {"init": ".", "head_dim": 8}}, r"^model.head_dim is not a key; expected init"),
        ({"model__head_dim": None}, r"^model.head_dim is missing"),
        ({"model__head_dim": 15}, r"^model.head_dim is 15; expected an even number"),
        ({"model__hidden_size": "32"}, r"^model.hidden_size is '32'; expected a whole number"),
        ({"model__heads": 2}, r"^model.heads is not a key"),
        ({"model__rope_theta": 0}, r"^model.rope_theta is 0; expected a number above 0"),
        ({"model__tie_word_embeddings": "yes"}, r"^model.tie_word_embeddings is 'yes'; expected true or false"),
        ({"data": "pydoc"}, r"^data is 'pydoc'; expected a mapping with the keys text, tokenizer, validation"),
        ({"data__text": "pydocs"}, r"^data.text is 'pydocs'; expected pydoc or a list of files"),
        ({"data__text": []}, r"^data.text is \[\]; expected pydoc or a list of files"),
        ({"data__text": ["README.md", "nowhere.txt"]}, r"^data.text\[1\] is 'nowhere.txt'; expected a file"),
        ({"data__tokenizer": "byte"}, r"^data.tokenizer is 'byte'; expected bytes or a tokenizer.json"),
        ({"data__validation": 0}, r"^data.validation is 0; expected a number above 0 and below 1"),
        ({"data__validation": 1.0}, r"^data.validation is 1.0; expected a number above 0 and below 1"),
        ({"batch__length": 1}, r"^batch.length is 1; expected a whole number of at least 2"),
        ({"batch__sequences": 1.5}, r"^batch.sequences is 1.5; expected a whole number of at least 1"),
        ({"batch__accumulation": 3}, r"^batch.accumulation is 3; expected a divisor of batch.sequences, 4"),
        ({"optimizer__lr": 0}, r"^optimizer.lr is 0; expected a number above 0"),
        ({"optimizer__lr": 10**400}, r"^optimizer.lr is 10+; expected a number above 0"),
        ({"optimizer__lr": math.nan}, r"^optimizer.lr is nan; expected a number above 0"),
        ({"optimizer__min_lr": 0.02}, r"^optimizer.min_lr is 0.02; expected a number from 0 to optimizer.lr, 0.01"),
        ({"optimizer__warmup": 12}, r"^optimizer.warmup is 12; expected fewer than steps, 12"),
        ({"optimizer__betas": 0.9}, r"^optimizer.betas is 0.9; expected two numbers"),
        ({"optimizer__betas": [0.9, 1]}, r"^optimizer.betas\[1\] is 1; expected a number from 0, below 1"),
        ({"optimizer__weight_decay": -0.1}, r"^optimizer.weight_decay is -0.1; expected a number of at least 0"),
        ({"optimizer__clip": 0}, r"^optimizer.clip is 0; expected a number above 0"),
        ({"optimizer__clip": math.inf}, r"^optimizer.clip is inf; expected a number above 0"),
        ({"optimizer__momentum": 0.9}, r"^optimizer.momentum is not a key; expected betas, clip"),
        ({"evaluation__every": 0}, r"^evaluation.every is 0; expected a whole number of at least 1"),
        ({"evaluation__sequences": 0}, r"^evaluation.sequences is 0"),
        ({"checkpoint__every": None}, r"^checkpoint.every is missing"),
        ({"checkpoint__keep": 0}, r"^checkpoint.keep is 0; expected a whole number of at least 1"),
    ],
)
def test_a_bad_config_names_the_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__vocab_size": 200}, r"^model.vocab_size is 200; expected at least the tokenizer's, 256"),
        ({"batch__length": 65}, r"^batch.length is 65; expected at most the model's max_position_embeddings, 64"),
        ({"data__validation": 1e-5}, r"^batch.length is 16; expected less than the tokens of the .* split, \d+"),
    ],
)
def test_a_model_and_data_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        training.train(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 1\nseed: 2\n", r"run.yaml: seed is given twice, again in line 2; expected once"),
        ("seed: [1\n", r"run.yaml: is not YAML: .*line 2"),
        ("", r"run.yaml: config is None; expected a mapping with the keys"),
        (b"\xff\xfe\xff", r"run.yaml: (is not YAML|cannot be read)"),
        (None, r"run.yaml: cannot be read: No such file"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_2(tmp_path, capsys, text, message):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(["train", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    with pytest.raises(ConfigError, match=message):
        training.load(path)


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    text = yaml.safe_dump(RAW).replace("lr: 0.01", "lr: 1e-2").replace("min_lr: 0.001", "min_lr: 1E-03")
    (tmp_path / "run.yaml").write_text(text)
    assert "1e-2" in text and "1E-03" in text and training.load(tmp_path / "run.yaml").optimizer == config().optimizer


# The command line ----------------------------------------------------------------------------------------------------


def test_lab_train(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(changed(data__text=["text.txt"])))
    Path("text.txt").write_text("what is said once, is said again. " * 100)
    assert cli.main(["train", "small.yaml"]) == 0
    about, *_, last = metrics.read(Path("runs/small"))
    expected = f"validation loss {last['validation_loss']:.3f}, a bigram model {about['run']['bigram_loss']:.3f}\n"
    assert capsys.readouterr().out == f"wrote runs/small/step-000012: {expected}"
    assert cli.main(["train", "small.yaml"]) == 2 and "is there already" in capsys.readouterr().err
    assert cli.main(["train", "small.yaml", "--resume"]) == 0
    assert cli.main(["train", "small.yaml", "--output", "elsewhere"]) == 0 and Path("elsewhere/step-000012").is_dir()
