"""Wrong answers to the softmax exercises: the solution with one mistake in it, and the property that must catch it."""

from wrong_answers import Wrong

_E = "e = tl.exp(value - tl.max(value))"
_ONLINE_SUM = "total = total * tl.exp(m - origin) + tl.exp(value - origin)"
_SECOND_LOOK = (
    '        value = tl.load(x + row * x_stride + column, mask, other=float("-inf")).to(ACC)\n        tl.store('
)

TRITON = [
    Wrong("softmax.forward", "formula", "no denominator", "e / tl.sum(e)", "e"),
    Wrong("softmax.forward", "formula", "divides by the largest", "e / tl.sum(e)", "e / tl.max(e)"),
    Wrong("softmax.forward", "formula", "base 2", "e = tl.exp(", "e = tl.exp2("),
    Wrong("softmax.forward", "overflow", "no maximum", "tl.exp(value - tl.max(value))", "tl.exp(value)"),
    Wrong("softmax.forward", "hard-coded block", "a block of 1024", "triton.next_power_of_2(columns)", "1024"),
    Wrong("softmax.forward", "mask", "masks nothing", "mask = column < columns", "mask = column < BLOCK"),
    Wrong("softmax.forward", "mask", "stores without a mask", "e / tl.sum(e), mask)", "e / tl.sum(e))"),
    Wrong("softmax.forward", "mask", "leaves masked lanes undefined", ', mask, other=float("-inf"))', ", mask)"),
    Wrong("softmax.forward", "any number of columns", "arange(columns)", "triton.next_power_of_2(columns)", "columns"),
    Wrong("softmax.forward", "sum over the columns", "masked lanes add exp(0)", 'other=float("-inf")', "other=0"),
    Wrong(
        "softmax.forward",
        "masked elements",
        "the first element for the maximum",
        "tl.max(value)",
        "tl.load(x + row * x_stride).to(ACC)",
    ),
    Wrong("softmax.forward", "row stride", "ignores x's stride", "row * x_stride", "row * columns"),
    Wrong("softmax.forward", "row stride", "uses x's stride for y", "y + row * columns", "y + row * x_stride"),
    Wrong(
        "softmax.forward",
        "accumulation dtype",
        "subtracts in half precision",
        ".to(ACC)\n    e = tl.exp(value - tl.max(value))",
        "\n    e = tl.exp((value - tl.max(value).to(value.dtype)).to(ACC))",
    ),
    Wrong("softmax.forward", "accumulation dtype", "float32 for float64", "ACC=accumulator(x)", "ACC=tl.float32"),
    Wrong(
        "softmax.forward",
        "bytes moved",
        "reads x twice",
        "    tl.store(",
        '    e = tl.exp(tl.load(x + row * x_stride + column, mask, other=float("-inf")).to(ACC) - tl.max(value))\n'
        "    tl.store(",
    ),
    Wrong("softmax.online", "block size", "one block as long as the row", "BLOCK=block", "BLOCK=4096"),
    Wrong("softmax.online", "overflow", "no maximum", "n = tl.maximum(m, value)", "n = tl.zeros([BLOCK], ACC)"),
    Wrong(
        "softmax.online",
        "rows of several blocks",
        "does not mend the sum",
        _ONLINE_SUM,
        "total = total + tl.exp(value - origin)",
    ),
    Wrong(
        "softmax.online",
        "formula",
        "lanes keep their own maximum",
        "tl.sum(total * tl.exp(m - largest))",
        "tl.sum(total)",
    ),
    Wrong("softmax.online", "mask", "-inf less -inf", 'tl.where(n == float("-inf"), 0, n)', "n"),
    Wrong(
        "softmax.online",
        "masked elements",
        "-inf less -inf, but for the lanes past the end",
        'tl.where(n == float("-inf"), 0, n)',
        "tl.where(column < columns, n, tl.maximum(n, -1e30))",
    ),
    Wrong(
        "softmax.online",
        "bytes moved",
        "reads x a third time",
        _SECOND_LOOK,
        _SECOND_LOOK.replace(
            "        tl.store(",
            "        value = tl.maximum(value, tl.load(x + row * x_stride + column, mask).to(ACC))\n        tl.store(",
        ),
    ),
    Wrong("softmax.backward", "formula", "no sum", "value * (grad - dot)", "value * grad"),
    Wrong("softmax.backward", "formula", "sum of dy alone", "tl.sum(value * grad)", "tl.sum(grad)"),
    Wrong("softmax.backward", "formula", "the wrong sign", "(grad - dot)", "(grad + dot)"),
    Wrong("softmax.backward", "mask", "masks nothing", "mask = column < columns", "mask = column < BLOCK"),
    Wrong("softmax.backward", "row stride", "y's stride for dy", "row * dy_stride", "row * y_stride"),
    Wrong("softmax.backward", "accumulation dtype", "half-precision products", "other=0).to(ACC)\n", "other=0)\n"),
    Wrong(
        "softmax.backward",
        "bytes moved",
        "adds up in memory",
        "    tl.store(dx + row * columns + column, value * (grad - dot), mask)",
        "    tl.store(dx + row * columns + column, value * grad, mask)\n"
        "    tl.debug_barrier()\n"
        "    partly = tl.load(dx + row * columns + column, mask, other=0)\n"
        "    tl.store(dx + row * columns + column, value * (grad - dot), mask)",
    ),
    Wrong(
        "softmax.tiled",
        "rows to a program",
        "a row to a program",
        "    tiled_kernel[",
        "    rows_per_program = 1\n    tiled_kernel[",
    ),
    Wrong("softmax.tiled", "formula", "one sum for the tile", "tl.sum(e, 1)[:, None]", "tl.sum(e)"),
    Wrong("softmax.tiled", "formula", "sums down the columns", "tl.sum(e, 1)[:, None]", "tl.sum(e, 0)[None, :]"),
    Wrong(
        "softmax.tiled",
        "output fully written",
        "leaves the last rows out",
        "triton.cdiv(rows, rows_per_program)",
        "rows // rows_per_program",
    ),
    Wrong(
        "softmax.tiled",
        "the last program",
        "masks no rows",
        "(row < rows) & (column < columns)",
        "(row < rows + 3) & (column < columns)",
    ),
    Wrong(
        "softmax.tiled",
        "mask",
        "masks no columns",
        "(row < rows) & (column < columns)",
        "(row < rows) & (column < BLOCK)",
    ),
]

CUDA_COMPILED: list[Wrong] = []
CUDA_RUN: list[Wrong] = []
