"""What is particular to linear: decode and odd sizes, strides, the choice of kernels, and mistakes in kernels."""

import importlib.util
import inspect
from dataclasses import replace

import pytest
import torch
from rules import Poison, check_error, check_non_finite, random_grads, run, values_of
from test_compile import compiled
from test_numerics import BEST, DEVICE, HALF, HERE, ON_GPU

import lab
from lab.backends import registry
from lab.backends.cuda.compile import TensorMap
from lab.backends.dry_run import launches_of
from lab.backends.hardware import ARCHITECTURES, assume
from lab.backends.triton import linear as kernels
from lab.profiling import resources

LINEAR = registry.operator("linear")
LADDERS = {backend: registry.ladder("linear", backend) for backend in ("triton", "cuda")}
MANY_TILES = (1153, 600, 1000) if ON_GPU else (1060, 70, 5)
SPLIT = (16, 24, 3000) if ON_GPU else (16, 24, 300)
every = pytest.mark.parametrize("implementation", [rung for rung in HERE if rung.operator == "linear"], ids=str)
ours = pytest.mark.parametrize(
    "implementation", [rung for rung in HERE if rung.operator == "linear" and rung.backend in LADDERS], ids=str
)
bests = pytest.mark.parametrize("best", [best for (op, _), best in BEST.items() if op == "linear"], ids=str)


def rung(name: str, backend: str = "triton"):
    return next(each for each in LADDERS[backend] if each.rung == name)


def tried(shape, dtype, seed, bias=True):
    """Tensors and gradients."""
    x, weight, vector = LINEAR.make_inputs(shape, dtype, DEVICE, seed)
    tensors = (x, weight, vector if bias else None)
    return tensors, random_grads(LINEAR, tensors, seed)


@every
@pytest.mark.parametrize("dtype", [torch.float32, HALF[-1]], ids=str)
def test_decode(implementation, dtype, seed):
    """Few rows, as a model has them that writes one token at a time, with a bias and without."""
    for m in range(1, 65) if ON_GPU else (1, 17, 64):
        for bias in (True, False):
            check_error(implementation, *tried((m, 48, 80), dtype, seed, bias))


@bests
@pytest.mark.parametrize("dtype", [torch.float32, HALF[0]], ids=str)
def test_odd_sizes(best, dtype, seed):
    sizes = (1, 2, 17, 33, 127, 129) if ON_GPU else (1, 17, 129)
    for n in sizes:
        for k in sizes:
            check_error(best, *tried((33, n, k), dtype, seed, bias=n > k))


@every
@pytest.mark.parametrize("dtype", [torch.float32, HALF[-1]], ids=str)
def test_many_tiles(implementation, dtype, seed):
    """More rows of tiles than a group has, so that the last group is lower, and more tiles than programs."""
    check_error(implementation, *tried(MANY_TILES, dtype, seed))


@every
def test_without_bias_compiled(implementation, seed):
    tensors, grads = tried((17, 33, 64), torch.float32, seed, bias=False)
    function = lab.get_op("linear", str(implementation))
    eager, found = run(function, tensors, grads), run(compiled(function), tensors, grads)
    assert eager.keys() == found.keys() == {"y", "dx", "dweight"}
    for name, value in values_of(LINEAR, tensors, grads).items():
        assert torch.allclose(eager[name].double(), value, rtol=1e-4, atol=1e-4), name
        assert torch.allclose(found[name].double(), value, rtol=1e-4, atol=1e-4), name
    torch._dynamo.reset()


@bests
def test_long_sums_of_positive_numbers(best, seed):
    """In half precision a long sum takes even numbers only, and every step of this one would be rounded up."""
    x, weight, bias = LINEAR.make_inputs((3, 5, 5000), HALF[0], DEVICE, seed)
    x, weight = torch.full_like(x, 0.99), torch.ones_like(weight)
    check_error(best, (x, weight, bias), random_grads(LINEAR, (x, weight, bias), seed))


@ours
def test_a_sum_may_be_larger_than_float16_on_its_way(implementation):
    """float32 has each of these sums exactly; float16 has infinity from 16 terms of one sign on. (PyTorch may add up in
    float16 what its splits have summed.)"""
    x = torch.full((3, 1024), 64.0, dtype=torch.float16, device=DEVICE)
    weight = torch.cat([x[:, :512], -x[:, :512]], dim=1)
    weight[:, -1] = -63
    y = lab.get_op("linear", str(implementation))(x, weight)
    assert torch.equal(y, torch.full_like(y, 64))


@ours
def test_a_bias_gradient_may_be_larger_than_float16_on_its_way(implementation):
    """Here two terms of one sign are enough."""
    x, weight, bias = (torch.zeros(*shape, dtype=torch.float16, device=DEVICE) for shape in ((1024, 8), (5, 8), (5,)))
    dy = torch.full((1024, 5), 40000.0, dtype=torch.float16, device=DEVICE)
    dy[512:] *= -1
    dy[-1] = -39968
    lab.get_op("linear", str(implementation))(x, weight, bias.requires_grad_()).backward(dy)
    assert torch.equal(bias.grad, torch.full_like(bias, 32))


@every
@pytest.mark.parametrize("shape", [(3, 0, 7), (3, 5, 0), (0, 5, 7), (0, 0, 0), (2, 0, 0)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_empty(implementation, shape, bias, seed):
    """As PyTorch's: where there is nothing to sum, y is the bias, or 0."""
    tensors, grads = tried(shape, torch.float32, seed, bias)
    ours, torchs = (run(lab.get_op("linear", str(each)), tensors, grads) for each in (implementation, "torch"))
    assert ours.keys() == torchs.keys()
    for name, value in torchs.items():
        torch.testing.assert_close(ours[name], value, msg=name)


# Strides ------------------------------------------------------------------------------------------------------------


def in_a_sea_of_nan(tensor: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The same values amid others that are NaN."""
    tensor = tensor.mT if transposed else tensor
    rows, columns = tensor.shape
    sea = torch.full((rows + 600, columns + 600), torch.nan, dtype=tensor.dtype, device=tensor.device)
    sea[300 : 300 + rows, 300 : 300 + columns] = tensor
    found = sea[300 : 300 + rows, 300 : 300 + columns]
    return found.mT if transposed else found


def check_in_a_sea_of_nan(implementation, shape, seed):
    (x, weight, bias), grads = tried(shape, torch.float32, seed)
    for of_x, of_weight in ((False, False), (False, True), (True, False), (True, True)):
        tensors = in_a_sea_of_nan(x, of_x), in_a_sea_of_nan(weight, of_weight), bias
        check_error(implementation, tensors, [in_a_sea_of_nan(grad, of_weight) for grad in grads])


@every
@pytest.mark.parametrize("shape", [(17, 33, 65), *([(64, 48, 32), (130, 16, 500)] if ON_GPU else [])], ids=str)
def test_nothing_outside_is_used(implementation, shape, seed):
    check_in_a_sea_of_nan(implementation, shape, seed)


def test_a_transpose_is_not_copied():
    x, weight = torch.randn(7, 5, device=DEVICE).mT, torch.randn(7, 9, device=DEVICE).mT
    for tensor, canonical in zip((x, weight), LINEAR.canonical(x, weight, None)):
        assert canonical.data_ptr() == tensor.data_ptr() and canonical.stride() == tensor.stride()
    strided = torch.randn(5, 14, device=DEVICE)[:, ::2]
    assert LINEAR.canonical(strided, weight, None)[0].stride() == (7, 1)


@every
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
def test_non_finite_inputs(implementation, value, seed):
    """They reach the sums that they are in, and no other."""
    (x, weight, bias), grads = tried((33, 17, 65), torch.float32, seed)
    x[5, 64] = weight[16, 3] = bias[2] = grads[0][32, 1] = value
    check_non_finite(implementation, (x, weight, bias), grads)


def check_many_rows(implementation, shape, dtype, seed, chunk):
    """The last rows of y and dx, and all of dweight and dbias, the reference made `chunk` rows at a time. The bound is
    without PyTorch's own error."""
    (x, weight, bias), (dy,) = tried(shape, dtype, seed)
    (y,) = implementation.forward(x, weight, bias)
    dx, dweight, dbias = implementation.backward(dy, x, weight, bias)
    found = {"y": y[-3:], "dx": dx[-3:], "dweight": dweight, "dbias": dbias}
    parts = [
        (dy[start : start + chunk].double(), x[start : start + chunk].double()) for start in range(0, len(x), chunk)
    ]
    last_dy, last_x, weight, bias = (tensor.double() for tensor in (dy[-3:], x[-3:], weight, bias))

    def values(of):
        return {
            "y": of(last_x) @ of(weight).mT + of(bias),
            "dx": of(last_dy) @ of(weight),
            "dweight": sum(of(of_dy).mT @ of(of_x) for of_dy, of_x in parts),
            "dbias": sum(of(of_dy).sum(0) for of_dy, _ in parts),
        }

    terms = values(torch.abs)
    for name, value in values(lambda tensor: tensor).items():
        bound = 4 * torch.finfo(dtype).eps * terms[name] + torch.finfo(dtype).smallest_normal
        off = ~((found[name].double() - value).abs() <= bound)
        assert not off.any(), f"{implementation}: {name} is off in {int(off.sum())} of {off.numel()} elements"


@pytest.mark.gpu
@pytest.mark.parametrize("n, k", [(64, 64), (8, 128)])
@bests
def test_more_than_2_to_the_31_elements(best, n, k, seed, much_memory):
    if best.has_passes:
        check_many_rows(best, (2**31 // max(n, k) + 3, n, k), torch.bfloat16, seed, chunk=1 << 20)


@pytest.mark.cpu
@bests
def test_many_rows_are_checked_as_more_than_2_to_the_31_elements_are(best, seed):
    check_many_rows(best, (37, 6, 9), torch.float32, seed, chunk=10)


# The choice of kernels ----------------------------------------------------------------------------------------------


def launched(backend: str, shape, arch: str, direction: str) -> list[str]:
    """What the best rung launches in bfloat16 (float16 before Ampere), in words."""
    dtype = torch.float16 if arch == "sm_75" else torch.bfloat16
    best = [rung for rung in LADDERS[backend] if lacks_nothing(rung, arch)][-1]
    launches = launches_of(best, shape, dtype, direction, ARCHITECTURES[arch])
    return [launch.kernel.partition("<")[0].removeprefix("_").removeprefix("linear_") for launch in launches]


def lacks_nothing(implementation, arch: str) -> bool:
    """Whether the GPU is one that the rung runs on, if any GPU is there or not."""
    with assume(ARCHITECTURES[arch]):
        return "compute capability" not in (implementation.unavailable(torch.device("cuda")) or "")


@pytest.mark.parametrize(
    "backend, shape, arch, direction, kernels",
    [
        ("triton", (8192, 4096, 4096), "sm_90", "forward", ["persistent"]),
        ("triton", (8192, 4096, 4096), "sm_90", "backward", [*["persistent"] * 2, *["column_sums"] * 2]),
        ("triton", (8192, 4096, 4096), "sm_80", "forward", ["tiled"]),
        ("triton", (16, 14336, 4096), "sm_90", "forward", ["tiled"]),
        ("triton", (16, 14336, 4096), "sm_90", "backward", ["split", "add_splits", "tiled", *["column_sums"] * 2]),
        ("triton", (16, 4096, 4096), "sm_90", "forward", ["split", "add_splits"]),
        ("triton", (256, 4096, 4096), "sm_90", "forward", ["split", "add_splits"]),
        ("triton", (8192, 64, 64), "sm_75", "backward", ["tiled", "split", "add_splits", *["column_sums"] * 2]),
        ("cuda", (8192, 4096, 4096), "sm_90", "backward", [*["wgmma"] * 2, *["column_sums"] * 2]),
        ("cuda", (16, 4096, 4096), "sm_90", "forward", ["wgmma", "add_splits"]),
        ("cuda", (16, 14336, 4096), "sm_90", "backward", ["wgmma", "add_splits", "wgmma", "column_sums"]),
        ("cuda", (8192, 4096, 4096), "sm_100", "forward", ["mma"]),
        ("cuda", (8192, 4096, 4096), "sm_75", "forward", ["register"]),
    ],
)
def test_the_best_rung_chooses_by_shape_and_gpu(backend, shape, arch, direction, kernels):
    assert launched(backend, shape, arch, direction) == kernels


@pytest.mark.parametrize("k", [64, 300, 1000, 4096, 14336])
def test_a_split_takes_four_steps_at_least(k):
    """Fewer are not worth the partial sums that they leave."""
    gpu = ARCHITECTURES["sm_90"]
    tile = kernels.plan(16, 24, k, torch.bfloat16, gpu, True)
    assert kernels._split(tile, 16, 24, k, gpu) >= min(k, 4 * tile.BLOCK_K)


@pytest.mark.parametrize("name", ["mma", "wgmma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensor_cores_have_no_products_of_float32_and_float64(name, dtype):
    launches = launches_of(rung(name, "cuda"), (64, 64, 64), dtype, "forward", ARCHITECTURES["sm_90"])
    assert [launch.kernel.partition("<")[0] for launch in launches] == ["linear_register"]


@pytest.mark.parametrize("name", ["mma", "wgmma"])
@pytest.mark.parametrize(
    "shape",
    [
        (8192, 4096, 4096),
        (16, 14336, 4096),
        (1, 1, 1),
        (64, 100, 9000),
        (4099, 4097, 4001),
        (300, 24, 8),
        (70, 5, 50000),
    ],
    ids=str,
)
def test_what_is_launched_fits_the_gpu(name, shape):
    """Shared memory, clusters, and what TMA asks of a matrix; and what is split adds up to k."""
    for arch, gpu in ARCHITECTURES.items():
        if not lacks_nothing(rung(name, "cuda"), arch):
            continue
        for launch in launches_of(rung(name, "cuda"), shape, torch.bfloat16, "both", gpu):
            assert launch.options["shared"] <= gpu.shared_memory and launch.options["block"] <= 1024
            assert launch.grid[0] > 0 and launch.grid[0] % launch.options["cluster"] == 0
            maps = [value for value in launch.arguments.values() if isinstance(value, TensorMap)]
            assert bool(maps) == ("wgmma" in launch.kernel)
            for matrix in (each.matrix for each in maps):
                assert matrix.stride(1) == 1 and matrix.stride(0) * matrix.element_size() % 16 == 0
                assert matrix.stride(0) >= matrix.shape[1] and matrix.data_ptr() % 16 == 0
            if maps:
                m, along_k = launch.arguments["5"], launch.kernel.split(", ")[1:3]
                assert maps[0].box == (min(m, 64) if along_k[0] == "true" else 64, 64) and maps[1].box == (64, 64)
                assert [each.wide for each in maps[:2]] == [m > 64 or along == "false" for along in along_k]
                _, _, _, _, _, _, _, k, depth, _ = launch.arguments.values()
                splits = launch.arguments["0"].shape[0] if "SPLIT" in launch.kernel else 1
                assert depth == k or depth % 64 == 0
                assert (splits - 1) * depth < k <= splits * depth


def test_a_gpu_that_is_not_in_the_table_has_the_tiles_of_the_one_before():
    for capability, like in (((8, 7), "sm_86"), ((10, 3), "sm_100"), ((12, 1), "sm_120"), ((7, 0), "sm_75")):
        gpu = replace(ARCHITECTURES[like], capability=capability)
        for m, k in ((16, 4096), (4096, 4096), (4096, 16)):
            planned = (kernels.plan(m, 4096, k, torch.float16, each) for each in (gpu, ARCHITECTURES[like]))
            assert len(set(planned)) == 1, capability


@pytest.mark.parametrize(
    "backend, name, needs, architectures",
    [
        ("triton", "persistent", "9.0", {"sm_90", "sm_100", "sm_120"}),
        ("triton", "specialized", "9.0", {"sm_90"}),
        ("cuda", "mma", "8.0", set(ARCHITECTURES) - {"sm_75"}),
        ("cuda", "wgmma", "9.0", {"sm_90"}),
    ],
)
def test_rungs_that_need_a_gpu_of_some_kind_say_so(backend, name, needs, architectures):
    for arch, gpu in ARCHITECTURES.items():
        with assume(gpu):
            reason = rung(name, backend).unavailable(torch.device("cuda")) or ""
        assert (f"compute capability {needs}" in reason) == (arch not in architectures), arch


@pytest.mark.cpu
def test_odd_sizes_compile_too_and_fit():
    rows = resources.measure(["linear"], (4099, 4097, 4001), ("sm_90",), progress=False).rows
    assert {row.implementation for row in rows} == {str(rung) for ladder in LADDERS.values() for rung in ladder}
    for row in rows:
        assert row.shared <= ARCHITECTURES[row.arch].shared_memory + 1024, row
        assert row.spilled <= 32, row


@bests
def test_split_sums_are_the_same_in_every_run(best, seed):
    tensors, grads = tried(SPLIT, torch.float32, seed)
    first, second = (run(lab.get_op("linear", str(best)), tensors, grads) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# Mistakes in kernels, planted in their text: each must be noticed --------------------------------------------------


def check_layout(implementation, seed):
    (x, weight, bias), grads = tried((17, 33, 65), torch.float32, seed)
    wider = torch.nn.functional.pad(x, (0, 16))[:, :65]
    check_error(implementation, (wider, weight, bias), grads)


def check(shape):
    return lambda implementation, seed: check_error(implementation, *tried(shape, torch.float32, seed))


MISTAKES = {  # the rung that has it, the text, what is there instead, and the check that notices
    "no mask along k": (
        "naive", "(row < m) & (along_a < k)", "row < m",
        lambda rung, seed: check_in_a_sea_of_nan(rung, (9, 9, 9), seed)),
    "no mask along k where it is needed": (
        "tiled", "WHOLE=k % tile.BLOCK_K == 0", "WHOLE=True",
        lambda rung, seed: check_in_a_sea_of_nan(rung, (9, 9, 9), seed)),
    "no mask along n": (
        "naive", "tl.store(c + row * n + column, acc, (row < m) & (column < n))",
        "tl.store(c + row * n + column, acc, (row < m - 1) | ((row < m) & (column < n)))",
        check((17, 33, 33))),  # of the last row the mask is kept: past it lies other memory
    "a last group as high as the others": (
        "grouped", "height = tl.minimum(tiles_m - first, GROUP)", "height = GROUP", check(MANY_TILES)),
    "sums in half precision": (
        "pipelined", 'acc = tl.dot(left, right, acc, input_precision="ieee", out_dtype=ACC)',
        "acc = tl.dot(left, right, acc, out_dtype=ACC).to(left.dtype).to(ACC)", test_long_sums_of_positive_numbers),
    "the sums of splits in half precision": (
        "split_k", "partial = a.new_empty(splits, m, n, dtype=accumulation_dtype(a.dtype))",
        "partial = a.new_empty(splits, m, n)",
        lambda rung, seed: test_a_sum_may_be_larger_than_float16_on_its_way(rung)),
    "the sums of slabs in half precision": (
        "tiled", "partial = x.new_empty(triton.cdiv(rows, slab), columns, dtype=accumulation_dtype(x.dtype))",
        "partial = x.new_empty(triton.cdiv(rows, slab), columns)",
        lambda rung, seed: test_a_bias_gradient_may_be_larger_than_float16_on_its_way(rung)),
    "the last split left out": (
        "split_k", "for split in range(splits)", "for split in range(splits - 1)", check(SPLIT)),
    "a split too deep": (
        "split_k", "last = tl.minimum(first + depth, k)", "last = k", check(SPLIT)),
    "the bias in every row but its own column": (
        "split_k", "bias + element % n", "bias + element // n % n", check(SPLIT)),
    "half of a tile written twice": ("persistent", "column + WIDTH]", "column]", check((65, 127, 129))),
    "only the first tile of a program": (
        "persistent", "tl.program_id(0), tiles, tl.num_programs(0), flatten", "tl.program_id(0), 2, 2, flatten",
        check(MANY_TILES)),
    "dweight transposed": ("naive", "product(dy.mT, x)", "product(x.mT, dy)", check((17, 33, 65))),
    "dbias over the wrong axis": ("naive", "sums(dy)", "sums(dy.mT.contiguous())", check((33, 33, 65))),
    "slabs that leave out their last rows": (
        "tiled", "first + slab, rows)", "first + slab - 1, rows)", check((129, 9, 9))),
    "the stride of x ignored": ("naive", "a + row * a_row", "a + row * k", check_layout),
}  # fmt: skip


@pytest.mark.cpu
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(mistake, seed, tmp_path):
    name, text, instead, check = MISTAKES[mistake]
    source = inspect.getsource(kernels)
    assert text in source, text
    path = tmp_path / "mistaken.py"
    path.write_text(source.replace(text, instead))
    spec = importlib.util.spec_from_file_location("mistaken", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    registry.register_backend("wrong", {"linear": [each for each in module.LADDER if each.rung == name]})
    try:
        check(rung(name), seed)  # which the kernels as they are pass
        with Poison(), pytest.raises(AssertionError):  # or memory would still hold what the kernels above left there
            check(registry.ladder("linear", "wrong")[0], seed)
    finally:
        del registry._ladders["wrong"]
        vars(registry._bound).clear()
