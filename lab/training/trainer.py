"""The training loop. What a step does depends on the config, the step and the weights alone, so that a run which is
killed and resumed is the same run (on the CPU, bit for bit)."""

from __future__ import annotations

import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import lab
from lab import datasets
from lab.backends.hardware import default_device, gpu_of
from lab.config import ConfigError
from lab.core import LLM, ModelConfig
from lab.core.cost import training_cost
from lab.datasets import Dataset
from lab.ops.cross_entropy import cross_entropy
from lab.training import checkpoint, metrics
from lab.training.config import Config
from lab.training.optimizer import Optimizer
from lab.training.schedule import learning_rate

PACKAGES = ("torch", "triton", "numpy", "tokenizers")


class Trainer:
    """A model and its optimizer, on the GPU if there is one."""

    def __init__(self, config: Config, model: LLM) -> None:
        """model: in float32; it becomes one of the config's dtype. Raises BackendUnavailable for a backend that cannot
        run here."""
        self.config, self.device = config, default_device()
        self.model = model.to(self.device).use(config.backend)
        self.optimizer = Optimizer(self.model, config.dtype, config.optimizer)
        self.loss = torch.compile(self.model.loss) if config.compile else self.model.loss

    def step(self, windows: Tensor, lr: float) -> tuple[float, float]:
        """Train on windows (sequences, length + 1), token ids, each but the first predicted from those before. Returns
        the mean loss, in nats, and the norm of its gradient."""
        parts = windows.to(self.device).chunk(self.config.batch.accumulation)
        total = torch.zeros((), device=self.device)
        for part in parts:
            loss = self.loss(part[:, :-1], part[:, 1:]) / len(parts)
            loss.backward()
            self.optimizer.take_gradients()
            total += loss.detach()
        norm = self.optimizer.step(lr)
        return total.item(), norm.item()

    @torch.no_grad()
    def evaluate(self, windows: Tensor) -> float:
        """The mean loss, in nats a token, on windows (count, length + 1), token ids; taken in float32 from the
        model's logits."""
        total = 0.0
        for part in windows.split(self.config.batch.sequences // self.config.batch.accumulation):
            part = part.to(self.device)
            logits = self.model(part[:, :-1]).float()
            total += cross_entropy(logits, part[:, 1:], reduction="sum", backend=self.model.backend).item()
        return total / windows[:, 1:].numel()


def train(config: Config, run: Path, resume: bool = False, peak_flops: float | None = None) -> Path:
    """Train as `config` says, and write metrics and checkpoints into the folder `run`. Returns the last checkpoint's.

    resume: go on from the newest checkpoint in `run`, or from the beginning if there is none yet. peak_flops: the
    FLOP/s to show MFU for: a step's FLOPs (`lab.core.cost.training_cost`) in its time, as a fraction of it.

    Raises ValueError if `run` has checkpoints that are not to be resumed, or that another config made; ConfigError for
    a model and data that do not fit; DataError and CheckpointError for bad files; BackendUnavailable for a backend that
    cannot run here; FloatingPointError for a loss that is no longer finite, before it gets into a checkpoint.
    """
    on_gpu = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    done, last = max(checkpoint.steps(run).items(), default=(0, None))
    if last and not resume:
        raise ValueError(f"{last} is there already; expected --resume, or a folder without checkpoints")
    if resume and not run.is_dir():
        raise ValueError(f"{run} is not there; expected the folder of a run to resume")
    dataset = datasets.load(config.data.files, config.data.tokenizer, config.data.validation)
    state = {"config": config.raw, "data": dataset.digest}
    if last:
        _require_same(state | {"step": done}, checkpoint.read_state(last), last)
    model = _model(config, last)
    _require_fit(config, model.config, dataset)
    model.tokenizer = dataset.tokenizer
    trainer = Trainer(config, model)
    if last:
        checkpoint.read_optimizer(last, trainer.optimizer, trainer.device)
        entries = [entry for entry in metrics.read(run) if entry.get("step", 0) <= done]
    else:
        entries = [{"run": state | _about(config, model.config, dataset, trainer.device, peak_flops)}]
    checkpoint.remove_remains(run)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    held_out = _held_out(config, dataset)
    batch, tokens = config.batch, config.batch.sequences * config.batch.length
    flops = training_cost(model.config, batch.sequences, batch.length, config.dtype).flops
    with metrics.Metrics(run, entries) as log, _progress(done, config.steps) as bar:
        for step in range(done + 1, config.steps + 1):
            windows = datasets.random_windows(dataset.train, batch.length + 1, batch.sequences, config.seed, step)
            lr = learning_rate(step, config.steps, config.optimizer)
            started = time.perf_counter()
            loss, norm = trainer.step(windows, lr)
            seconds = time.perf_counter() - started
            if not math.isfinite(loss + norm):
                raise FloatingPointError(f"step {step}: loss {loss}, gradient norm {norm}; expected finite numbers")
            memory = torch.cuda.max_memory_allocated() - before if on_gpu else None
            log.add(
                step=step, loss=loss, lr=lr, grad_norm=norm, tokens=step * tokens, seconds=seconds, memory=memory
            )  # fmt: skip
            mfu = peak_flops and flops / seconds / peak_flops
            bar.set_postfix_str(_shown(loss, tokens / seconds, mfu, memory), refresh=False)
            bar.update()
            if step % config.evaluate_every == 0 or step == config.steps:
                log.add(step=step, validation_loss=trainer.evaluate(held_out))
            if step % config.checkpoint_every == 0 or step == config.steps:
                last = checkpoint.save(run, step, model, trainer.optimizer, state, config.keep)
    assert last is not None
    return last


def _model(config: Config, last: Path | None) -> LLM:
    """The last checkpoint's, that to begin with, or one with random weights; on the CPU, in float32."""
    begin = last or config.model
    if isinstance(begin, Path):
        return LLM.from_pretrained(begin, dtype=torch.float32, device="cpu")
    torch.manual_seed(config.seed)
    return LLM(begin)


def _held_out(config: Config, dataset: Dataset) -> Tensor:
    return datasets.spaced_windows(dataset.validation, config.batch.length + 1, config.evaluate_sequences)


def _about(
    config: Config, model: ModelConfig, dataset: Dataset, device: torch.device, peak_flops: float | None
) -> dict:
    """What the run is, beside its config and data's digest. bigram_loss: that of a bigram model of the bytes, in nats
    on what the model is validated on; None where tokens are not bytes."""
    in_bytes = config.data.tokenizer is None
    return {
        "train_tokens": len(dataset.train),
        "validation_tokens": len(dataset.validation),
        "parameters": model.parameters,
        "flops": training_cost(model, config.batch.sequences, config.batch.length, config.dtype).flops,
        "peak_flops": peak_flops,
        "bigram_loss": datasets.bigram_loss(dataset.train, _held_out(config, dataset), 256) if in_bytes else None,
        "device": gpu_of(device).name if device.type == "cuda" else platform.machine(),
        "versions": {"python": platform.python_version(), "lab": lab.__version__}
        | {package: version(package) for package in PACKAGES},
    }


def _require_fit(config: Config, model: ModelConfig, dataset: Dataset) -> None:
    length = config.batch.length
    if model.vocab_size < dataset.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {model.vocab_size}; expected at least the tokenizer's, {dataset.vocab_size}"
        )
    if length > model.max_position_embeddings:
        raise ConfigError(
            f"batch.length is {length}; expected at most the model's max_position_embeddings, "
            f"{model.max_position_embeddings}"
        )
    shorter = min(len(dataset.train), len(dataset.validation))
    if length + 1 > shorter:
        raise ConfigError(
            f"batch.length is {length}; expected less than the tokens of the text's shorter split, {shorter}"
        )


def _require_same(now: object, then: object, folder: Path, where: str = "") -> None:
    """A run goes on as it began."""
    if isinstance(now, dict) and isinstance(then, dict):
        for key in now | then:
            _require_same(now.get(key), then.get(key), folder, f"{where}.{key}" if where else key)
    elif now != then:
        raise ConfigError(f"{where} is {now!r}; expected {then!r}, with which {folder} was made")


def _progress(done: int, steps: int) -> tqdm:
    return tqdm(
        initial=done,
        total=steps,
        file=sys.stderr,
        ncols=100,
        bar_format="{n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}",
    )


def _shown(loss: float, tokens_per_second: float, mfu: float | None, memory: int | None) -> str:
    """What the progress bar says of a step. Without a GPU there is no MFU and no memory to tell."""
    parts = [f"loss {loss:.3f}", f"{tokens_per_second:.3g} tokens/s"]
    if mfu is not None:
        parts.append(f"MFU {mfu:.1%}")
    if memory is not None:
        parts.append(f"{memory / 1e9:.1f} GB")
    return ", ".join(parts)
