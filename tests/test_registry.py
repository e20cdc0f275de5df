import json
from dataclasses import replace

import pytest
import torch

import lab
from lab.backends import registry
from lab.backends.hardware import default_device
from lab.backends.implementation import BackendUnavailable, Implementation

ON_GPU = torch.cuda.is_available()


@pytest.fixture
def mine():
    """A user's own backend, which scales torch's result, and is gone after the test."""
    torchs = registry.ladder("rmsnorm", "torch")[-1]

    def scaled(factor):
        def forward(x, weight, eps):
            y, rstd = torchs.forward(x, weight, eps)
            return factor * y, rstd

        return forward

    lab.register_backend(
        "mine",
        {
            "rmsnorm": [
                Implementation(scaled(2), torchs.backward, "twice"),
                Implementation(scaled(3), torchs.backward, "thrice"),
            ]
        },
    )
    yield
    del registry._ladders["mine"]
    vars(registry._bound).clear()


def inputs():
    return registry.operator("rmsnorm").make_inputs((2, 8), torch.float32, default_device())


def ran(function, *tensors) -> list[str]:
    with lab.trace() as calls:
        function(*tensors)
    return [f"{call.operator}={call.backend}:{call.rung} {call.direction}" for call in calls]


def test_built_in_operators_and_ladders():
    assert {"rmsnorm", "add_rmsnorm", "softmax"} <= set(registry.operators())
    assert registry.backends()[:3] == ["torch", "triton", "cuda"]
    for op in ("rmsnorm", "add_rmsnorm", "softmax"):
        assert len(registry.ladder(op, "triton")) >= 4 and len(registry.ladder(op, "cuda")) >= 3
        assert registry.ladder(op, "triton")[0].rung == "naive"
        for rung in registry.implementations(op):
            assert rung.change and (rung.operator, rung.backend) == (op, str(rung).split(":")[0])


def test_backend_name_alone_is_the_best_rung():
    best = registry.ladder("rmsnorm", "triton")[-1]
    assert ran(lab.get_op("rmsnorm", "triton"), *inputs()) == [f"rmsnorm={best} forward"]


def test_a_rung_by_name():
    assert ran(lab.get_op("rmsnorm", "triton:naive"), *inputs()) == ["rmsnorm=triton:naive forward"]


def test_one_choice_for_several_operators():
    choice = "torch,rmsnorm=triton:fused"
    x, weight = inputs()
    assert ran(lab.get_op("rmsnorm", choice), x, weight) == ["rmsnorm=triton:fused forward"]
    assert ran(lab.get_op("add_rmsnorm", choice), x, x, weight) == ["add_rmsnorm=torch:eager forward"]


def test_public_function_takes_the_same_choice():
    x, weight = inputs()
    assert ran(lambda: lab.ops.rmsnorm(x, weight, backend="triton:naive")) == ["rmsnorm=triton:naive forward"]
    assert torch.equal(
        lab.ops.rmsnorm(x, weight, 1e-3, backend="torch"), lab.get_op("rmsnorm", "torch")(x, weight, eps=1e-3)
    )


def test_both_passes_are_traced():
    x, weight = inputs()
    with lab.trace() as calls:
        lab.get_op("rmsnorm", "triton")(x.requires_grad_(), weight).sum().backward()
    assert [call.direction for call in calls] == ["forward", "backward"]
    with lab.trace() as none:
        pass
    assert none == []


def test_traces_in_one_another():
    """Each has what ran inside of it, though both may hold the same for a while."""
    (x, weight), function = inputs(), lab.get_op("rmsnorm", "torch")
    with lab.trace() as outer:
        with lab.trace() as inner:
            function(x, weight)
        function(x, weight)
    function(x, weight)
    assert (len(outer), len(inner)) == (2, 1)


def test_a_users_own_backend(mine):
    x, weight = inputs()
    torchs = lab.get_op("rmsnorm", "torch")(x, weight)
    assert torch.allclose(lab.get_op("rmsnorm", "mine")(x, weight), 3 * torchs)
    assert torch.allclose(lab.get_op("rmsnorm", "mine:twice")(x, weight), 2 * torchs)
    with pytest.raises(BackendUnavailable, match="does not implement 'add_rmsnorm'"):
        lab.get_op("add_rmsnorm", "mine")


def test_registering_again_replaces(mine):
    torchs = registry.ladder("rmsnorm", "torch")[-1]
    lab.get_op("rmsnorm", "mine")
    lab.register_backend("mine", {"rmsnorm": Implementation(torchs.forward, torchs.backward, "plain")})
    x, weight = inputs()
    assert ran(lab.get_op("rmsnorm", "mine"), x, weight) == ["rmsnorm=mine:plain forward"]


@pytest.mark.parametrize("name", ["auto", "a b", ""])
def test_malformed_backend_names(name):
    with pytest.raises(ValueError, match="name is"):
        lab.register_backend(name, {})


def test_rungs_have_distinct_names():
    rung = registry.ladder("rmsnorm", "torch")[-1]
    with pytest.raises(ValueError, match="expected distinct names"):
        lab.register_backend("mine", {"rmsnorm": [rung, rung]})
    with pytest.raises(ValueError, match="expected distinct names"):
        lab.register_backend("mine", {"rmsnorm": []})


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("nothing", "unknown backend 'nothing'; expected one of auto, torch, triton, cuda"),
        ("triton:nothing", "unknown rung 'nothing' of backend 'triton'; expected one of"),
        ("torch,nothing=triton", "unknown operator 'nothing'; expected one of"),
        ("torch,triton", "names a default twice"),
        ("rmsnorm=torch,rmsnorm=triton", "names rmsnorm twice"),
    ],
)
def test_bad_choices(choice, says):
    with pytest.raises(ValueError, match=says):
        lab.get_op("rmsnorm", choice)


def test_a_choice_is_text():
    with pytest.raises(TypeError, match='backend is 3; expected a choice such as "triton"'):
        lab.ops.rmsnorm(*inputs(), backend=3)


def test_blanks_in_a_choice():
    assert registry.parse_choice(" torch , rmsnorm = triton ") == {"": "torch", "rmsnorm": "triton"}


def test_unknown_operator():
    with pytest.raises(ValueError, match="unknown operator 'nothing'; expected one of add_rmsnorm, attention, "):
        lab.get_op("nothing")


@pytest.mark.cpu
def test_what_cannot_run_says_why():
    with pytest.raises(BackendUnavailable, match="CUDA C\\+\\+ runs on a GPU only, and this machine has none"):
        lab.get_op("rmsnorm", "cuda")
    with pytest.raises(BackendUnavailable, match="cuda:naive"):
        lab.get_op("rmsnorm", "cuda:naive")


@pytest.mark.cpu
def test_auto_on_the_cpu_is_torch():
    resolved = registry.resolve("rmsnorm")
    assert str(resolved.implementation) == "torch:eager" and resolved.reason == "auto: torch on cpu tensors"


def test_auto_on_a_gpu_follows_the_record(monkeypatch):
    from lab.backends import hardware

    gpu = hardware.ARCHITECTURES["sm_90"]
    with hardware.assume(gpu):
        monkeypatch.setattr(registry, "preferences", lambda: {gpu.name: {"rmsnorm": "triton"}})
        ladder = registry.ladder("rmsnorm", "triton")
        runs = tuple(
            Implementation(r.forward, r.backward, r.rung, backend="triton", operator="rmsnorm") for r in ladder
        )
        monkeypatch.setitem(registry._ladders["triton"], "rmsnorm", runs)
        resolved = registry.resolve("rmsnorm", "auto", torch.device("cuda"))
        assert resolved.implementation.backend == "triton" and "fastest in the record of H100" in resolved.reason
        monkeypatch.setattr(registry, "preferences", dict)
        assert "no record of H100" in registry.resolve("rmsnorm", "auto", torch.device("cuda")).reason


def test_auto_takes_another_where_the_recorded_one_cannot_run_and_says_so(monkeypatch):
    from lab.backends import hardware

    def ladder(backend, reason):
        rung = registry.ladder("rmsnorm", backend)[0]
        return tuple(replace(rung, rung=name, unavailable=lambda device: reason) for name in ("first", "second"))

    monkeypatch.setitem(registry._ladders["cuda"], "rmsnorm", ladder("cuda", "needs a compiler"))
    monkeypatch.setitem(registry._ladders["triton"], "rmsnorm", ladder("triton", None))
    gpu = hardware.ARCHITECTURES["sm_90"]
    monkeypatch.setattr(registry, "preferences", lambda: {gpu.name: {"rmsnorm": "cuda"}})
    with hardware.assume(gpu):
        resolved = registry.resolve("rmsnorm", "auto", torch.device("cuda"))
    assert str(resolved.implementation) == "triton:second"
    assert resolved.reason == (
        "auto: cuda was the fastest in the record of H100, and cannot run here: "
        "rmsnorm on cuda: second, first: needs a compiler"
    )


@pytest.mark.gpu
def test_auto_on_this_gpu_says_what_it_picked():
    resolved = registry.resolve("rmsnorm")
    assert resolved.implementation.backend in ("triton", "cuda") and resolved.reason.startswith("auto: ")
    x, weight = inputs()
    assert ran(lab.get_op("rmsnorm"), x, weight) == [f"rmsnorm={resolved.implementation} forward"]


def test_preferences_name_what_there_is():
    for gpu, choices in registry.preferences().items():
        assert gpu
        for op, backend in choices.items():
            assert registry.ladder(op, backend), json.dumps(choices)


def test_hopper_rungs_are_not_offered_before_hopper():
    from lab.backends import hardware

    pipelined = registry.ladder("rmsnorm", "cuda")[-1]
    with hardware.assume(hardware.ARCHITECTURES["sm_80"]):
        assert "compute capability 9.0" in pipelined.unavailable(torch.device("cuda"))
        assert registry.resolve("rmsnorm", "cuda", torch.device("cuda")).implementation.rung == "one_pass"
    with hardware.assume(hardware.ARCHITECTURES["sm_90"]):
        assert registry.resolve("rmsnorm", "cuda", torch.device("cuda")).implementation.rung == "pipelined"
