"""The exercises of the training chapter: gradients by two values of the loss, and what a step takes and does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lab.check.calculation import Calculation, Mistake

Values = tuple[float, ...]
Tensors = tuple[Tensor, ...]

# the slope ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """A function of weights that shows as its formula."""

    formula: str
    function: Callable[..., float] = field(repr=False)

    def __call__(self, weights: Sequence[float]) -> float:
        return self.function(*weights)

    def __repr__(self) -> str:
        return self.formula


def _moved(weights: Values, index: int, by: float) -> Values:
    return (*weights[:index], weights[index] + by, *weights[index + 1 :])


def _slope(loss: Loss, weights: Values, index: int, step: float) -> float:
    return (loss(_moved(weights, index, step)) - loss(_moved(weights, index, -step))) / (2 * step)


def _one_sided(loss: Loss, weights: Values, index: int, step: float) -> float:
    return (loss(_moved(weights, index, step)) - loss(weights)) / step


def _along_all(loss: Loss, weights: Values, index: int, step: float) -> float:
    up, down = (tuple(weight + by for weight in weights) for by in (step, -step))
    return (loss(up) - loss(down)) / (2 * step)


_CUBE = Loss("w0**3", lambda a: a**3)
_MIXED = Loss("w0**3 - 2*w0*w1 + w1**2 * w2", lambda a, b, c: a**3 - 2 * a * b + b**2 * c)

SLOPE = Calculation(
    "training.slope",
    "A derivative from two values of the loss",
    _slope,
    (
        {"loss": _CUBE, "weights": (2.0,), "index": 0, "step": 0.5},
        {"loss": _MIXED, "weights": (1.0, 3.0, -2.0), "index": 0, "step": 0.25},
        {"loss": _MIXED, "weights": (1.0, 3.0, -2.0), "index": 2, "step": 0.125},
    ),
    (
        Mistake(
            "on both sides",
            "The weight lies in the middle between the two values that it is given.",
            "By which amount is each of the two places away from the weight?",
            _one_sided,
        ),
        Mistake(
            "two steps apart",
            "The difference of the losses is divided by the distance of the two places.",
            "How far is it from one step below to one step above?",
            lambda loss, weights, index, step: 2 * _slope(loss, weights, index, step),
        ),
        Mistake(
            "one weight alone",
            "All the other weights stay as they are.",
            "Which of the weights differ between your two calls?",
            _along_all,
        ),
        Mistake(
            "up less down",
            "A loss that grows with the weight has a slope above 0.",
            "Which of the two losses is subtracted?",
            lambda loss, weights, index, step: -_slope(loss, weights, index, step),
        ),
    ),
)

# which gradient is wrong ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """An operator with its backward pass, which may have a mistake.

    names: of the inputs that have a gradient. forward(*inputs) -> y: a kernel's, so autograd does not see into it.
    backward(dy, *inputs) -> a gradient for each input. scale: of the inputs' numbers.
    """

    name: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    function: Callable[..., Tensor] = field(repr=False)
    gradients: Callable[..., Tensors] = field(repr=False)
    scale: float = 1.0

    def inputs(self) -> Tensors:
        """Random ones, float64, the same at every call."""
        generator = torch.Generator().manual_seed(7919)  # seldom a learner's seed: dy = x would hide wrong gradients
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) * self.scale for shape in self.shapes)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    @torch.no_grad()
    def backward(self, dy: Tensor, *inputs: Tensor) -> Tensors:
        return self.gradients(dy, *inputs)

    def __repr__(self) -> str:
        return self.name


def _rmsnorm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x * x).mean(-1, keepdim=True).rsqrt() * weight


def _rmsnorm_backward(dy: Tensor, x: Tensor, weight: Tensor) -> Tensors:
    r = (x * x).mean(-1, keepdim=True).rsqrt()
    normed, scaled = x * r, dy * weight
    return r * (scaled - normed * (scaled * normed).mean(-1, keepdim=True)), (dy * normed).sum(0)


def _rmsnorm_of_a_constant(dy: Tensor, x: Tensor, weight: Tensor) -> Tensors:
    """As if the norm did not depend on x."""
    r = (x * x).mean(-1, keepdim=True).rsqrt()
    return dy * weight * r, (dy * x * r).sum(0)


def _rmsnorm_without_norm(dy: Tensor, x: Tensor, weight: Tensor) -> Tensors:
    dx, _ = _rmsnorm_backward(dy, x, weight)
    return dx, (dy * x).sum(0)


def _softmax_by_the_mean(dy: Tensor, x: Tensor) -> Tensors:
    """The mean of dy where its mean under the probabilities belongs: no difference if all of dy is alike."""
    return (torch.softmax(x, -1) * (dy - dy.mean(-1, keepdim=True)),)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


def _linear_transposed(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
    return dy @ weight, x.T @ dy, dy.sum(0)


def _linear_mean(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
    return dy @ weight, dy.T @ x, dy.mean(0)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate * torch.sigmoid(gate) * up


def _swiglu_without_the_gate(dy: Tensor, gate: Tensor, up: Tensor) -> Tensors:
    """As if the gate's sigmoid did not depend on it."""
    s = torch.sigmoid(gate)
    return dy * up * s, dy * gate * s


def _swiglu_twice(dy: Tensor, gate: Tensor, up: Tensor) -> Tensors:
    """up's gradient has a factor of two too many."""
    s = torch.sigmoid(gate)
    return dy * up * s * (1 + gate * (1 - s)), 2 * dy * gate * s


_TOKENS = (0, 2, 1, 2, 3)  # one of them twice


def _embedding(table: Tensor) -> Tensor:
    return table[list(_TOKENS)]


def _embedding_overwritten(dy: Tensor, table: Tensor) -> Tensors:
    """A token that comes twice keeps the gradient of one place."""
    gradient = torch.zeros_like(table)
    for row, token in zip(dy, _TOKENS):
        gradient[token] = row
    return (gradient,)


_X = ("x",)
_X_WEIGHT = ("x", "weight")
_LINEAR = ("x", "weight", "bias")
_GATE_UP = ("gate", "up")
_ROWS = ((3, 4), (4,))
_SQUARE = ((3, 4), (4, 4), (4,))

LAYERS = (
    Layer("rmsnorm 1", _X_WEIGHT, _ROWS, _rmsnorm, _rmsnorm_of_a_constant),
    Layer("rmsnorm 2", _X_WEIGHT, _ROWS, _rmsnorm, _rmsnorm_backward),
    Layer("rmsnorm 3", _X_WEIGHT, _ROWS, _rmsnorm, _rmsnorm_without_norm),
    Layer("softmax", _X, ((3, 5),), partial(torch.softmax, dim=-1), _softmax_by_the_mean),
    Layer("linear 1", _LINEAR, _SQUARE, _linear, _linear_transposed),
    Layer("linear 2", _LINEAR, _SQUARE, _linear, _linear_mean),
    Layer("embedding", ("table",), ((4, 3),), _embedding, _embedding_overwritten),
    Layer("swiglu 1", _GATE_UP, ((2, 3), (2, 3)), _swiglu, _swiglu_without_the_gate),
    Layer("swiglu 2", _GATE_UP, ((2, 3), (2, 3)), _swiglu, _swiglu_twice, scale=1e-6),
)
NONE = "none"


def numerical_gradient(layer: Layer, dy: Tensor, inputs: Tensors, which: int, step: float) -> Tensor:
    """Of sum(dy * forward(*inputs)) with respect to inputs[which], as its shape."""
    slopes = torch.empty_like(inputs[which])
    for index in range(slopes.numel()):
        losses = []
        for by in (step, -step):
            moved = [each.clone() for each in inputs]
            moved[which].view(-1)[index] += by
            losses.append((dy * layer.forward(*moved)).sum())
        slopes.view(-1)[index] = (losses[0] - losses[1]) / (2 * step)
    return slopes


def _random_like(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)


def _near(found: Tensor, slopes: Tensor) -> bool:
    return bool((found - slopes).abs().max() <= 1e-5 * slopes.abs().max() + 1e-10)


def _wrong_gradient(
    layer: Layer,
    dy_like: Callable[[Tensor], Tensor] = _random_like,
    near: Callable[[Tensor, Tensor], bool] = _near,
    most: int | None = None,
) -> str:
    """The name of the first gradient that is not `near` the slopes, of the `most` first ones."""
    inputs = layer.inputs()
    dy = dy_like(layer.forward(*inputs))
    gradients = layer.backward(dy, *inputs)
    for which, name in enumerate(layer.names[:most]):
        step = 1e-4 * float(inputs[which].abs().max())
        if not near(gradients[which], numerical_gradient(layer, dy, inputs, which, step)):
            return name
    return NONE


WRONG_GRADIENT = Calculation(
    "training.wrong_gradient",
    "Which gradient is wrong?",
    _wrong_gradient,
    tuple({"layer": layer} for layer in LAYERS),
    (
        Mistake(
            "up to rounding",
            "A right gradient differs from a slope by rounding, and by a term of the step's square.",
            "How large is the difference for rmsnorm 2, and how large is the gradient?",
            lambda layer: layer.names[0],
        ),
        Mistake(
            "every gradient",
            "A layer has a gradient for each of its inputs.",
            "Which gradients of the layer above have you looked at?",
            lambda layer: _wrong_gradient(layer, most=1),
        ),
        Mistake(
            "dy is not all alike",
            "Gradients are right for every dy, not only for that of a sum.",
            "Which dy do you hand to the backward pass? By how much does each of its columns differ from their mean?",
            lambda layer: _wrong_gradient(layer, torch.ones_like),
        ),
        Mistake(
            "every element by itself",
            "Each element of the gradient has its own slope.",
            "Would your test notice if the gradient's elements had changed places?",
            lambda layer: _wrong_gradient(layer, near=lambda found, slopes: _near(found.sum(), slopes.sum())),
        ),
        Mistake(
            "all of the elements",
            "A gradient can be right in all places but one.",
            "How many elements of the gradient have you looked at?",
            lambda layer: _wrong_gradient(
                layer, near=lambda found, slopes: _near(found.view(-1)[:1], slopes.view(-1)[:1])
            ),
        ),
        Mistake(
            "small gradients",
            "What counts is how large the difference is beside the gradient.",
            "How large are the gradients of the layer above?",
            lambda layer: _wrong_gradient(layer, near=lambda found, slopes: bool((found - slopes).abs().max() <= 1e-4)),
        ),
    ),
)

# a step ---------------------------------------------------------------------------------------------------------------


def _tokens_mean(losses: Values, tokens: Sequence[int]) -> float:
    return sum(loss * count for loss, count in zip(losses, tokens)) / sum(tokens)


ACCUMULATED = Calculation(
    "training.accumulated",
    "The loss of a batch that comes in parts",
    _tokens_mean,
    (
        {"losses": (3.0, 5.0), "tokens": (100, 300)},
        {"losses": (2.0, 2.5, 4.0), "tokens": (512, 512, 64)},
    ),
    (
        Mistake(
            "a mean of means",
            "Each token counts the same, whichever part it is in.",
            "How much does one token of the first part count in your result, and how much one of the second?",
            lambda losses, tokens: sum(losses) / len(losses),
        ),
        Mistake(
            "a mean, not a sum",
            "The whole batch's loss is a mean again.",
            "What would the loss be if every token's were 1?",
            lambda losses, tokens: sum(loss * count for loss, count in zip(losses, tokens)),
        ),
    ),
)


def _state_bytes(parameters: int, bits: int) -> int:
    return parameters * (16 if bits == 32 else bits // 8 + 16)


STATE_BYTES = Calculation(
    "training.state_bytes",
    "The memory that weights take in training",
    _state_bytes,
    (
        {"parameters": 1_000_000, "bits": 32},
        {"parameters": 1_000_000, "bits": 16},
        {"parameters": 7_000_000_000, "bits": 16},
    ),
    (
        Mistake(
            "one set in float32",
            "A model in float32 is trained on its own weights.",
            "What would a copy of the same numbers in the same dtype be for?",
            lambda parameters, bits: parameters * (bits // 8 + 16),
        ),
        Mistake(
            "the weights in float32",
            "Weights in 16 bits have a copy in float32, to which the steps are added.",
            "How many numbers are kept for each weight, and which of them have 32 bits?",
            lambda parameters, bits: parameters * (bits // 8 + 12),
        ),
        Mistake(
            "two moments",
            "AdamW keeps two numbers for each weight.",
            "Of what does it keep a running mean?",
            lambda parameters, bits: _state_bytes(parameters, bits) - 4 * parameters,
        ),
        Mistake(
            "bytes, not bits",
            "Bytes are asked for.",
            "How many bits has a byte?",
            lambda parameters, bits: 8 * _state_bytes(parameters, bits),
        ),
    ),
)


def _mfu(parameters: int, tokens: int, seconds: float, peak_tflops: float) -> float:
    return 6 * parameters * tokens / seconds / (peak_tflops * 1e12)


MFU = Calculation(
    "training.mfu",
    "Model FLOPs utilization",
    _mfu,
    (
        {"parameters": 1_000_000_000, "tokens": 8192, "seconds": 0.2, "peak_tflops": 700},
        {"parameters": 8_000_000_000, "tokens": 65536, "seconds": 10.0, "peak_tflops": 300},
    ),
    (
        Mistake(
            "backward too",
            "Each product of the forward pass has two in the backward pass.",
            "The gradient of a product y = x w is asked for by x and by w. How many products is that?",
            lambda parameters, tokens, seconds, peak_tflops: _mfu(parameters, tokens, seconds, peak_tflops) / 3,
        ),
        Mistake(
            "two FLOPs for each",
            "A multiplication and an addition are two operations.",
            "How many operations is one term of a product?",
            lambda parameters, tokens, seconds, peak_tflops: _mfu(parameters, tokens, seconds, peak_tflops) / 2,
        ),
        Mistake(
            "a fraction",
            "It is a fraction.",
            "What is the largest value that there can be?",
            lambda parameters, tokens, seconds, peak_tflops: 100 * _mfu(parameters, tokens, seconds, peak_tflops),
        ),
        Mistake(
            "tera",
            "A TFLOP is 1e12 operations.",
            "In which unit is the numerator?",
            lambda parameters, tokens, seconds, peak_tflops: 1e12 * _mfu(parameters, tokens, seconds, peak_tflops),
        ),
    ),
)

EXERCISES = (SLOPE, WRONG_GRADIENT, ACCUMULATED, STATE_BYTES, MFU)
