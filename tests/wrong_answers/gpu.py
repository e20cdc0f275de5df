"""Wrong answers to the exercises of the chapter on the GPU: the solution with one mistake, and what must catch it."""

from wrong_answers import Wrong

_SECTORS = "len({first // 32 for first in first_bytes})"
_PASSES = "max(banks.count(bank) for bank in banks)"
_BLOCKS = "min(2048 // threads, 32, by_registers, by_shared)"
_LOAD = "tl.load(x + row[:, None] * x_stride + column[None, :], mask)"
_STORE = "    tl.store(y + column[:, None] * rows + row[None, :], tl.trans(tile), tl.trans(mask))"
_MOVE = f"    tile = {_LOAD}\n{_STORE}"


def _one_at_a_time(index: str) -> str:
    """A line of the square after another, in the direction of `index`."""
    mine = f"    for i in range(BLOCK):\n        mine = mask & ({index} % BLOCK == i)\n"
    return mine + "".join(f"    {line}\n" for line in _MOVE.replace("mask", "mine").splitlines())


PYTHON = [
    Wrong("gpu.sectors", "runs", "a name that is not there", "lane * distance", "line * distance"),
    Wrong("gpu.sectors", "answers", "no return", f"return {_SECTORS}", _SECTORS),
    Wrong(
        "gpu.sectors",
        "no more than there are lanes",
        "the sectors of all that lies between",
        _SECTORS,
        "max(1, math.ceil(distance * bits / 8))",
    ),
    Wrong("gpu.sectors", "what lies between", "the wanted bytes alone", _SECTORS, "math.ceil(bits / 8)"),
    Wrong("gpu.sectors", "each sector once", "a sector for each lane", _SECTORS, "len(first_bytes)"),
    Wrong("gpu.sectors", "value", "sectors of 64 bytes", "first // 32", "first // 64"),
    Wrong("gpu.bank_passes", "some banks, not one", "all or nothing", _PASSES, "32 if pitch % 32 == 0 else 1"),
    Wrong("gpu.bank_passes", "passes, not banks", "counts the banks", _PASSES, "len(set(banks))"),
    Wrong("gpu.bank_passes", "words, not bytes", "a pitch in bytes", "lane * pitch % 32", "lane * pitch * 4 % 32"),
    Wrong("gpu.bank_passes", "value", "16 banks", "lane * pitch % 32", "lane * pitch % 16"),
    Wrong(
        "gpu.loads_in_flight", "of each multiprocessor", "one has them all", "(multiprocessors * threads)", "threads"
    ),
    Wrong("gpu.loads_in_flight", "16 bytes each", "bytes", "each / 16", "each"),
    Wrong("gpu.loads_in_flight", "whole loads", "rounds down", "math.ceil(each / 16)", "each // 16"),
    Wrong("gpu.loads_in_flight", "value", "loads of 32 bytes", "each / 16", "each / 32"),
    Wrong(
        "gpu.blocks", "registers are of a thread", "of a block", "65536 // (threads * registers)", "65536 // registers"
    ),
    Wrong("gpu.blocks", "no more than 32", "any number of blocks", "2048 // threads, 32,", "2048 // threads,"),
    Wrong("gpu.blocks", "room for the threads", "any number of threads", "min(2048 // threads, ", "min("),
    Wrong("gpu.blocks", "shared memory", "none of it", "by_registers, by_shared", "by_registers"),
    Wrong(
        "gpu.blocks",
        "whole blocks",
        "parts of a block",
        f"return {_BLOCKS}",
        "return min(2048 / threads, 32, 65536 / (threads * registers), 228 * 1024 / shared)",
    ),
    Wrong("gpu.blocks", "value", "what allows the most", _BLOCKS, _BLOCKS.replace("min", "max")),
]

TRITON = [
    Wrong("gpu.transpose", "formula", "not transposed", "tl.trans(tile), tl.trans(mask)", "tile, mask"),
    Wrong("gpu.transpose", "formula", "rows for columns", "column[:, None] * rows", "column[:, None] * columns"),
    Wrong("gpu.transpose", "neighbours together", "row after row", _MOVE, _one_at_a_time("row[:, None]")),
    Wrong("gpu.transpose", "neighbours together", "column by column", _MOVE, _one_at_a_time("column[None, :]")),
    Wrong("gpu.transpose", "mask", "masks no rows", "(row[:, None] < rows) & ", "(row[:, None] >= 0) & "),
    Wrong("gpu.transpose", "mask", "masks no columns", "(column[None, :] < columns)", "(column[None, :] >= 0)"),
    Wrong("gpu.transpose", "mask", "stores without a mask", "tl.trans(tile), tl.trans(mask))", "tl.trans(tile))"),
    Wrong("gpu.transpose", "row stride", "ignores x's stride", "row[:, None] * x_stride", "row[:, None] * columns"),
    Wrong("gpu.transpose", "every bit", "through float32", _LOAD, f"{_LOAD}.to(tl.float32)"),
    Wrong("gpu.transpose", "fresh outputs", "a view", "    return y\n", "    return x.T\n"),
    Wrong(
        "gpu.transpose",
        "bytes moved",
        "writes twice",
        _STORE,
        f"{_STORE.replace('tl.trans(tile)', 'tl.zeros_like(tl.trans(tile))')}\n    tl.debug_barrier()\n{_STORE}",
    ),
]
