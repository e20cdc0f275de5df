"""One suite, two processes: where no GPU is visible it runs on the CPU, Triton in its interpreter; where one is, on it.

    CUDA_VISIBLE_DEVICES= python -m pytest     the CPU suite
    python -m pytest                           the GPU suite, on a machine with a GPU

Every session draws the same random data, so that no commit passes or fails by luck; LAB_TEST_SEED=N draws other data.
"""

import fcntl
import os

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each of xdist's workers would start a pool of its own

import pytest
import torch

import lab  # noqa: F401  before anything imports Triton: it switches the interpreter on where there is no GPU
from lab.backends.hardware import default_device

collect_ignore = ["book"] if torch.cuda.is_available() else []  # needs packages that a GPU machine may lack

SEED = int(os.environ.get("LAB_TEST_SEED", 0))


def pytest_report_header(config):
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: CPU, Triton in its interpreter"
    return f"lab: {where}; LAB_TEST_SEED={SEED}"


def pytest_collection_modifyitems(config, items):
    """`cpu` tests need the interpreter or test the book and the packaging: not part of the GPU suite at all. `gpu`
    tests are skipped without a GPU, and say so."""
    there = torch.cuda.is_available()
    left_out = [item for item in items if there and item.get_closest_marker("cpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if not there:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and this machine has none"))


@pytest.fixture(autouse=True)
def give_memory_back():
    """Several processes share the GPU: none keeps what its last test needed."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def much_memory(tmp_path_factory):
    """Up to 70 GB of the GPU, of which one test at a time has need."""
    if torch.cuda.get_device_properties(0).total_memory < 70e9:
        pytest.skip("needs 70 GB of GPU memory")
    with open(tmp_path_factory.getbasetemp().parent / "one_at_a_time", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.empty_cache()
        yield
        torch.cuda.empty_cache()


@pytest.fixture
def device() -> torch.device:
    return default_device()


@pytest.fixture(autouse=True)
def seed(request) -> int:
    """Each test has its own, whichever tests run before it; torch's generators begin with it."""
    seed = SEED + sum(map(ord, request.node.nodeid))
    torch.manual_seed(seed)
    return seed
