"""Wrong answers to the RMSNorm exercises: the solution with one mistake in it, and the property that must catch it."""

from wrong_answers import Wrong

_LOAD_X = "tl.load(x + row * x_stride + column, mask, other=0)"
_SECOND_READ = (
    "    tl.store(y + row * columns + column, value * r * w, mask)",
    f"    value = {_LOAD_X}.to(ACC)\n    tl.store(y + row * columns + column, value * r * w, mask)",
)
_NO_STORE_MASK = ("column, value * r * w, mask)", "column, value * r * w)")
_LOOP = "    for start in range(0, columns, BLOCK):\n        column = start + tl.arange(0, BLOCK)\n        value ="
_LAST_ROWS = "row < rows // tl.num_programs(0) * tl.num_programs(0)"

TRITON = [
    Wrong("rmsnorm.forward", "runs", "raises", "    return y", "    return y / undefined"),
    Wrong(
        "rmsnorm.forward",
        "launches a kernel",
        "lets torch do it",
        "    forward_kernel[",
        "    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)\n    forward_kernel[",
    ),
    Wrong("rmsnorm.forward", "outputs", "always returns float32", "dtype=x.dtype", "dtype=torch.float32"),
    Wrong(
        "rmsnorm.forward", "inputs unmodified", "writes into x", "    y = torch.empty(", "    y = x\n    torch.empty("
    ),
    Wrong(
        "rmsnorm.forward",
        "fresh outputs",
        "keeps one output for all calls",
        "    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)",
        "    y = forward.__dict__.setdefault(f'{x.shape}{x.dtype}', torch.empty_like(x).contiguous())",
    ),
    Wrong("rmsnorm.forward", "output fully written", "no program for the last row", "[(rows,)]", "[(rows - 1,)]"),
    Wrong("rmsnorm.forward", "output fully written", "block half a row", "_2(columns)", "_2(columns) // 2"),
    Wrong("rmsnorm.forward", "formula", "no weight", "value * r * w", "value * r"),
    Wrong("rmsnorm.forward", "formula", "NaN everywhere", "value * r * w", "value * r * w * float('nan')"),
    Wrong("rmsnorm.forward", "hard-coded block", "a block of 1024", "triton.next_power_of_2(columns)", "1024"),
    Wrong("rmsnorm.forward", "mask", "masks nothing", "mask = column < columns", "mask = column < BLOCK"),
    Wrong("rmsnorm.forward", "mask", "mask one too long", "mask = column < columns", "mask = column <= columns"),
    Wrong("rmsnorm.forward", "mask", "stores without a mask", *_NO_STORE_MASK),
    Wrong("rmsnorm.forward", "mask", "leaves masked lanes undefined", "column, mask, other=0)", "column, mask)"),
    Wrong("rmsnorm.forward", "any number of columns", "arange(columns)", "triton.next_power_of_2(columns)", "columns"),
    Wrong("rmsnorm.forward", "mean over the columns", "mean over the block", "/ columns", "/ BLOCK"),
    Wrong("rmsnorm.forward", "row stride", "ignores x's stride", "row * x_stride", "row * columns"),
    Wrong("rmsnorm.forward", "row stride", "uses x's stride for y", "y + row * columns", "y + row * x_stride"),
    Wrong("rmsnorm.forward", "eps", "no eps", " + EPS", ""),
    Wrong(
        "rmsnorm.forward",
        "eps",
        "eps outside the root",
        "tl.sqrt(tl.sum(value * value) / columns + EPS)",
        "(tl.sqrt(tl.sum(value * value) / columns) + EPS)",
    ),
    Wrong("rmsnorm.forward", "eps", "its own eps", "EPS=eps", "EPS=1e-6"),
    Wrong("rmsnorm.forward", "accumulation dtype", "squares in half precision", ".to(ACC)\n    w =", "\n    w ="),
    Wrong("rmsnorm.forward", "accumulation dtype", "float32 for float64", "ACC=accumulator(x)", "ACC=tl.float32"),
    Wrong("rmsnorm.forward", "accumulation dtype", "eps as a float32", "EPS: tl.constexpr", "EPS"),
    Wrong("rmsnorm.forward", "bytes moved", "reads x twice", *_SECOND_READ),
    Wrong(
        "rmsnorm.forward",
        "bytes moved",
        "copies x first",
        "    forward_kernel[",
        "    x = x.contiguous()\n    forward_kernel[",
    ),
    Wrong("rmsnorm.add", "outputs", "does not return s", "return y, s", "return y"),
    Wrong("rmsnorm.add", "outputs", "returns a list of three", "return y, s", "return y, s, x"),
    Wrong("rmsnorm.add", "sum", "subtracts", "total +=", "total -="),
    Wrong(
        "rmsnorm.add", "formula", "normalizes x alone", "    value = total.to(ACC)", f"    value = {_LOAD_X}.to(ACC)"
    ),
    Wrong("rmsnorm.add", "inputs unmodified", "sums into the residual", "s = torch.empty_like(y)", "s = residual"),
    Wrong("rmsnorm.add", "row stride", "x's stride for both", "row * residual_stride", "row * x_stride"),
    Wrong(
        "rmsnorm.add",
        "rounded sum",
        "normalizes the sum before rounding",
        "mask, other=0)\n    t",
        "mask, other=0).to(tl.float32 if ACC == tl.float32 else ACC)\n    t",
    ),
    Wrong(
        "rmsnorm.add",
        "bytes moved",
        "reads s back",
        "    value = total.to(ACC)",
        "    value = tl.load(s + row * columns + column, mask, other=0).to(ACC)",
    ),
    Wrong("rmsnorm.backward", "first term of dx", "no r", "r * g - value", "g - value"),
    Wrong(
        "rmsnorm.backward", "second term of dx", "the first term alone", "r * g - value * (r * r * r * dot)", "r * g"
    ),
    Wrong("rmsnorm.backward", "second term of dx", "r where r^3 belongs", "r * r * r * dot", "r * dot"),
    Wrong("rmsnorm.backward", "dw of one row", "no r in dw", "grad * value * r", "grad * value"),
    Wrong("rmsnorm.backward", "dx of every row", "skips the last rows", "rows, tl.num", "(rows + 1) // 2, tl.num"),
    Wrong("rmsnorm.backward", "dx of every row", "one r for all rows", "tl.load(rstd + row)", "tl.load(rstd)"),
    Wrong(
        "rmsnorm.backward",
        "dw over all rows",
        "dw without the last rows",
        "total += grad * value * r",
        f"total += tl.where({_LAST_ROWS}, grad * value * r, 0)",
    ),
    Wrong(
        "rmsnorm.backward", "dw over all rows", "overwrites dw", "total += grad * value * r", "total = grad * value * r"
    ),
    Wrong("rmsnorm.backward", "dw over all rows", "one program's part", "partial.sum(0)", "partial[0]"),
    Wrong("rmsnorm.backward", "mask", "masks nothing", "mask = column < columns", "mask = column < BLOCK"),
    Wrong("rmsnorm.backward", "mean over the columns", "mean over the block", "/ columns", "/ BLOCK"),
    Wrong("rmsnorm.backward", "hard-coded block", "a block of 1024", "triton.next_power_of_2(columns)", "1024"),
    Wrong("rmsnorm.backward", "row stride", "x's stride for dy", "row * dy_stride", "row * x_stride"),
    Wrong("rmsnorm.backward", "accumulation dtype", "half-precision products", "other=0).to(ACC)\n", "other=0)\n"),
    Wrong(
        "rmsnorm.backward",
        "bytes moved",
        "adds to dw in memory",
        "        total += grad * value * r",
        "        total += grad * value * r\n"
        "        tl.atomic_add(partial + tl.program_id(0) * columns + column, total, mask)",
    ),
    Wrong("rmsnorm.long_rows", "block size", "one block as long as the row", "BLOCK=block", "BLOCK=4096"),
    Wrong(
        "rmsnorm.long_rows",
        "rows of several blocks",
        "sums the first block only",
        _LOOP,
        _LOOP.replace("columns", "BLOCK"),
    ),
    Wrong(
        "rmsnorm.long_rows",
        "rows of several blocks",
        "keeps the last block's squares only",
        "squares += value * value",
        "squares = value * value",
    ),
    Wrong("rmsnorm.long_rows", "mask", "masks no load", "column < columns, other=0)", "column < columns + 1, other=0)"),
    Wrong(
        "rmsnorm.long_rows",
        "accumulation dtype",
        "half-precision squares",
        "squares += value * value",
        "squares += (value * value).to(x.dtype.element_ty)",
    ),
    Wrong(
        "rmsnorm.long_rows",
        "bytes moved",
        "reads x a third time",
        "        squares += value * value",
        "        squares += value * value + 0 * tl.load(x + row * x_stride + column, column < columns, other=0)",
    ),
]

# Caught where there is no GPU: the compiler refuses them.
CUDA_COMPILED = [
    Wrong("rmsnorm.cuda", "compiles", "a syntax error", "float squares = 0;", "float squares = 0"),
    Wrong("rmsnorm.cuda", "compiles", "a kernel of another name", "void rmsnorm_forward(", "void rms_norm_forward("),
    Wrong("rmsnorm.cuda", "launches a kernel", "launches nothing", "    launch(", "    (lambda *_: None)("),
]

# Caught where they run.
CUDA_RUN = [
    Wrong(
        "rmsnorm.cuda",
        "output fully written",
        "no block for the last row",
        '>", rows, 256',
        '>", max(rows - 1, 1), 256',
    ),
    Wrong("rmsnorm.cuda", "formula", "adds half of the partial sums", "blockDim.x / 2; half", "blockDim.x / 4; half"),
    Wrong(
        "rmsnorm.cuda",
        "columns and threads",
        "one column a thread",
        "c < columns; c +=",
        "c < min(columns, 1024ll); c +=",
    ),
    Wrong("rmsnorm.cuda", "row stride", "ignores x's stride", "blockIdx.x * x_stride", "blockIdx.x * columns"),
    Wrong("rmsnorm.cuda", "eps", "no eps", " + (float)eps", ""),
    Wrong(
        "rmsnorm.cuda",
        "accumulation dtype",
        "half-precision squares",
        "(float)x[c] * (float)x[c]",
        "(float)(x[c] * x[c])",
    ),
]
