"""What is particular to layer normalization: the mean that is taken off, and the bias."""

import pytest
import torch
import torch.nn.functional as F
from rules import bound_to, check_error, random_grads
from test_numerics import DEVICE, HERE

import lab
from lab.backends import registry

LAYERNORM = registry.operator("layernorm")
rungs = pytest.mark.parametrize("implementation", [rung for rung in HERE if rung.operator == "layernorm"], ids=str)


@rungs
@pytest.mark.parametrize("columns", [7, 1000, 17000])
def test_a_mean_far_from_zero(implementation, columns, seed):
    """E[x^2] - E[x]^2 would be left with rounding errors only: the sum of squares must be of x - mean."""
    x, weight, bias = LAYERNORM.make_inputs((3, columns), torch.float32, DEVICE, seed)
    tensors = (x + 3000, weight, bias)
    check_error(implementation, tensors, random_grads(LAYERNORM, tensors, seed))
    y = bound_to(implementation)(*tensors)
    exact = F.layer_norm(tensors[0].double(), (columns,), weight.double(), bias.double())
    assert (y - exact).abs().max() < 0.01


@rungs
def test_a_constant_row_gives_the_bias(implementation, seed):
    _, weight, bias = LAYERNORM.make_inputs((3, 129), torch.float64, DEVICE, seed)
    x = torch.tensor([[-1.0], [0.0], [7.5]], dtype=torch.float64, device=DEVICE).expand(3, 129)
    assert torch.allclose(bound_to(implementation)(x, weight, bias), bias.expand(3, 129), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    "bias, kind, says",
    [
        (torch.zeros(7, device=DEVICE), ValueError, r"bias has shape \(7,\); expected weight's shape \(8,\)"),
        (torch.zeros(8, device=DEVICE).half(), TypeError, "bias has dtype torch.float16; expected x's dtype"),
        (None, TypeError, "bias is a NoneType; expected a torch.Tensor"),
    ],
)
def test_a_bias_that_does_not_fit(bias, kind, says):
    x, weight = torch.randn(2, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    with lab.trace() as calls, pytest.raises(kind, match=f"layernorm: {says}"):
        lab.ops.layernorm(x, weight, bias, backend="triton")
    assert calls == []
