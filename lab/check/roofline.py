"""The exercises of the roofline's chapter: what each asks for, and the mistakes that its value tells."""

from __future__ import annotations

import math
from fractions import Fraction

from lab.check.calculation import Calculation, Mistake

_SIZES = (
    {"m": 2, "n": 3, "k": 5},
    {"m": 1, "n": 64, "k": 128},
    {"m": 8192, "n": 4096, "k": 14336},
)
_IN_BITS = tuple(size | {"bits": bits} for size, bits in zip(_SIZES, (16, 32, 16)))

_IN_BYTES = "counted in bytes"
_BYTES_SAYS = "What crosses memory is counted in bytes, not in bits."
_BYTES_HINT = "What does an element of 16 bits take?"
_OUTPUT = "the output is written"
_OUTPUT_SAYS = "Every input is read once, and every output written once."
_OUTPUT_HINT = "What does the kernel leave behind, and where?"

LINEAR_FLOPS = Calculation(
    "roofline.linear_flops",
    "The floating-point operations of a linear layer",
    lambda m, n, k: 2 * m * n * k,
    _SIZES,
    (
        Mistake(
            "a multiplication and an addition",
            "Both count: a product's multiply-add is two operations.",
            "Each element of y is a sum of products. How many multiplications, and how many additions?",
            lambda m, n, k: m * n * k,
        ),
        Mistake(
            "every row",
            "Each of the m rows of x meets each of the n rows of the weight.",
            "How many elements has y?",
            lambda m, n, k: 2 * n * k,
        ),
    ),
)

LINEAR_BYTES = Calculation(
    "roofline.linear_bytes",
    "The fewest bytes that a linear layer can move",
    lambda m, n, k, bits: (m * k + n * k + m * n) * bits / 8,
    _IN_BITS,
    (
        Mistake(_IN_BYTES, _BYTES_SAYS, _BYTES_HINT, lambda m, n, k, bits: (m * k + n * k + m * n) * bits),
        Mistake(_OUTPUT, _OUTPUT_SAYS, _OUTPUT_HINT, lambda m, n, k, bits: (m * k + n * k) * bits / 8),
        Mistake(
            "the weight is read",
            "The weight is an input as well, and lies in device memory.",
            "For which m are the bytes of the weight most of them?",
            lambda m, n, k, bits: (m * k + m * n) * bits / 8,
        ),
        Mistake(
            "each element once",
            "The fewest bytes: what has been read stays at hand for all its uses.",
            "An element of x is needed n times. How often must it come from device memory?",
            lambda m, n, k, bits: (2 * m * n * k + m * n) * bits / 8,
        ),
    ),
)

SWIGLU_INTENSITY = Calculation(
    "roofline.swiglu_intensity",
    "The intensity of SwiGLU",
    lambda elements, bits: 4 * elements / (3 * elements * bits / 8),
    ({"elements": 1, "bits": 16}, {"elements": 4096, "bits": 32}, {"elements": 16384 * 14336, "bits": 16}),
    (
        Mistake(_IN_BYTES, _BYTES_SAYS, _BYTES_HINT, lambda elements, bits: 4 / (3 * bits)),
        Mistake(_OUTPUT, _OUTPUT_SAYS, _OUTPUT_HINT, lambda elements, bits: 4 / (2 * bits / 8)),
        Mistake(
            "FLOPs over bytes",
            "The intensity is FLOPs for a byte, not bytes for a FLOP.",
            "Which of the two is larger for an operator that is bound by memory?",
            lambda elements, bits: 3 * bits / 8 / 4,
        ),
    ),
)

_GPU = {"tflops": 800, "gbps": 3200}  # the ridge is at 250 FLOPs a byte
_PASSES = tuple(
    {"flops": flops, "nbytes": nbytes, **_GPU}
    for flops, nbytes in ((10**6, 10**7), (10**9, 2 * 10**9), (8 * 10**9, 10**9), (10**12, 10**9), (10**12, 5 * 10**9))
)

BOUND = Calculation(
    "roofline.bound",
    "Memory-bound, or compute-bound?",
    lambda flops, nbytes, tflops, gbps: "memory" if flops / nbytes < tflops * 1e3 / gbps else "compute",
    _PASSES,
    (
        Mistake(
            "the right way round",
            "Below the ridge memory is the bound.",
            "An operator that does nothing but copy: what is its intensity?",
            lambda flops, nbytes, tflops, gbps: "compute" if flops / nbytes < tflops * 1e3 / gbps else "memory",
        ),
        Mistake(
            "held against the ridge",
            "More FLOPs than bytes are not enough: a GPU does many in the time that a byte takes.",
            "Which of the four arguments have you used?",
            lambda flops, nbytes, tflops, gbps: "memory" if flops < nbytes else "compute",
        ),
        Mistake(
            "tera and giga",
            "Rate and bandwidth are divided in the same unit.",
            "How many GFLOP are a TFLOP?",
            lambda flops, nbytes, tflops, gbps: "memory" if flops / nbytes < tflops / gbps else "compute",
        ),
    ),
)


def _compute_us(flops: float, tflops: float) -> float:
    return flops / (tflops * 1e6)


def _memory_us(nbytes: float, gbps: float) -> float:
    return nbytes / (gbps * 1e3)


FLOOR = Calculation(
    "roofline.floor_us",
    "The floor, in microseconds",
    lambda flops, nbytes, tflops, gbps: max(_compute_us(flops, tflops), _memory_us(nbytes, gbps)),
    _PASSES,
    (
        Mistake(
            "the longer of the two",
            "Neither the operations nor the bytes can be left out.",
            "Of two things that happen at the same time, which says when both are done?",
            lambda flops, nbytes, tflops, gbps: min(_compute_us(flops, tflops), _memory_us(nbytes, gbps)),
        ),
        Mistake(
            "at the same time",
            "Memory and arithmetic work at the same time: this is a bound, and the sum of both is none.",
            "Must a GPU wait with computing until the last byte has come?",
            lambda flops, nbytes, tflops, gbps: _compute_us(flops, tflops) + _memory_us(nbytes, gbps),
        ),
        Mistake(
            "operations too",
            "An operator right of the ridge takes the time of its operations.",
            "Which of the four arguments have you used?",
            lambda flops, nbytes, tflops, gbps: _memory_us(nbytes, gbps),
        ),
        Mistake(
            "a GB is a power of ten",
            "A bandwidth of one GB/s is 1e9 bytes a second, not 2^30.",
            "Which is larger, a GB or a GiB, and by how much?",
            lambda flops, nbytes, tflops, gbps: max(_compute_us(flops, tflops), nbytes / (gbps * 2**30) * 1e6),
        ),
        Mistake(
            "microseconds",
            "The result is in microseconds.",
            "1 GB/s is how many bytes in a microsecond?",
            lambda flops, nbytes, tflops, gbps: max(_compute_us(flops, tflops), _memory_us(nbytes, gbps)) / 1e6,
        ),
    ),
)


def _turn(n: int, k: int, bits: int, tflops: int, gbps: int) -> Fraction:
    """The batch at which FLOPs a byte are the ridge's; not positive if they never are."""
    ridge, size = Fraction(tflops * 1000, gbps), Fraction(bits, 8)
    return ridge * size * n * k / (2 * n * k - ridge * size * (n + k))


TURNING_BATCH = Calculation(
    "roofline.turning_batch",
    "The batch at which a linear layer turns compute-bound",
    lambda n, k, bits, tflops, gbps: math.ceil(t) if (t := _turn(n, k, bits, tflops, gbps)) > 0 else None,
    (
        {"n": 4096, "k": 4096, "bits": 16, **_GPU},
        {"n": 14336, "k": 4096, "bits": 16, "tflops": 790, "gbps": 3030},
        {"n": 4096, "k": 14336, "bits": 8, "tflops": 790, "gbps": 3030},
        {"n": 256, "k": 256, "bits": 16, **_GPU},
    ),
    (
        Mistake(
            "some layers never turn",
            "Where both n and k are small, no batch is enough, and the answer is None.",
            "The larger the batch, the less the weight counts. Which intensity is left in the end?",
            lambda n, k, bits, tflops, gbps: math.ceil(_turn(n, k, bits, tflops, gbps)),
        ),
        Mistake(
            "x and y cross memory too",
            "The weight is most of the bytes, not all of them.",
            "Is your m still compute-bound by the functions above?",
            lambda n, k, bits, tflops, gbps: math.ceil(Fraction(tflops * 1000 * bits, gbps * 16)),
        ),
        Mistake(
            "the first that is",
            "The smallest batch that is compute-bound: one less is memory-bound.",
            "Half a token does not help: which whole number comes first that is enough?",
            lambda n, k, bits, tflops, gbps: math.floor(t) if (t := _turn(n, k, bits, tflops, gbps)) > 0 else None,
        ),
    ),
)

EXERCISES = (LINEAR_FLOPS, LINEAR_BYTES, SWIGLU_INTENSITY, BOUND, FLOOR, TURNING_BATCH)
