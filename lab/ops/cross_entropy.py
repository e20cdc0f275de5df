"""Cross entropy of a language model: the negative logarithm of the probability that softmax gives to the target.

    lse_i = log sum_j e^(logits_ij),   loss_i = lse_i - logits_i[target_i]

and their mean or sum over the rows whose target is not ignore_index; an ignored row's loss is 0. Backward, for the
gradient g_i of row i's loss (dloss over the number of rows that count, for the mean):

    dlogits_ij = g_i (e^(logits_ij - lse_i) - [j = target_i]),   0 in an ignored row

What an implementation's passes take and return (logits (rows, classes), unit stride in the last dimension; target
(rows,) int64; lse (rows,) in float32, of float64 in float64; loss () or (rows,)):

    forward(logits, target, ignore_index, reduction) -> (loss, lse)
    backward(dloss, logits, target, lse, ignore_index, reduction) -> (dlogits,)
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, require_floating, rows_of, seeded

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    """-log softmax(logits)[target], reduced: returns a scalar for "mean" and "sum", target's shape for "none", in the
    dtype of logits.

    logits: (..., classes), float16, bfloat16, float32 or float64, any strides. target: (...), int64, from 0 to
    classes - 1, or ignore_index. reduction: "mean" (over the targets that count; NaN if none does), "sum" or "none".
    backend: a choice string (`lab.backends.registry`); None means "auto". Differentiable in logits (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or reduction, BackendUnavailable for a
    backend that cannot run on these inputs.
    """
    return get_op("cross_entropy", backend or "auto")(logits, target, ignore_index, reduction)


class CrossEntropy(Operator):
    name = "cross_entropy"
    tensors = ("logits", "target")
    constants = ("target",)
    outputs = ("loss",)
    residuals = ("lse",)
    dims = ("tokens", "classes")
    shapes = {"llama2": (8192, 32000), "llama3-8b": (8192, 128256)}
    tiny_shapes = ((3, 5), (1, 1))
    trial_shapes = ((1, 1), (3, 7), (5, 129), (33, 1000), (2, 4097))

    def check(self, logits, target, ignore_index, reduction):
        require_floating(self.name, logits=logits)
        if not isinstance(target, Tensor):
            raise TypeError(f"{self.name}: target is a {type(target).__name__}; expected a torch.Tensor")
        if target.dtype != torch.int64:
            raise TypeError(f"{self.name}: target has dtype {target.dtype}; expected torch.int64")
        if logits.dim() > 0 and logits.shape[-1] == 0:
            raise ValueError(f"{self.name}: logits has shape {tuple(logits.shape)}; expected at least one class")
        if logits.dim() == 0 or target.shape != logits.shape[:-1]:
            raise ValueError(
                f"{self.name}: target has shape {tuple(target.shape)}; expected logits' shape {tuple(logits.shape)} "
                "without its last dimension"
            )
        if target.device != logits.device:
            raise ValueError(f"{self.name}: target is on {target.device}; expected logits' device {logits.device}")
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise TypeError(f"{self.name}: ignore_index is a {type(ignore_index).__name__}; expected an int")
        if not -(2**63) <= ignore_index < 2**63:  # the target's dtype
            raise ValueError(f"{self.name}: ignore_index is {ignore_index}; expected one of 64 bits")
        if reduction not in REDUCTIONS:
            raise ValueError(f"{self.name}: reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")

    def reference(self, logits: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
        """-log softmax(logits)[target], reduced; see `lab.ops.cross_entropy`."""
        counts = target != ignore_index
        picked = logits.gather(-1, target.where(counts, 0)[..., None])[..., 0]
        loss = (torch.logsumexp(logits, -1) - picked).where(counts, 0)
        if reduction == "none":
            return loss
        return loss.sum() / counts.sum() if reduction == "mean" else loss.sum()

    def canonical(self, logits, target):
        return rows_of(logits), target.reshape(-1)

    def restore(self, outputs, logits, target):
        return (outputs[0] if outputs[0].dim() == 0 else outputs[0].view_as(target),)

    def like_forward(self, logits, target, ignore_index, reduction):
        loss = logits.new_empty(target.shape if reduction == "none" else ())
        return loss, logits.new_empty(logits.shape[0], dtype=accumulation_dtype(logits.dtype))

    def saved(self, tensors, results):
        return *tensors, results[1]

    def like_backward(self, dloss, logits, target, lse, ignore_index, reduction):
        return (torch.empty_like(logits, memory_format=torch.contiguous_format),)

    def gradients(self, dlogits):
        return dlogits, None

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        tokens, classes = shape
        generator = seeded(device, seed)
        logits = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        target = torch.randint(max(classes, 1), (tokens,), generator=generator, device=device)
        target[1::7] = -100  # the first row always counts
        return logits, target

    def forward_cost(self, shape, dtype):
        (tokens, classes), size = shape, dtype.itemsize
        return Cost(
            {
                "maximum, x - m, exponential, sum, per element": 4 * tokens * classes,
                "logarithm and the rest": 4 * tokens,
            },
            {"read logits": tokens * classes * size, "read target": tokens * 8, "write lse": tokens * 4},
        )

    def backward_cost(self, shape, dtype):
        (tokens, classes), size = shape, dtype.itemsize
        return Cost(
            {"x - lse, exponential, times g, per element": 3 * tokens * classes, "- g at the target": tokens},
            {
                "read logits": tokens * classes * size,
                "read target": tokens * 8,
                "read lse": tokens * 4,
                "write dlogits": tokens * classes * size,
            },
        )

    def term_sums(self, args, grads, dtype):
        # p = exp(x - lse): the rounding of x - lse is a relative error of p.
        (logits, target, ignore_index, reduction), (dloss,) = args, grads
        counts = target != ignore_index
        index = target.where(counts, 0)[..., None]
        lse = torch.logsumexp(logits, -1)
        loss = (lse.abs() + logits.amax(-1).abs() + logits.gather(-1, index)[..., 0].abs() + 1).where(counts, 0)
        number = counts.sum() if reduction == "mean" else 1
        unit = torch.finfo(accumulation_dtype(dtype)).eps / torch.finfo(dtype).eps
        x = (logits - lse[..., None]).abs()
        p = torch.softmax(logits, -1) * (1 + unit * (x + lse.abs()[..., None]))
        one_hot = torch.zeros_like(logits).scatter(-1, index, 1.0)
        g = (dloss.abs() / number * counts)[..., None]
        return (loss if reduction == "none" else loss.sum() / number,), (g * (p + one_hot), None)


OPERATOR = CrossEntropy()
