"""What is measured of a language model: the workloads, and the rows that they become in a record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from lab.backends import registry
from lab.backends.hardware import GPU
from lab.benchmark import fingerprint as fingerprints
from lab.benchmark.candidates import Workload
from lab.benchmark.peers import MODEL_PEERS
from lab.benchmark.timing import Timing
from lab.core.config import MODELS, ModelConfig
from lab.core.cost import (
    OperatorCall,
    block_calls,
    forward_cost,
    layer_calls,
    operator_calls,
    training_calls,
    training_cost,
)
from lab.ops.operator import Cost

LEVELS = ("layer", "block", "model", "training")
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class ModelWorkload:
    """A forward pass of a model, of one of its blocks (not the first), or of one layer of such a block; or a step of
    training a model, on `tokens` tokens of each of `batch` sequences.

    model: a name of `lab.core.MODELS`. level: of `LEVELS`. module: which layer (`lab.core.cost.LAYERS`), at that level.
    phase: of a forward pass "prefill", of `tokens` new tokens of each of `batch` sequences, or "decode", of one new
    token of each after `tokens` in the cache. dtype: a name, such as "bfloat16".
    """

    model: str
    level: str
    module: str | None
    phase: str | None
    batch: int
    tokens: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def config(self) -> ModelConfig:
        return MODELS[self.model]

    @property
    def part(self) -> str:
        """What is run: "training", "model", "block", or the layer's name."""
        return self.module or self.level

    @property
    def new(self) -> int:
        """New tokens of each sequence."""
        return 1 if self.phase == "decode" else self.tokens

    @property
    def context(self) -> int:
        """Tokens of each sequence that are in the cache already."""
        return self.tokens if self.phase == "decode" else 0

    @property
    def direction(self) -> str:
        """Of every operator's passes: "forward", or "both" in training."""
        return "both" if self.level == "training" else "forward"

    @property
    def cost(self) -> Cost:
        """Work of the pass, or of the step: see `lab.core.cost.forward_cost` and `training_cost`."""
        if self.level == "training":
            return training_cost(self.config, self.batch, self.tokens, self.torch_dtype)
        return forward_cost(self.config, self.part, self.batch, self.new, self.torch_dtype, self.context)

    @property
    def calls(self) -> list[OperatorCall]:
        """The operators that the pass calls."""
        sizes = self.batch, self.new, self.context
        if self.level == "training":
            return training_calls(self.config, self.batch, self.tokens)
        if self.level == "model":
            return operator_calls(self.config, *sizes, last_only=True)
        if self.level == "block":
            return list(block_calls(self.config, *sizes))
        return list(layer_calls(self.config, self.part, *sizes))

    def fingerprint(self, choice: str, implementations: Mapping[str, str], gpu: GPU) -> str:
        """sha256, in hexadecimal, of what the pass gives to `gpu` to do when its operators run on `implementations`
        ({operator: "backend:rung"}, what `choice` came to): every call with the fingerprint of its rung. Where the
        choice names no rung, and so means the best that runs, also the names of those above the one that ran.

        Raises ValueError for a rung that does not exist.
        """
        chosen = registry.parse_choice(choice)
        described = []
        for call in self.calls:
            backend, _, name = implementations[call.operator].partition(":")
            rungs = registry.ladder(call.operator, backend)
            index = next((index for index, rung in enumerate(rungs) if rung.rung == name), None)
            if index is None:
                raise ValueError(f"{call.operator} has no rung {backend}:{name}")
            above = [] if ":" in chosen.get(call.operator, chosen[""]) else [rung.rung for rung in rungs[index + 1 :]]
            workload = Workload(call.operator, call.shape, self.dtype, self.direction)
            hashed = fingerprints.fingerprint(rungs[index], workload, gpu)
            described.append([call.module, call.operator, call.shape, call.count, call.absent, hashed, above])
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.model, self.part, self.phase)))
        return f"{what} {self.batch}x{self.tokens} {self.dtype}"


@dataclass(frozen=True)
class ModelRow:
    """One candidate on one workload: a choice of backends, as PyTorch runs it or compiled by torch.compile.

    backend: the choice string, or a peer's name (`peers.MODEL_PEERS`), which means its operators and, where it has
    none, PyTorch's. implementations: {operator: "backend:rung"}, what it came to; of a peer "name:version".
    fingerprint: of those (`ModelWorkload.fingerprint`), None of a peer's. error: why there is no timing, else None.
    timing: of the call as its caller sees it (`METHOD` in `lab.benchmark.model_runs`). graph_us: microseconds a call
    inside a CUDA graph, that is without launches, and with a warm cache; `notes` says why where it is not there.
    weights: bytes of the weights, in training with the optimizer's own and its moments. peak_memory: bytes beyond
    these, cache and inputs. compile_s: seconds that the first call took.
    flops, bytes: of `ModelWorkload.cost`; floor_us: the least time that they take at the record's ceilings.
    tokens_per_s, tflops: achieved, at the median; the tokens are the new ones. fraction: floor over median.
    """

    workload: ModelWorkload
    backend: str
    compiled: bool
    flops: int
    bytes: int
    floor_us: float
    weights: int | None = None
    implementations: dict[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    error: str | None = None
    timing: Timing | None = None
    graph_us: float | None = None
    peak_memory: int | None = None
    compile_s: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    fraction: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def of_peer(self) -> bool:
        return self.backend in MODEL_PEERS

    @property
    def label(self) -> str:
        """How tables and figures name the candidate: "torch eager" or "torch,rmsnorm=triton compiled"."""
        return f"{self.backend} {'compiled' if self.compiled else 'eager'}"

    @property
    def task(self) -> str:
        """The workload in words."""
        return str(self.workload)

    def __str__(self) -> str:
        return f"{self.task} {self.label}"

    def stale(self, gpu: GPU) -> bool:
        """Whether the pass is other work now, or gives `gpu` something else to do, than when it was timed."""
        try:
            cost = self.workload.cost
            of_ours = None if self.of_peer else self.workload.fingerprint(self.backend, self.implementations, gpu)
        except (KeyError, ValueError):  # a model, an operator or a rung that is no more
            return True
        return (cost.flops, cost.bytes, of_ours) != (self.flops, self.bytes, self.fingerprint)
