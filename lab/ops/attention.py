"""Scaled dot-product attention with grouped heads (Vaswani et al. 2017; Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245).

    s = scale q k^T,   p = softmax(s) over the keys,   y = p v

for each head; heads / kv_heads neighbouring heads of q share one of k and v. Causal: the last query is at the last
key's position, and a query sees the keys up to its own: key j if j <= i + (keys - queries).

Backward, with D = sum over head_dim of dy y:

    dv = p^T dy,   ds = p (dy v^T - D),   dq = scale ds k,   dk = scale ds^T q      (dk, dv summed over a group's heads)

What an implementation's passes take and return (q, y (batch, heads, queries, head_dim), k, v (batch, kv_heads, keys,
head_dim), unit stride in the last dimension; lse (batch, heads, queries), the logarithm of the sum of e^s, in float32,
of float64 in float64):

    forward(q, k, v, causal, scale) -> (y, lse)
    backward(dy, q, k, v, y, lse, causal, scale) -> (dq, dk, dv)
"""

import math

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, is_finite, require_floating, seeded


def attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, scale: float | None = None, *, backend: str | None = None
) -> Tensor:
    """softmax(scale q k^T) v for each head: returns (batch, heads, queries, head_dim) in q's dtype.

    q: (batch, heads, queries, head_dim); k, v: (batch, kv_heads, keys, head_dim), kv_heads dividing heads; float16,
    bfloat16, float32 or float64, any strides. causal: whether a query sees only keys up to its own position, the last
    query's being the last key's. scale: None means 1 / sqrt(head_dim). backend: a choice string
    (`lab.backends.registry`); None means "auto". Differentiable (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape or device or more causal queries than keys,
    BackendUnavailable for a backend that cannot run on these inputs.
    """
    return get_op("attention", backend or "auto")(q, k, v, causal, scale)


def visible(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys), true where a causal query sees a key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class Attention(Operator):
    name = "attention"
    tensors = ("q", "k", "v")
    outputs = ("y",)
    residuals = ("lse",)
    dims = ("batch", "heads", "kv_heads", "queries", "keys", "head_dim")
    shapes = {
        "llama3-8b": (4, 32, 8, 4096, 4096, 128),
        "llama3-8b-16k": (1, 32, 8, 16384, 16384, 128),
        "llama3-8b-decode": (64, 32, 8, 1, 4096, 128),
    }
    tiny_shapes = ((1, 2, 1, 2, 3, 2), (1, 1, 1, 1, 1, 1))
    trial_shapes = ((1, 1, 1, 1, 1, 2), (2, 4, 2, 3, 5, 8), (1, 3, 3, 17, 17, 16), (1, 4, 1, 33, 129, 64))

    def check(self, q, k, v, causal, scale):
        require_floating(self.name, q=q, k=k, v=v)
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            if tensor.dim() != 4:
                raise ValueError(
                    f"{self.name}: {name} has shape {tuple(tensor.shape)}; expected (batch, heads, positions, head_dim)"
                )
        (batch, heads, queries, head_dim), (_, kv_heads, keys, _) = q.shape, k.shape
        if (k.shape[0], k.shape[3]) != (batch, head_dim):
            raise ValueError(
                f"{self.name}: k has shape {tuple(k.shape)}; expected ({batch}, kv_heads, keys, {head_dim}), as q"
            )
        if head_dim == 0:
            raise ValueError(f"{self.name}: q has shape {tuple(q.shape)}; expected a head_dim of at least 1")
        if v.shape != k.shape:
            raise ValueError(f"{self.name}: v has shape {tuple(v.shape)}; expected k's shape {tuple(k.shape)}")
        if kv_heads == 0 or heads % kv_heads:
            raise ValueError(f"{self.name}: k has {kv_heads} heads; expected a divisor of q's {heads}")
        if not isinstance(causal, bool):
            raise TypeError(f"{self.name}: causal is a {type(causal).__name__}; expected a bool")
        if causal and queries > keys:
            raise ValueError(f"{self.name}: q has {queries} causal queries; expected at most k's {keys} keys")
        if scale is not None and not is_finite(scale):
            raise ValueError(f"{self.name}: scale is {scale!r}; expected a finite number or None")

    def _scores(self, q, k, causal, scale):
        """(batch, heads, queries, keys), -inf where a query does not see; and k's heads, one for each of q's."""
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            scores = scores.masked_fill(~visible(q.shape[2], k.shape[2], q.device), -math.inf)
        return scores, k

    def reference(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True, scale: float | None = None) -> Tensor:
        """softmax(scale q k^T) v for each head; see `lab.ops.attention`."""
        scores, _ = self._scores(q, k, causal, scale)
        return torch.softmax(scores, -1) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)

    def canonical(self, q, k, v):
        return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))

    def restore(self, outputs, q, k, v):
        return outputs

    def like_forward(self, q, k, v, causal, scale):
        return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=accumulation_dtype(q.dtype))

    def saved(self, tensors, results):
        return *tensors, *results

    def like_backward(self, dy, q, k, v, y, lse, causal, scale):
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        (batch, heads, kv_heads, queries, keys, head_dim), generator = shape, seeded(device, seed)
        return tuple(
            torch.randn(batch, count, length, head_dim, generator=generator, device=device, dtype=dtype)
            for count, length in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
        )

    def _pairs(self, shape):
        """Pairs of a causal query and a key that it sees, over all heads."""
        batch, heads, _, queries, keys, _ = shape
        return batch * heads * (queries * (keys - queries) + queries * (queries + 1) // 2)

    def forward_cost(self, shape, dtype):
        (batch, heads, kv_heads, queries, keys, head_dim), size = shape, dtype.itemsize
        pairs, q, k = self._pairs(shape), batch * heads * queries * head_dim, batch * kv_heads * keys * head_dim
        return Cost(
            {"q k^T, where causal": 2 * pairs * head_dim, "softmax": 5 * pairs, "p v": 2 * pairs * head_dim},
            {"read q": q * size, "read k": k * size, "read v": k * size, "write y": q * size},
        )

    def backward_cost(self, shape, dtype):
        (batch, heads, kv_heads, queries, keys, head_dim), size = shape, dtype.itemsize
        pairs, q, k = self._pairs(shape), batch * heads * queries * head_dim, batch * kv_heads * keys * head_dim
        return Cost(
            {
                "q k^T again, dy v^T, dv, dq, dk, where causal": 10 * pairs * head_dim,
                "p and ds": 6 * pairs,
                "D": 2 * q,
            },
            {
                "read q, y, dy": 3 * q * size,
                "read k, v": 2 * k * size,
                "write dq": q * size,
                "write dk, dv": 2 * k * size,
            },
        )

    def term_sums(self, args, grads, dtype):
        # What the rounding of the scores does to p is left to PyTorch's own error, which has it too.
        (q, k, v, causal, scale), (dy,) = args, grads
        scores, k_of = self._scores(q, k, causal, scale)
        factor = abs(q.shape[-1] ** -0.5 if scale is None else scale)
        p = torch.softmax(scores, -1)
        group = q.shape[1] // k.shape[1]
        v_of = v.abs().repeat_interleave(group, dim=1)
        dp = dy.abs() @ v_of.mT
        ds = p * (dp + (p * dp).sum(-1, keepdim=True)) * factor

        def over_groups(x):
            return x.unflatten(1, (k.shape[1], group)).sum(2)

        gradients = ds @ k_of.abs(), over_groups(ds.mT @ q.abs()), over_groups(p.mT @ dy.abs())
        return (p @ v_of,), gradients


OPERATOR = Attention()
