"""Attention of one new token per sequence over its cached keys and values, with grouped heads: what a language model
spends its time on while it generates (Dao et al. 2023, https://pytorch.org/blog/flash-decoding).

    s = scale k q,   p = softmax(s) over the first `lengths` keys,   y = p v

for each sequence and head; heads / kv_heads neighbouring heads of q share one of k and v. Keys past a sequence's length
are not looked at: a cache holds sequences of different lengths.

Backward, with D = sum over head_dim of dy y:

    dv = p dy,   ds = p (v dy - D),   dq = scale sum over keys of ds k,   dk = scale ds q    (dk, dv: of a group summed)

What an implementation's passes take and return (q, y (batch, heads, head_dim), k, v (batch, kv_heads, keys,
head_dim), unit stride in the last dimension; lengths (batch,), int64; lse (batch, heads), the logarithm of the sum of
e^s, in float32, of float64 in float64):

    forward(q, k, v, lengths, scale) -> (y, lse)
    backward(dy, q, k, v, lengths, y, lse, scale) -> (dq, dk, dv)
"""

import math

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.backends.rows import accumulation_dtype
from lab.ops.operator import Cost, Operator, is_finite, require_floating, seeded


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None = None, *, backend: str | None = None
) -> Tensor:
    """softmax(scale q k^T) v for each sequence and head, over the sequence's own keys: returns (batch, heads, head_dim)
    in q's dtype.

    q: (batch, heads, head_dim); k, v: (batch, kv_heads, keys, head_dim), kv_heads dividing heads; float16, bfloat16,
    float32 or float64, any strides. lengths: (batch,), int64, how many keys of each sequence count, from 1 to keys (not
    checked: to look would wait for the GPU). scale: None means 1 / sqrt(head_dim). backend: a choice string
    (`lab.backends.registry`); None means "auto". Differentiable in q, k and v (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape or device, BackendUnavailable for a backend that
    cannot run on these inputs.
    """
    return get_op("decode_attention", backend or "auto")(q, k, v, lengths, scale)


class DecodeAttention(Operator):
    name = "decode_attention"
    tensors = ("q", "k", "v", "lengths")
    constants = ("lengths",)
    outputs = ("y",)
    residuals = ("lse",)
    dims = ("batch", "heads", "kv_heads", "keys", "head_dim")
    shapes = {"llama3-8b": (64, 32, 8, 4096, 128), "llama3-8b-32k": (1, 32, 8, 32768, 128)}
    tiny_shapes = ((2, 2, 1, 3, 2), (1, 1, 1, 1, 1))
    trial_shapes = ((1, 1, 1, 1, 2), (2, 4, 2, 5, 8), (3, 3, 3, 17, 16), (1, 4, 1, 129, 64))

    def check(self, q, k, v, lengths, scale):
        require_floating(self.name, q=q, k=k, v=v)
        if q.dim() != 3:
            raise ValueError(f"{self.name}: q has shape {tuple(q.shape)}; expected (batch, heads, head_dim)")
        batch, heads, head_dim = q.shape
        if k.dim() != 4 or (k.shape[0], k.shape[3]) != (batch, head_dim):
            raise ValueError(
                f"{self.name}: k has shape {tuple(k.shape)}; expected ({batch}, kv_heads, keys, {head_dim}), as q"
            )
        if head_dim == 0:
            raise ValueError(f"{self.name}: q has shape {tuple(q.shape)}; expected a head_dim of at least 1")
        if v.shape != k.shape:
            raise ValueError(f"{self.name}: v has shape {tuple(v.shape)}; expected k's shape {tuple(k.shape)}")
        if k.shape[1] == 0 or heads % k.shape[1]:
            raise ValueError(f"{self.name}: k has {k.shape[1]} heads; expected a divisor of q's {heads}")
        if not isinstance(lengths, Tensor):
            raise TypeError(f"{self.name}: lengths is a {type(lengths).__name__}; expected a torch.Tensor")
        if lengths.dtype != torch.int64:
            raise TypeError(f"{self.name}: lengths has dtype {lengths.dtype}; expected torch.int64")
        if lengths.shape != (batch,):
            raise ValueError(f"{self.name}: lengths has shape {tuple(lengths.shape)}; expected ({batch},)")
        if lengths.device != q.device:
            raise ValueError(f"{self.name}: lengths is on {lengths.device}; expected q's device {q.device}")
        if scale is not None and not is_finite(scale):
            raise ValueError(f"{self.name}: scale is {scale!r}; expected a finite number or None")

    def _scores(self, q, k, lengths, scale):
        """(batch, heads, keys), -inf past a sequence's length; and k's heads, one for each of q's."""
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = (k @ q[..., None])[..., 0] * (q.shape[-1] ** -0.5 if scale is None else scale)
        past = torch.arange(k.shape[2], device=k.device) >= lengths[:, None]
        return scores.masked_fill(past[:, None], -math.inf), k

    def reference(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None = None) -> Tensor:
        """softmax(scale q k^T) v over each sequence's own keys; see `lab.ops.decode_attention`."""
        scores, _ = self._scores(q, k, lengths, scale)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return (torch.softmax(scores, -1)[..., None, :] @ v)[..., 0, :]

    def canonical(self, q, k, v, lengths):
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        return q, k, v, lengths.contiguous()

    def restore(self, outputs, *tensors):
        return outputs

    def like_forward(self, q, k, v, lengths, scale):
        return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=accumulation_dtype(q.dtype))

    def saved(self, tensors, results):
        return *tensors, *results

    def like_backward(self, dy, q, k, v, lengths, y, lse, scale):
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    def gradients(self, dq, dk, dv):
        return dq, dk, dv, None

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        (batch, heads, kv_heads, keys, head_dim), generator = shape, seeded(device, seed)
        sizes = (batch, heads, head_dim), (batch, kv_heads, keys, head_dim), (batch, kv_heads, keys, head_dim)
        q, k, v = (torch.randn(size, generator=generator, device=device, dtype=dtype) for size in sizes)
        return q, k, v, torch.full((batch,), keys, device=device)

    def forward_cost(self, shape, dtype):
        (batch, heads, kv_heads, keys, head_dim), size = shape, dtype.itemsize
        pairs, q, k = batch * heads * keys, batch * heads * head_dim, batch * kv_heads * keys * head_dim
        return Cost(
            {"q k^T": 2 * pairs * head_dim, "softmax": 5 * pairs, "p v": 2 * pairs * head_dim},
            {
                "read q": q * size,
                "read k": k * size,
                "read v": k * size,
                "read lengths": batch * 8,
                "write y": q * size,
            },
        )

    def backward_cost(self, shape, dtype):
        (batch, heads, kv_heads, keys, head_dim), size = shape, dtype.itemsize
        pairs, q, k = batch * heads * keys, batch * heads * head_dim, batch * kv_heads * keys * head_dim
        return Cost(
            {
                "q k^T again, dy v^T, dv, dq, dk": 10 * pairs * head_dim,
                "p and ds": 6 * pairs,
                "D": 2 * q,
            },
            {
                "read q, y, dy": 3 * q * size,
                "read k, v": 2 * k * size,
                "read lengths": batch * 8,
                "write dq": q * size,
                "write dk, dv": 2 * k * size,
            },
        )

    def term_sums(self, args, grads, dtype):
        # What the rounding of the scores does to p is left to PyTorch's own error, which has it too.
        (q, k, v, lengths, scale), (dy,) = args, grads
        scores, k_of = self._scores(q, k, lengths, scale)
        factor = abs(q.shape[-1] ** -0.5 if scale is None else scale)
        p = torch.softmax(scores, -1)
        group = q.shape[1] // k.shape[1]
        v_of = v.abs().repeat_interleave(group, dim=1)
        dp = (v_of @ dy.abs()[..., None])[..., 0]
        ds = p * (dp + (p * dp).sum(-1, keepdim=True)) * factor

        def over_groups(weights, x):  # (batch, heads, keys) by (batch, heads, head_dim)
            return (weights[..., None] * x[..., None, :]).unflatten(1, (k.shape[1], group)).sum(2)

        gradients = (ds[..., None, :] @ k_of.abs())[..., 0, :], over_groups(ds, q.abs()), over_groups(p, dy.abs())
        return ((p[..., None, :] @ v_of)[..., 0, :],), (*gradients, None)


OPERATOR = DecodeAttention()
