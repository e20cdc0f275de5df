"""Wrong answers to the exercises on linear: the solution with one mistake in it, and the property that must catch
it."""

from wrong_answers import Wrong

_Y = "    y = torch.empty(m, n, dtype=x.dtype, device=x.device)"
_PIECES = "    for start in range(first, last, TILE):\n        p = start + tl.arange(0, TILE)\n"
_DOT = 'acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=ACC)'
_STORE = "tl.store(y + row[:, None] * n + column[None, :], acc, (row[:, None] < m) & (column[None, :] < n))"
_TILE = """\
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)
    acc = tile_product(x, x_stride, weight, weight_stride, row, column, m, n, 0, k, ACC, TILE)
"""
_EVERY_TILE = f"""\
    tiles_n = tl.cdiv(n, TILE)
    tiles = tl.where(tl.program_id(0) + tl.program_id(1) == 0, tl.cdiv(m, TILE) * tiles_n, 0)
    for tile in range(0, tiles):
        row = (tile // tiles_n * TILE + tl.arange(0, TILE)).to(tl.int64)
        column = (tile % tiles_n * TILE + tl.arange(0, TILE)).to(tl.int64)
        acc = tile_product(x, x_stride, weight, weight_stride, row, column, m, n, 0, k, ACC, TILE)
        {_STORE}
"""
_PLACED = "return first + within % rows, within // rows"
_ROW_AND_COLUMN = """\
    row = (tile_row * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (tile_column * TILE + tl.arange(0, TILE)).to(tl.int64)
"""
_PRODUCT = "    acc = tile_product(x, x_stride, weight, weight_stride, row, column, m, n, 0, k, ACC, TILE)\n"
_COLUMNS = "triton.cdiv(triton.cdiv(k, tile), parts) * tile"
_LAST = "tl.minimum(first + columns_of_part, k)"
_STORE_PART = "    tl.store(target, acc, (row[:, None] < m) & (column[None, :] < n))"
_PARTIAL = "torch.empty(parts, m, n, dtype=accumulation_dtype(x), device=x.device)"
_PARTS = f"""\
    target = partial + (part * m + row[:, None]) * n + column[None, :]
{_STORE_PART}
    # END ANSWER


def split_k(x, weight, tile, parts):
    # BEGIN ANSWER: raise NotImplementedError("your code here")
    (m, k), n = x.shape, weight.shape[0]
    columns_of_part = {_COLUMNS}
    partial = {_PARTIAL}
"""
_ATOMICS = _PARTS.replace("tl.store", "tl.atomic_add").replace("torch.empty", "torch.zeros").replace("part * m + ", "")
_LAUNCH = """\
    split_k_kernel[(triton.cdiv(m, tile), triton.cdiv(n, tile), parts)](
        x, x.stride(0), weight, weight.stride(0), partial, m, n, k, columns_of_part, ACC=accumulator(x), TILE=tile
    )
"""
_A_LAUNCH_A_PART = """\
    for part in range(parts):
        columns = slice(part * columns_of_part, (part + 1) * columns_of_part)
        of_x, of_weight = x[:, columns], weight[:, columns]
        split_k_kernel[(triton.cdiv(m, tile), triton.cdiv(n, tile), 1)](
            of_x, x.stride(0), of_weight, weight.stride(0), partial[part], m, n, of_x.shape[1], columns_of_part,
            ACC=accumulator(x), TILE=tile
        )
"""
_ADDED = "return partial.sum(0).to(x.dtype)"
_ROWS = "    for start in range(0, m, TILE):\n        p = (start + tl.arange(0, TILE)).to(tl.int64)"

TRITON = [
    Wrong("linear.tiled", "runs", "adds to a sum that is not there", "    acc = tl.zeros([TILE, TILE], ACC)\n", ""),
    Wrong("linear.tiled", "launches a kernel", "lets torch do it", _Y, f"    return x @ weight.mT\n{_Y}"),
    Wrong("linear.tiled", "outputs", "always returns float32", "dtype=x.dtype", "dtype=torch.float32"),
    Wrong("linear.tiled", "inputs unmodified", "writes into the weight", _Y, "    y = weight"),
    Wrong(
        "linear.tiled",
        "fresh outputs",
        "keeps one output for all calls",
        _Y,
        _Y.replace("torch", "tiled.__dict__.setdefault(f'{m} {n} {x.dtype}', torch") + ")",
    ),
    Wrong(
        "linear.tiled",
        "output fully written",
        "stores half a tile",
        "(column[None, :] < n))",
        "(column[None, :] < n // 2))",
    ),
    Wrong(
        "linear.tiled",
        "formula",
        "the weight not transposed",
        "column[None, :] * weight_stride + p[:, None]",
        "p[:, None] * weight_stride + column[None, :]",
    ),
    Wrong(
        "linear.tiled",
        "formula",
        "y transposed",
        "row[:, None] * n + column[None, :]",
        "column[None, :] * n + row[:, None]",
    ),
    Wrong(
        "linear.tiled", "every tile", "no program for the last tiles", "triton.cdiv(m, tile),", "max(m // tile - 1, 1),"
    ),
    Wrong(
        "linear.tiled",
        "every tile",
        "rows and columns of the grid exchanged",
        "(triton.cdiv(m, tile), triton.cdiv(n, tile))",
        "(triton.cdiv(n, tile), triton.cdiv(m, tile))",
    ),
    Wrong(
        "linear.tiled",
        "every tile",
        "the first rows of the weight for all",
        _TILE,
        _TILE.replace("row, column", "row, column % TILE"),
    ),
    Wrong("linear.tiled", "a program a tile", "tiles of 32", _Y, f"    tile = 32\n{_Y}"),
    Wrong("linear.tiled", "a program a tile", "one program for all tiles", f"{_TILE}    {_STORE}\n", _EVERY_TILE),
    Wrong(
        "linear.tiled",
        "loop over k",
        "the first piece only",
        "range(first, last, TILE)",
        "range(first, first + 1, TILE)",
    ),
    Wrong("linear.tiled", "loop over k", "the last piece's product only", "tl.dot(a, b, acc, ", "tl.dot(a, b, "),
    Wrong("linear.tiled", "loop over k", "the same piece in every round", "p = start + ", "p = first + "),
    Wrong("linear.tiled", "size of a piece", "pieces of four tiles", _PIECES, _PIECES.replace("TILE", "4 * TILE")),
    Wrong("linear.tiled", "mask of the sum", "loads past the end of k", " & (p[None, :] < last)", ""),
    Wrong(
        "linear.tiled", "mask of the sum", "masked lanes undefined in one block", "in_weight, other=0)", "in_weight)"
    ),
    Wrong("linear.tiled", "mask of the sum", "masked lanes add ones", "other=0", "other=1"),
    Wrong(
        "linear.tiled",
        "mask of the sum",
        "leaves out the last piece",
        "range(first, last, TILE)",
        "range(first, last - last % TILE, TILE)",
    ),
    Wrong(
        "linear.tiled",
        "mask of rows and columns",
        "loads past the last row",
        "(row[:, None] < m) & (p",
        "(row[:, None] < m + TILE) & (p",
    ),
    Wrong(
        "linear.tiled",
        "mask of rows and columns",
        "stores past the last column",
        "acc, (row[:, None] < m) & (column[None, :] < n))",
        "acc, row[:, None] < m)",
    ),
    Wrong("linear.tiled", "row stride", "ignores x's stride", "row[:, None] * x_stride", "row[:, None] * last"),
    Wrong("linear.tiled", "row stride", "x's stride for the weight", "weight.stride(0)", "x.stride(0)"),
    Wrong("linear.tiled", "float32 products", "TF32, by default", 'input_precision="ieee", ', ""),
    Wrong(
        "linear.tiled",
        "accumulation dtype",
        "adds in half precision",
        _DOT,
        'acc += tl.dot(a, b, input_precision="ieee").to(a.dtype)',
    ),
    Wrong("linear.tiled", "accumulation dtype", "the sum in half precision", _DOT, _DOT + ".to(a.dtype).to(ACC)"),
    Wrong("linear.tiled", "accumulation dtype", "float32 for float64", "ACC=accumulator(x)", "ACC=tl.float32"),
    Wrong(
        "linear.tiled",
        "bytes moved",
        "reads every block of x twice",
        "        b = tl.load",
        "        a = tl.load(x + row[:, None] * x_stride + p[None, :], in_x, other=0)\n        b = tl.load",
    ),
    Wrong("linear.tiled", "bytes moved", "copies the weight first", _Y, f"    weight = weight.contiguous()\n{_Y}"),
    Wrong("linear.grouped", "every tile", "the first group's rows for all", _PLACED, _PLACED.replace("first + ", "")),
    Wrong(
        "linear.grouped",
        "every tile",
        "rows and columns exchanged",
        _PLACED,
        "return within // rows, first + within % rows",
    ),
    Wrong(
        "linear.grouped",
        "every tile",
        "a tile twice",
        "within = program % programs",
        "within = (program + program % 2) % programs",
    ),
    Wrong(
        "linear.grouped",
        "every tile",
        "groups as large as y is high",
        "programs = GROUP * tiles_n",
        "programs = GROUP * tiles_m",
    ),
    Wrong(
        "linear.grouped",
        "order in a group",
        "along the rows of y",
        _PLACED,
        "return program // tiles_n, program % tiles_n",
    ),
    Wrong(
        "linear.grouped",
        "order in a group",
        "along the rows of a group",
        _PLACED,
        "return first + within // tiles_n, within % tiles_n",
    ),
    Wrong(
        "linear.grouped",
        "order in a group",
        "down the columns of y",
        _PLACED,
        "return program % tiles_m, program // tiles_m",
    ),
    Wrong(
        "linear.grouped",
        "order in a group",
        "from the last column to the first",
        _PLACED,
        _PLACED.replace("within // rows", "tiles_n - 1 - within // rows"),
    ),
    Wrong(
        "linear.grouped",
        "order in a group",
        "tells one order and has another",
        _ROW_AND_COLUMN,
        _ROW_AND_COLUMN.replace("tile_row", "tl.program_id(0) // tiles_n").replace(
            "tile_column", "tl.program_id(0) % tiles_n"
        ),
    ),
    Wrong("linear.grouped", "the last group", "every group is whole", "tl.minimum(tiles_m - first, GROUP)", "GROUP"),
    Wrong(
        "linear.grouped",
        "the last group",
        "a last group moved up to be whole",
        "    rows = tl.minimum(tiles_m - first, GROUP)\n",
        "    rows = tl.minimum(tiles_m, GROUP)\n    first = tl.minimum(first, tiles_m - rows)\n",
    ),
    Wrong("linear.grouped", "bytes moved", "computes its tile twice", _PRODUCT, 2 * _PRODUCT),
    Wrong("linear.split_k", "formula", "the first part alone", _ADDED, _ADDED.replace(".sum(0)", "[0]")),
    Wrong("linear.split_k", "formula", "the mean of the parts", _ADDED, _ADDED.replace("sum", "mean")),
    Wrong("linear.split_k", "formula", "every part begins at 0", "first = part * columns_of_part", "first = 0"),
    Wrong("linear.split_k", "every tile", "parts overlap in memory", "part * m + row", "part * TILE + row"),
    Wrong(
        "linear.split_k",
        "a program a part",
        "one part",
        "    columns_of_part =",
        "    parts = 1\n    columns_of_part =",
    ),
    Wrong("linear.split_k", "a program a part", "the first part is all of k", _COLUMNS, "triton.cdiv(k, tile) * tile"),
    Wrong("linear.split_k", "a program a part", "a launch for each part", _LAUNCH, _A_LAUNCH_A_PART),
    Wrong("linear.split_k", "partial sums", "sums in half precision", "dtype=accumulation_dtype(x)", "dtype=x.dtype"),
    Wrong(
        "linear.split_k",
        "partial sums",
        "atomics, one memory for all parts",
        _PARTS,
        _ATOMICS.replace("(parts,", "(1,"),
    ),
    Wrong("linear.split_k", "partial sums", "atomics, and memory that nobody uses", _PARTS, _ATOMICS),
    Wrong(
        "linear.split_k",
        "all of k",
        "leaves out what does not divide",
        _COLUMNS,
        "max(triton.cdiv(k, tile) // parts, 1) * tile",
    ),
    Wrong(
        "linear.split_k",
        "all of k",
        "the memory of an empty part as it was",
        _STORE_PART,
        f"    if first < k:\n    {_STORE_PART}",
    ),
    Wrong("linear.split_k", "all of k", "the last part goes on past the end", _LAST, "first + columns_of_part"),
    Wrong(
        "linear.split_k",
        "mask of the sum",
        "the last part ends with a whole piece",
        _LAST,
        _LAST.replace(", k)", ", tl.cdiv(k, TILE) * TILE)"),
    ),
    Wrong(
        "linear.split_k",
        "mask of rows and columns",
        "stores past the last column",
        _STORE_PART,
        "    tl.store(target, acc, row[:, None] < m)",
    ),
    Wrong("linear.split_k", "row stride", "x's stride for the weight", "weight.stride(0)", "x.stride(0)"),
    Wrong("linear.split_k", "accumulation dtype", "rounds before adding", _ADDED, "return partial.to(x.dtype).sum(0)"),
    Wrong(
        "linear.split_k",
        "bytes moved",
        "copies the weight first",
        f"    partial = {_PARTIAL}",
        f"    weight = weight.contiguous()\n    partial = {_PARTIAL}",
    ),
    Wrong("linear.dw", "outputs", "returns dw alone", "return dw, db", "return dw"),
    Wrong(
        "linear.dw", "dw", "dw transposed", "tl.dot(grad, value, acc,", "tl.dot(tl.trans(value), tl.trans(grad), acc,"
    ),
    Wrong(
        "linear.dw",
        "dw",
        "dy not transposed",
        "p[None, :] * dy_stride + row[:, None]",
        "row[:, None] * dy_stride + p[None, :]",
    ),
    Wrong("linear.dw", "db", "sums the rows of dy", "tl.sum(grad.to(ACC), 1)", "tl.sum(grad.to(ACC), 0)"),
    Wrong(
        "linear.dw",
        "every tile",
        "db of the first tile alone",
        "if tl.program_id(1) == 0",
        "if tl.program_id(0) + tl.program_id(1) == 0",
    ),
    Wrong(
        "linear.dw",
        "every tile",
        "the first columns of x for all",
        "x_stride + column[None, :]",
        "x_stride + column[None, :] % TILE",
    ),
    Wrong(
        "linear.dw", "a program a tile", "tiles of 32", "    dw = torch.empty(", "    tile = 32\n    dw = torch.empty("
    ),
    Wrong("linear.dw", "loop over rows", "the last piece's db only", "total += ", "total = "),
    Wrong("linear.dw", "loop over rows", "the first piece only", "range(0, m, TILE)", "range(0, 1, TILE)"),
    Wrong("linear.dw", "size of a piece", "pieces of four tiles", _ROWS, _ROWS.replace("TILE", "4 * TILE")),
    Wrong("linear.dw", "mask of the sum", "loads rows past the last", " & (p[:, None] < m)", ""),
    Wrong("linear.dw", "mask of the sum", "masked lanes undefined", "in_dy, other=0)", "in_dy)"),
    Wrong(
        "linear.dw",
        "mask of rows and columns",
        "loads columns past the last",
        "(column[None, :] < k) & (p",
        "(column[None, :] < k + TILE) & (p",
    ),
    Wrong("linear.dw", "mask of rows and columns", "db past its end", "total, row < n)", "total)"),
    Wrong("linear.dw", "row stride", "dy's stride for x", "x.stride(0)", "dy.stride(0)"),
    Wrong("linear.dw", "float32 products", "TF32, by default", 'input_precision="ieee", ', ""),
    Wrong(
        "linear.dw",
        "accumulation dtype",
        "db in half precision",
        "total += tl.sum(grad.to(ACC), 1)",
        "total = (total + tl.sum(grad.to(ACC), 1)).to(dy.dtype.element_ty).to(ACC)",
    ),
    Wrong("linear.dw", "bytes moved", "db stored by every column of tiles", "    if tl.program_id(1) == 0:\n    ", ""),
    Wrong(
        "linear.dw",
        "bytes moved",
        "loads dy again for db",
        "tl.sum(grad.to(ACC), 1)",
        "tl.sum(tl.load(dy + p[None, :] * dy_stride + row[:, None], in_dy, other=0).to(ACC), 1)",
    ),
    Wrong("linear.dw", "bytes moved", "lets torch sum db", "return dw, db", "return dw, dy.sum(0)"),
]

# Caught where there is no GPU: the compiler refuses them, or tells.
CUDA_COMPILED = [
    Wrong("linear.tile_cuda", "compiles", "a syntax error", "float sum = 0;", "float sum = 0"),
    Wrong("linear.tile_cuda", "launches a kernel", "launches nothing", "    launch(", "    (lambda *_: None)("),
    Wrong("linear.tile_cuda", "tiles in shared memory", "a tile for each thread", "__shared__ float", "float"),
    Wrong(
        "linear.tile_cuda",
        "tiles in shared memory",
        "reads the weight from device memory",
        "weight_tile[j][p]",
        "(first_column + j < n && start + p < k ? (float)weight[(first_column + j) * weight_stride + start + p] : 0)",
    ),
]

# Caught where they run.
CUDA_RUN = [
    Wrong("linear.tile_cuda", "formula", "the weight not transposed", "weight_tile[j][p]", "weight_tile[p][j]"),
    Wrong(
        "linear.tile_cuda",
        "every tile",
        "rows of tiles as long as y is high",
        "tiles_n = (n + 15) / 16",
        "tiles_n = (m + 15) / 16",
    ),
    Wrong("linear.tile_cuda", "loop over k", "the first piece only", "start < k; start +=", "start < 16; start +="),
    Wrong(
        "linear.tile_cuda",
        "mask of the sum",
        "loads past the end of k",
        "first_row + i < m && start + j < k",
        "first_row + i < m",
    ),
    Wrong(
        "linear.tile_cuda",
        "mask of rows and columns",
        "stores past the last row",
        "if (first_row + i < m && first_column + j < n) y",
        "if (first_column + j < n) y",
    ),
    Wrong(
        "linear.tile_cuda",
        "row stride",
        "x's stride for the weight",
        "(first_column + i) * weight_stride",
        "(first_column + i) * x_stride",
    ),
    Wrong(
        "linear.tile_cuda",
        "accumulation dtype",
        "the sum in half precision",
        "sum += x_tile[i][p] * weight_tile[j][p]",
        "sum = (float)(T)(sum + x_tile[i][p] * weight_tile[j][p])",
    ),
]
