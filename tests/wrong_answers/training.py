"""Wrong answers to the exercises of the training chapter: the solution with one mistake, and what must catch it."""

from wrong_answers import Wrong

_NEAR = "torch.allclose(gradient, slopes)"
_MEAN = "sum(loss * count for loss, count in zip(losses, tokens)) / sum(tokens)"

PYTHON = [
    Wrong("training.slope", "runs", "writes into a tuple", "list(weights), list(weights)", "weights, weights"),
    Wrong("training.slope", "answers", "no return", "return (loss", "(loss"),
    Wrong(
        "training.slope", "on both sides", "forward", "(loss(up) - loss(down)) / (2 *", "(loss(up) - loss(weights)) / ("
    ),
    Wrong("training.slope", "two steps apart", "divides by one step", "(2 * step)", "step"),
    Wrong(
        "training.slope",
        "one weight alone",
        "moves them all",
        "up[index] += step\n    down[index] -= step",
        "up, down = ([w + by for w in weights] for by in (step, -step))",
    ),
    Wrong("training.slope", "up less down", "down less up", "loss(up) - loss(down)", "loss(down) - loss(up)"),
    Wrong("training.slope", "value", "half of the step down", "down[index] -= step", "down[index] -= step / 2"),
    Wrong("training.wrong_gradient", "runs", "one name", "zip(layer.names, inputs,", "zip(layer.name, input,"),
    Wrong("training.wrong_gradient", "answers", "none of its own", 'return "none"', "return None"),
    Wrong("training.wrong_gradient", "up to rounding", "to the bit", _NEAR, "torch.equal(gradient, slopes)"),
    Wrong(
        "training.wrong_gradient",
        "every gradient",
        "the first one",
        '    return "none"',
        '        break\n    return "none"',
    ),
    Wrong("training.wrong_gradient", "dy is not all alike", "that of a sum", "randn_like", "ones_like"),
    Wrong(
        "training.wrong_gradient",
        "every element by itself",
        "sums",
        _NEAR,
        "torch.allclose(gradient.sum(), slopes.sum())",
    ),
    Wrong(
        "training.wrong_gradient",
        "all of the elements",
        "the first element",
        _NEAR,
        "torch.allclose(gradient.view(-1)[:1], slopes.view(-1)[:1])",
    ),
    Wrong(
        "training.wrong_gradient",
        "small gradients",
        "an absolute bound",
        _NEAR,
        "torch.allclose(gradient, slopes, atol=1e-3)",
    ),
    Wrong("training.wrong_gradient", "value", "always none", _NEAR, "True"),
    Wrong("training.wrong_gradient", "value", "the step stays", "            x.view(-1)[i] = kept\n", ""),
    Wrong("training.accumulated", "a mean of means", "parts alike", _MEAN, "sum(losses) / len(losses)"),
    Wrong("training.accumulated", "a mean, not a sum", "not divided", " / sum(tokens)", ""),
    Wrong("training.accumulated", "value", "by the parts", " / sum(tokens)", " / len(tokens)"),
    Wrong("training.state_bytes", "one set in float32", "always a copy", "0 if bits == 32 else 4", "4"),
    Wrong("training.state_bytes", "the weights in float32", "no copy", "0 if bits == 32 else 4", "0"),
    Wrong("training.state_bytes", "two moments", "one moment", "2 * 4", "4"),
    Wrong("training.state_bytes", "bytes, not bits", "bits", "return parameters", "return 8 * parameters"),
    Wrong(
        "training.state_bytes",
        "value",
        "gradients in the weights' dtype",
        "gradient, moments = 4",
        "gradient, moments = own",
    ),
    Wrong("training.mfu", "backward too", "forward alone", "3 * 2 *", "2 *"),
    Wrong("training.mfu", "two FLOPs for each", "one FLOP", "3 * 2 *", "3 *"),
    Wrong("training.mfu", "a fraction", "percent", "return flops", "return 100 * flops"),
    Wrong("training.mfu", "tera", "TFLOPs as they are", " * 1e12", ""),
    Wrong("training.mfu", "value", "one backward product", "3 * 2 *", "2 * 2 *"),
]
