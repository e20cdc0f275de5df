"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864), in the form of Llama's checkpoints: the
two numbers of a pair lie half a head apart.

    (a, b) = (x[..., :d/2], x[..., d/2:]),   y = (a cos - b sin, b cos + a sin)

for each position's cos and sin; q and k alike. Backward is the rotation the other way: the same with -sin.

What an implementation's passes take and return (q (batch, seq, heads, d), k (batch, seq, kv_heads, d), unit stride in
the last dimension; cos, sin (seq, d/2), contiguous):

    forward(q, k, cos, sin) -> (q_rotated, k_rotated)
    backward(dq_rotated, dk_rotated, cos, sin) -> (dq, dk)
"""

import torch
from torch import Tensor

from lab.backends.registry import get_op
from lab.ops.operator import Cost, Operator, require_floating, seeded


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """q and k turned by their positions' angles: returns both, in their shapes and dtype.

    q: (batch, seq, heads, head_dim), k: (batch, seq, kv_heads, head_dim), any strides, float16, bfloat16, float32 or
    float64; cos, sin: (seq, head_dim / 2), in q's dtype and on its device, and without a gradient. backend: a choice
    string (`lab.backends.registry`); None means "auto". Differentiable in q and k (once).

    Raises TypeError for a wrong dtype, ValueError for a wrong shape or device or cos or sin that want a gradient,
    BackendUnavailable for a backend that cannot run on these inputs.
    """
    return get_op("rope", backend or "auto")(q, k, cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (batch, seq, heads, d) by the angles of cos and sin (seq, d/2)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class RoPE(Operator):
    name = "rope"
    tensors = ("q", "k", "cos", "sin")
    constants = ("cos", "sin")
    outputs = ("q_rotated", "k_rotated")
    dims = ("batch", "seq", "heads", "kv_heads", "head_dim")
    shapes = {"llama3-8b": (4, 4096, 32, 8, 128), "llama3-8b-decode": (64, 1, 32, 8, 128)}
    tiny_shapes = ((1, 2, 2, 1, 4), (1, 1, 1, 1, 2))
    trial_shapes = ((1, 1, 1, 1, 2), (2, 3, 4, 2, 6), (1, 17, 3, 1, 64), (2, 5, 8, 2, 128))

    def check(self, q, k, cos, sin):
        require_floating(self.name, q=q, k=k, cos=cos, sin=sin)
        for name, tensor in (("q", q), ("k", k)):
            if tensor.dim() != 4 or tensor.shape[-1] % 2:
                raise ValueError(
                    f"{self.name}: {name} has shape {tuple(tensor.shape)}; expected (batch, seq, heads, head_dim), even"
                )
        batch, seq, _, head_dim = q.shape
        if (k.shape[0], k.shape[1], k.shape[3]) != (batch, seq, head_dim):
            raise ValueError(
                f"{self.name}: k has shape {tuple(k.shape)}; expected ({batch}, {seq}, kv_heads, {head_dim}), as q"
            )
        for name, tensor in (("cos", cos), ("sin", sin)):
            if tensor.shape != (seq, head_dim // 2):
                raise ValueError(
                    f"{self.name}: {name} has shape {tuple(tensor.shape)}; expected ({seq}, {head_dim // 2})"
                )
            if tensor.requires_grad:
                raise ValueError(f"{self.name}: {name} wants a gradient; expected one that does not: rope gives none")

    def reference(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """q and k turned by their positions' angles; see `lab.ops.rope`."""
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def canonical(self, q, k, cos, sin):
        q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
        return q, k, cos.contiguous(), sin.contiguous()

    def restore(self, outputs, *tensors):
        return outputs

    def like_forward(self, q, k, cos, sin):
        return q.new_empty(q.shape), k.new_empty(k.shape)

    def saved(self, tensors, results):
        return tensors[2:]

    def like_backward(self, dq, dk, cos, sin):
        return dq.new_empty(dq.shape), dk.new_empty(dk.shape)

    def gradients(self, dq, dk):
        return dq, dk, None, None

    def make_inputs(self, shape, dtype, device="cpu", seed=0):
        (batch, seq, heads, kv_heads, head_dim), generator = shape, seeded(device, seed)
        q, k = (
            torch.randn(batch, seq, count, head_dim, generator=generator, device=device, dtype=dtype)
            for count in (heads, kv_heads)
        )
        frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(seq, dtype=torch.float64)[:, None] * frequencies
        return q, k, angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def _work(self, shape, dtype, verb):
        (batch, seq, heads, kv_heads, head_dim), size = shape, dtype.itemsize
        q, k, table = batch * seq * heads * head_dim, batch * seq * kv_heads * head_dim, seq * head_dim // 2
        prefix = "d" if verb == "backward" else ""
        return Cost(
            {"two products and a sum, per element": 3 * (q + k)},
            {
                f"read {prefix}q": q * size,
                f"read {prefix}k": k * size,
                "read cos, sin": 2 * table * size,
                f"write {prefix}q": q * size,
                f"write {prefix}k": k * size,
            },
        )

    def forward_cost(self, shape, dtype):
        return self._work(shape, dtype, "forward")

    def backward_cost(self, shape, dtype):
        return self._work(shape, dtype, "backward")

    def term_sums(self, args, grads, dtype):
        q, k, cos, sin = (tensor.abs() for tensor in args)

        def sums(x):
            a, b = x.abs().chunk(2, dim=-1)
            c, s = cos[:, None, :], sin[:, None, :]
            return torch.cat([a * c + b * s, b * c + a * s], dim=-1)

        return (sums(q), sums(k)), (*(sums(grad) for grad in grads), None, None)


OPERATOR = RoPE()
