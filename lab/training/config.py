"""A training run's YAML config, strictly checked; every key is needed.

    seed: 0                               of the first weights and of what each step is trained on
    steps: 1000
    dtype: bfloat16                       of the model; its optimizer always works on float32 weights
    backend: torch,rmsnorm=triton         a choice string (`lab.backends.registry`)
    compile: false                        whether the model runs under torch.compile
    model: tiny                           a name of `lab.core.MODELS`,
           {vocab_size: 256, ...}         sizes (fields of `lab.core.ModelConfig`),
           {init: FOLDER}                 or a folder with the weights to begin with
    data: {text: pydoc, tokenizer: bytes, validation: 0.1}
    batch: {sequences: 32, length: 256, accumulation: 1}
    optimizer: {lr: 1e-3, min_lr: 1e-4, warmup: 100, betas: [0.9, 0.95], weight_decay: 0.1, clip: 1.0}
    evaluation: {every: 100, sequences: 64}
    checkpoint: {every: 100, keep: 2}

data.text: "pydoc", Python's own reference, or a list of files, text or .jsonl (its field `text`). data.tokenizer:
"bytes" or a tokenizer.json. data.validation: the fraction of the text, at its end, that is not trained on. A step is
trained on `sequences` sequences of `length` tokens, in `accumulation` parts that run one after the other. clip: the
norm that gradients are scaled down to. evaluation.sequences: the most that the validation loss is taken over. keep: how
many checkpoints. Paths are relative to the config's folder.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch

from lab.backends import registry
from lab.config import ConfigError, boolean, integer, mapping, number, read, require, seed, text
from lab.core import MODELS, ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Data:
    """files: None means Python's own reference. tokenizer: None means bytes."""

    files: tuple[Path, ...] | None
    tokenizer: Path | None
    validation: float


@dataclass(frozen=True)
class Batch:
    sequences: int
    length: int
    accumulation: int


@dataclass(frozen=True)
class Optimizer:
    lr: float
    min_lr: float
    warmup: int
    betas: tuple[float, float]
    weight_decay: float
    clip: float


@dataclass(frozen=True)
class Config:
    """What `lab.training.train` does, as this module's text says. model: its shape, or the folder to begin with. raw:
    what the YAML held."""

    seed: int
    steps: int
    dtype: torch.dtype
    backend: str
    compile: bool
    model: ModelConfig | Path
    data: Data
    batch: Batch
    optimizer: Optimizer
    evaluate_every: int
    evaluate_sequences: int
    checkpoint_every: int
    keep: int
    raw: dict = field(repr=False)


def load(path: Path) -> Config:
    """The config in a YAML file. Raises ConfigError naming the file, the key and what was expected."""
    return read(path, partial(parse, folder=path.parent))


def parse(raw: object, folder: Path) -> Config:
    """A Config out of what YAML gave; paths are relative to `folder`. Raises ConfigError naming the key."""
    top = mapping(
        raw,
        "config",
        {"seed", "steps", "dtype", "backend", "compile", "model", "data", "batch", "optimizer", "evaluation",
         "checkpoint"},
    )  # fmt: skip
    steps = integer(top["steps"], "steps", 1)
    require(top["dtype"] in tuple(DTYPES), "dtype", top["dtype"], " or ".join(DTYPES))
    evaluation = mapping(top["evaluation"], "evaluation", {"every", "sequences"})
    checkpoint = mapping(top["checkpoint"], "checkpoint", {"every", "keep"})
    return Config(
        seed=seed(top["seed"], "seed"),
        steps=steps,
        dtype=DTYPES[top["dtype"]],
        backend=_backend(top["backend"]),
        compile=boolean(top["compile"], "compile"),
        model=_model(top["model"], folder),
        data=_data(top["data"], folder),
        batch=_batch(top["batch"]),
        optimizer=_optimizer(top["optimizer"], steps),
        evaluate_every=integer(evaluation["every"], "evaluation.every", 1),
        evaluate_sequences=integer(evaluation["sequences"], "evaluation.sequences", 1),
        checkpoint_every=integer(checkpoint["every"], "checkpoint.every", 1),
        keep=integer(checkpoint["keep"], "checkpoint.keep", 1),
        raw=top,
    )


def _backend(value: object) -> str:
    choice = text(value, "backend", 'a choice such as "torch,rmsnorm=triton"')
    try:
        registry.parse_choice(choice)
    except ValueError as error:
        raise ConfigError(f"backend is {choice!r}: {error}") from error
    return choice


def _model(value: object, folder: Path) -> ModelConfig | Path:
    if isinstance(value, str):
        require(value in MODELS, "model", value, f"one of {', '.join(MODELS)}, sizes, or init: FOLDER")
        return MODELS[value]
    if isinstance(value, dict) and "init" in value:
        init = folder / text(mapping(value, "model", {"init"})["init"], "model.init", "a folder")
        require(init.is_dir(), "model.init", value["init"], "a folder")
        return init
    known = {each.name: each for each in fields(ModelConfig) if each.name not in ("rope_scaling", "eos_token_ids")}
    required = [name for name, each in known.items() if each.default is MISSING]
    sizes = mapping(value, "model", required, known)
    for name in sizes.keys() & {"rms_norm_eps", "rope_theta"}:
        number(sizes[name], f"model.{name}", lambda x: x > 0, "a number above 0")
    for name in sizes.keys() & {"qkv_bias", "tie_word_embeddings"}:
        boolean(sizes[name], f"model.{name}")
    try:
        return ModelConfig(**sizes)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error


def _data(value: object, folder: Path) -> Data:
    data = mapping(value, "data", {"text", "tokenizer", "validation"})
    files = tokenizer = None
    if data["text"] != "pydoc":
        names = data["text"]
        require(isinstance(names, list) and bool(names), "data.text", names, "pydoc or a list of files")
        files = tuple(_file(name, f"data.text[{i}]", folder, "a file") for i, name in enumerate(names))
    if data["tokenizer"] != "bytes":
        tokenizer = _file(data["tokenizer"], "data.tokenizer", folder, "bytes or a tokenizer.json")
    validation = number(data["validation"], "data.validation", lambda x: 0 < x < 1, "a number above 0 and below 1")
    return Data(files, tokenizer, validation)


def _file(value: object, where: str, folder: Path, expected: str) -> Path:
    path = folder / text(value, where, expected)
    require(path.is_file(), where, value, expected)
    return path


def _batch(value: object) -> Batch:
    least = {"sequences": 1, "length": 2, "accumulation": 1}
    sizes = mapping(value, "batch", least)
    batch = Batch(**{key: integer(size, f"batch.{key}", least[key]) for key, size in sizes.items()})
    if batch.sequences % batch.accumulation:
        raise ConfigError(
            f"batch.accumulation is {batch.accumulation}; expected a divisor of batch.sequences, {batch.sequences}"
        )
    return batch


def _optimizer(value: object, steps: int) -> Optimizer:
    keys = [each.name for each in fields(Optimizer)]
    raw = mapping(value, "optimizer", keys)
    lr, clip = (number(raw[key], f"optimizer.{key}", lambda x: x > 0, "a number above 0") for key in ("lr", "clip"))
    least = number(raw["min_lr"], "optimizer.min_lr", lambda x: 0 <= x <= lr, f"a number from 0 to optimizer.lr, {lr}")
    decay = number(raw["weight_decay"], "optimizer.weight_decay", lambda x: x >= 0, "a number of at least 0")
    betas = raw["betas"]
    require(isinstance(betas, list) and len(betas) == 2, "optimizer.betas", betas, "two numbers")
    first, second = (
        number(beta, f"optimizer.betas[{i}]", lambda x: 0 <= x < 1, "a number from 0, below 1")
        for i, beta in enumerate(betas)
    )
    warmup = integer(raw["warmup"], "optimizer.warmup", 0)
    require(warmup < steps, "optimizer.warmup", warmup, f"fewer than steps, {steps}")
    return Optimizer(lr, least, warmup, (first, second), decay, clip)
