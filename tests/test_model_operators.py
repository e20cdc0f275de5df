"""What is particular to the operators of a model: optional arguments, masks, reductions, and their errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from rules import check_error, random_grads, reference
from test_numerics import DEVICE, HERE

import lab
from lab.backends import registry
from lab.backends.implementation import Implementation
from lab.backends.torch import rope as torch_rope


def rungs(op: str):
    return pytest.mark.parametrize("implementation", [rung for rung in HERE if rung.operator == op], ids=str)


def f32(*shape):
    return torch.randn(*shape, device=DEVICE)


@rungs("linear")
def test_linear_without_bias(implementation, seed):
    linear = registry.operator("linear")
    x, weight, _ = linear.make_inputs((17, 33, 65), torch.float32, DEVICE, seed)
    tensors = (x.view(1, 17, 65), weight, None)
    check_error(implementation, tensors, random_grads(linear, tensors, seed))


@rungs("attention")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("queries, keys", [(1, 9), (5, 9), (9, 9)])
def test_attention_is_the_formula_written_out(implementation, causal, scale, queries, keys, seed):
    q, k, v = registry.operator("attention").make_inputs((2, 6, 2, queries, keys, 8), torch.float64, DEVICE, seed)
    expected = torch.empty_like(q)
    for batch in range(2):
        for head in range(6):
            for i in range(queries):
                seen = i + keys - queries + 1 if causal else keys
                scores = k[batch, head // 3, :seen] @ q[batch, head, i] * (8**-0.5 if scale is None else scale)
                expected[batch, head, i] = torch.softmax(scores, 0) @ v[batch, head // 3, :seen]
    y = lab.get_op("attention", str(implementation))(q, k, v, causal, scale)
    assert torch.allclose(y, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(registry.operator("attention").reference(q, k, v, causal, scale), expected, atol=1e-12)


@rungs("cross_entropy")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("lead", [(6,), (2, 3), ()])
def test_cross_entropy_is_the_formula_written_out(implementation, reduction, lead):
    logits = torch.randn(*lead, 11, dtype=torch.float64, device=DEVICE, requires_grad=True)
    target = torch.randint(11, lead, device=DEVICE)
    if lead:
        target.view(-1)[1] = 7777
    counts = target != 7777
    loss = -torch.log_softmax(logits, -1).gather(-1, target.where(counts, 0)[..., None])[..., 0] * counts
    expected = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / counts.sum()}[reduction]
    found = lab.get_op("cross_entropy", str(implementation))(logits, target, 7777, reduction)
    assert found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-12)
    grad = torch.randn_like(expected)
    assert torch.allclose(*(torch.autograd.grad(each, logits, grad)[0] for each in (found, expected)), rtol=1e-10)


@rungs("cross_entropy")
def test_all_targets_ignored(implementation):
    cross_entropy = lab.get_op("cross_entropy", str(implementation))
    logits, target = f32(3, 5), torch.full((3,), -100, device=DEVICE)
    assert math.isnan(cross_entropy(logits, target)) and cross_entropy(logits, target, reduction="sum") == 0


@rungs("rope")
def test_rope_turns_pairs_and_keeps_their_length(implementation, seed):
    q, k, cos, sin = registry.operator("rope").make_inputs((2, 7, 4, 2, 8), torch.float64, DEVICE, seed)
    found = lab.get_op("rope", str(implementation))(q, k, cos, sin)
    for x, turned in zip((q, k), found):
        pairs, after = (torch.complex(*each.chunk(2, dim=-1)) for each in (x, turned))
        angles = torch.complex(cos, sin)[:, None, :]
        assert torch.allclose(after, pairs * angles, rtol=1e-12)


BAD = {
    "linear weight": (lambda: (f32(2, 8), f32(3, 7)), ValueError, r"weight has shape \(3, 7\); expected \(n, 8\)"),
    "linear bias": (lambda: (f32(2, 8), f32(3, 8), f32(8)), ValueError, r"bias has shape \(8,\); expected \(3,\)"),
    "linear bias dtype": (
        lambda: (f32(2, 8), f32(3, 8), f32(3).half()), TypeError, "bias has dtype torch.float16; expected x's"),
    "linear integer": (lambda: (f32(2, 8).long(), f32(3, 8)), TypeError, "x has dtype torch.int64"),
    "rope odd": (lambda: (f32(1, 2, 3, 5), f32(1, 2, 1, 5), f32(2, 2), f32(2, 2)), ValueError, "q has shape"),
    "rope k": (lambda: (f32(1, 2, 3, 4), f32(1, 3, 1, 4), f32(2, 2), f32(2, 2)), ValueError, "k has shape"),
    "rope sin": (lambda: (f32(1, 2, 3, 4), f32(1, 2, 1, 4), f32(2, 2), f32(2, 4)), ValueError, "sin has shape"),
    "rope gradient": (
        lambda: (f32(1, 2, 3, 4), f32(1, 2, 1, 4), f32(2, 2).requires_grad_(), f32(2, 2)), ValueError,
        "cos wants a gradient"),
    "attention q": (lambda: (f32(2, 3, 4), f32(1, 2, 3, 4), f32(1, 2, 3, 4)), ValueError, "q has shape"),
    "attention v": (lambda: (f32(1, 2, 3, 4), f32(1, 2, 3, 4), f32(1, 2, 5, 4)), ValueError, "v has shape"),
    "attention heads": (
        lambda: (f32(1, 3, 2, 4), f32(1, 2, 2, 4), f32(1, 2, 2, 4)), ValueError, "k has 2 heads; expected a divisor"),
    "attention queries": (
        lambda: (f32(1, 2, 5, 4), f32(1, 2, 3, 4), f32(1, 2, 3, 4)), ValueError, "q has 5 causal queries"),
    "attention causal": (
        lambda: (f32(1, 2, 3, 4), f32(1, 2, 3, 4), f32(1, 2, 3, 4), 1), TypeError, "causal is a int; expected a bool"),
    "attention scale": (
        lambda: (f32(1, 2, 3, 4), f32(1, 2, 3, 4), f32(1, 2, 3, 4), True, math.inf), ValueError, "scale is inf"),
    "cross_entropy dtype": (
        lambda: (f32(2, 8), f32(2)), TypeError, "target has dtype torch.float32; expected torch.int64"),
    "cross_entropy shape": (
        lambda: (f32(2, 8), f32(3).long()), ValueError, r"target has shape \(3,\); expected logits' shape \(2, 8\)"),
    "cross_entropy index": (
        lambda: (f32(2, 8), f32(2).long(), 1.5), TypeError, "ignore_index is a float; expected an int"),
    "cross_entropy reduction": (
        lambda: (f32(2, 8), f32(2).long(), -100, "max"), ValueError, "reduction is 'max'; expected one of mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    op = case.partition(" ")[0]
    make, kind, says = BAD[case]
    with lab.trace() as calls, pytest.raises(kind, match=f"{op}: {says}"):
        getattr(lab.ops, op)(*make(), backend="torch")
    assert calls == []


# The error rule must catch what is wrong with these operators ---------------------------------------------------------


def last_key_unseen(q, k, v, causal, scale):
    return F.scaled_dot_product_attention(q, k[:, :, :-1], v[:, :, :-1], scale=scale, enable_gqa=True)


WRONG = {
    "linear without bias": ("linear", lambda x, weight, bias: F.linear(x, weight, 0 * bias)),
    "linear with half the terms": ("linear", lambda x, weight, bias: F.linear(x[:, ::2], weight[:, ::2], bias)),
    "rope the other way": ("rope", lambda q, k, cos, sin: torch_rope.function(q, k, cos, -sin)),
    "rope of q alone": ("rope", lambda q, k, cos, sin: (torch_rope.function(q, k, cos, sin)[0], k * 1)),
    "attention without a mask": (
        "attention", lambda q, k, v, causal, scale: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
    "attention without the last key": ("attention", last_key_unseen),
    "cross entropy over all rows": (
        "cross_entropy", lambda logits, target, ignored, reduction: F.cross_entropy(logits, target.clamp(min=0))),
    "swiglu without its gate": ("swiglu", lambda gate, up: gate * up),
    "swiglu in half precision": ("swiglu", lambda gate, up: (F.silu(gate.half()) * up.half()).float()),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_mistake_is_caught(mistake, seed):
    op, function = WRONG[mistake]
    operator = registry.operator(op)
    registry.register_backend("wrong", {op: Implementation(function=function)})
    try:
        shape = operator.trial_shapes[-1] if operator.trial_shapes else (3, 129)
        tensors = operator.make_inputs(shape, torch.float32, DEVICE, seed)
        with pytest.raises(AssertionError, match="expected"):
            check_error(registry.ladder(op, "wrong")[0], tensors, random_grads(operator, tensors, seed))
    finally:
        del registry._ladders["wrong"]


@pytest.mark.parametrize("op", ["linear", "attention", "cross_entropy", "rope", "swiglu"])
def test_the_bound_is_not_far_above_the_results(op, seed):
    """The sum of terms is of the size of the results, not far above it: else the rule would let anything pass."""
    operator = registry.operator(op)
    shape = operator.trial_shapes[-1] if operator.trial_shapes else (3, 129)
    tensors = operator.make_inputs(shape, torch.float32, DEVICE, seed)
    values, terms = reference(operator, tensors, random_grads(operator, tensors, seed))
    for name, value in values.items():
        assert terms[name].median() <= 200 * value.abs().median() + 1e-30, name
        assert (terms[name] >= value.abs() * (1 - 1e-12)).all(), name
