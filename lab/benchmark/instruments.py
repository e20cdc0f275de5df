"""What measures: the GPU's instruments, for which a test has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lab.benchmark import timing, traps
from lab.benchmark.ceilings import Ceilings, measure_ceilings
from lab.benchmark.environment import Environment, environment


@dataclass(frozen=True)
class Instruments:
    """What an experiment is measured with: the GPU's, or a test's. sample times a call behind a cold L2 cache,
    between events on the GPU; latency as its caller sees it."""

    device: torch.device
    environment: Environment
    ceilings: Ceilings
    sample: Callable[[timing.Call], float]
    latency: Callable[[timing.Call], float]
    graph_times: Callable[[Mapping[str, tuple[timing.Call, int]]], dict[str, timing.GraphTime]] = timing.graph_times
    launch_overhead: Callable[[timing.Call], float] = timing.launch_overhead
    peak_memory: Callable[[timing.Call], int] = timing.peak_memory_delta
    synchronize: Callable[[], None] = torch.cuda.synchronize
    trap: Callable[[str, int], traps.Trap] = traps.measure
    cap_s: float = 1.0


def gpu_instruments() -> Instruments:
    """The current GPU's, its ceilings measured now. Raises CannotTime where timing means nothing."""
    sample = timing.ColdSampler()
    ceilings = measure_ceilings(sample)
    torch.cuda.empty_cache()
    here = torch.device("cuda", torch.cuda.current_device())
    return Instruments(here, environment(), ceilings, sample, sample.latency)
