"""The exercises of the chapter on the model: what each asks for, and the cases that tell what is wrong with an answer.

They are plain PyTorch: no kernel is asked for, and no bytes are counted. Where precision is not the matter, a result
that float16 would have rounded to is right: what such a property catches is never the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lab.backends.registry import resolve
from lab.check import rows
from lab.check.exercise import Case, Exercise, Expectation, Kind, Property, Target, allowed_error
from lab.ops.attention import OPERATOR as ATTENTION
from lab.ops.decode_attention import OPERATOR as DECODE_ATTENTION
from lab.ops.rope import OPERATOR as ROPE

# inputs ---------------------------------------------------------------------------------------------------------------


def _random(case: Case, **shapes: Sequence[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(case.seed)
    drawn = {name: torch.randn(*shape, generator=generator, dtype=rows.DOUBLE) for name, shape in shapes.items()}
    return {name: values.to(case.dtype) for name, values in drawn.items()}


def _angles(case: Case, positions: int, head_dim: int) -> dict[str, Tensor]:
    """cos and sin of random angles: near 0, where real ones begin, a mistake would hardly show."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    angles = 2 * math.pi * torch.rand(positions, head_dim // 2, generator=generator, dtype=rows.DOUBLE)
    return {"cos": angles.cos().to(case.dtype), "sin": angles.sin().to(case.dtype)}


def _rope_inputs(case: Case) -> dict[str, Tensor]:
    _, positions, _, head_dim = case.shape
    return _random(case, q=case.shape) | _angles(case, positions, head_dim)


def _attention_inputs(case: Case) -> dict[str, Tensor]:
    return dict(zip("qkv", ATTENTION.make_inputs(case.shape, case.dtype, seed=case.seed), strict=True))


def _cache_inputs(case: Case) -> dict[str, Tensor]:
    batch, kv_heads, capacity, new, head_dim = case.shape
    cache, more = (batch, kv_heads, capacity, head_dim), (batch, kv_heads, new, head_dim)
    tensors = _random(case, k_cache=cache, v_cache=cache, k=more, v=more)
    return {**tensors, "lengths": torch.zeros(batch, dtype=torch.int64)}


def _decode_inputs(case: Case) -> dict[str, Tensor]:
    batch, heads, kv_heads, capacity, head_dim = case.shape
    cache, new = (batch, kv_heads, capacity, head_dim), (batch, kv_heads, head_dim)
    tensors = _random(case, q=(batch, heads, head_dim), k=new, v=new, k_cache=cache, v_cache=cache)
    lengths = torch.zeros(batch, dtype=torch.int64)
    return {**tensors, **_angles(case, capacity, head_dim), "lengths": lengths}


def _lengths(*lengths: int) -> Callable[[dict[str, Tensor]], None]:
    def prepare(tensors: dict[str, Tensor]) -> None:
        tensors["lengths"].copy_(torch.tensor(lengths))

    return prepare


def _one_number(index: int) -> Callable[[dict[str, Tensor]], None]:
    """q is 0 but for one element of each head."""

    def prepare(tensors: dict[str, Tensor]) -> None:
        tensors["q"].zero_()[..., index] = 1

    return prepare


def _value_of_the_last_key(tensors: dict[str, Tensor]) -> None:
    tensors["v"][..., :-1, :] = 0


def _positions_first(tensors: dict[str, Tensor]) -> None:
    """In memory each position's heads are neighbours, as the projections to q, k and v leave them."""
    for name in "qkv":
        tensors[name] = tensors[name].transpose(1, 2).contiguous().transpose(1, 2)


def _part_of_a_larger_cache(*lengths: int) -> Callable[[dict[str, Tensor]], None]:
    def prepare(tensors: dict[str, Tensor]) -> None:
        _lengths(*lengths)(tensors)
        for name in ("k_cache", "v_cache"):
            batch, heads, capacity, head_dim = tensors[name].shape
            larger = tensors[name].new_zeros(batch, heads + 1, capacity + 3, head_dim)
            larger[:, :heads, :capacity] = tensors[name]
            tensors[name] = larger[:, :heads, :capacity]

    return prepare


# what should come of them ---------------------------------------------------------------------------------------------


def _torchs(op: str, *arguments):
    """What PyTorch makes of it, in the arguments' own dtype."""
    function = resolve(op, "torch", arguments[0].device).implementation.function
    assert function is not None
    return function(*arguments)


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors)


def _exactly(value: Tensor) -> Target:
    (value,) = _wide(value)
    return Target(value, torch.zeros_like(value, dtype=rows.DOUBLE))


def _loosely(strict: Expectation) -> Expectation:
    """Eight units of float16's roundoff of the largest number are allowed on top."""

    def expect(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
        unit = torch.finfo(rows.HALF).eps / 2
        targets = strict(arguments, outputs).items()
        return {name: Target(value, allowed + 8 * unit * value.abs().max()) for name, (value, allowed) in targets}

    return expect


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Target:
    """x (batch, positions, heads, head_dim) by RoPE."""
    wide = _wide(x, x, cos, sin)
    (terms, _), _ = ROPE.term_sums(wide, wide[:2], x.dtype)
    return allowed_error(ROPE.reference(*wide)[0], _torchs("rope", x, x, cos, sin)[0], terms)


def _rope(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    return {"turned": _turned(*(arguments[name] for name in ("q", "cos", "sin")))}


def _only_its_pair(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    """What one number of q is turned into lies where it was, and half a head away; the rest stays 0."""
    here = arguments["q"] != 0
    allowed = torch.zeros_like(here, dtype=rows.DOUBLE)
    allowed[here | here.roll(here.shape[-1] // 2, -1)] = math.inf
    return {"turned": Target(torch.zeros_like(allowed), allowed)}


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """(batch, heads, queries, 1): the largest sum of the absolute terms of a score. Its roundoff is a relative error of
    all weights."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (q.abs() @ k.abs().mT).amax(-1, keepdim=True) * q.shape[-1] ** -0.5


def _attention(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    given = tuple(arguments[name] for name in "qkv")
    q, k, v = _wide(*given)
    terms = ATTENTION.reference(q, k, v.abs()) * (1 + 2 * _scores(q, k))
    return {"y": allowed_error(ATTENTION.reference(q, k, v), _torchs("attention", *given, True, None), terms)}


def _no_future(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    """Only the last key has a value, and only the last query sees it."""
    allowed = torch.zeros_like(arguments["q"], dtype=rows.DOUBLE)
    allowed[:, :, -1] = math.inf
    return {"y": Target(torch.zeros_like(allowed), allowed)}


def _stored(cache: Tensor, lengths: Tensor, new: Tensor) -> Tensor:
    """The cache with `new` (batch, kv_heads, tokens, head_dim) after each sequence's own tokens."""
    cache = cache.clone()
    for index, length in enumerate(lengths.tolist()):
        cache[index, :, length : length + new.shape[2]] = new[index]
    return cache


def _cache(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    lengths = arguments["lengths"]
    caches = {f"{x}_cache": _exactly(_stored(arguments[f"{x}_cache"], lengths, arguments[x])) for x in "kv"}
    return {"new_lengths": _exactly(lengths + arguments["k"].shape[2]), **caches}


def _new_tokens(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    """Whatever has become of the other places."""
    targets = _cache(arguments, outputs)
    for name in _CACHES:
        value, lengths = targets[name].value, arguments["lengths"]
        allowed = _stored(torch.full_like(value, math.inf), lengths, torch.zeros_like(_wide(arguments[name[0]])[0]))
        targets[name] = Target(value, allowed)
    return targets


def _decode(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    q, k, v, cos, sin, k_cache, v_cache, lengths = (arguments[name] for name in _DECODE)
    # To RoPE the new tokens of several sequences are positions of one.
    turned_q, turned_k = (_turned(x[None], cos[lengths], sin[lengths]) for x in (q, k))
    torchs_q, torchs_k = _torchs("rope", q[None], k[None], cos[lengths], sin[lengths])
    values = _stored(v_cache, lengths, v[:, :, None])
    torchs_y = _torchs(
        "decode_attention", torchs_q[0], _stored(k_cache, lengths, torchs_k[0, :, :, None]), values, lengths + 1, None
    )
    keys = _stored(k_cache.double(), lengths, turned_k.value[0, :, :, None])
    allowed = _stored(torch.zeros_like(keys), lengths, turned_k.allowed[0, :, :, None])
    wide = turned_q.value[0], keys, values.double(), lengths + 1
    spread = 1 + 4 * _scores(wide[0][:, :, None], keys)[:, :, 0]
    terms = DECODE_ATTENTION.reference(*wide[:2], wide[2].abs(), wide[3]) * spread
    return {
        "y": allowed_error(DECODE_ATTENTION.reference(*wide), torchs_y, terms),
        "k_cache": Target(keys, allowed),
        "v_cache": _exactly(values),
    }


# properties -----------------------------------------------------------------------------------------------------------

RUNS = replace(rows.RUNS, hint="The lines above are the last of yours that ran. What are the shapes there?")
UNMODIFIED = Property(
    "inputs unmodified",
    "What the function is not asked to change holds after the call what it held before.",
    "x += y, x[...] = y and the functions whose names end in _ write into x, and into what x is a view of.",
    (),
    frozenset({Kind.MODIFIED}),
)
FRESH = Property(
    "fresh outputs",
    "What is returned has memory of its own, shared with no input and no earlier call.",
    "A view of an input is not an output.",
    (),
    frozenset({Kind.ALIASED}),
)
PRECISION = Property(
    "precision",
    "The result is as good as PyTorch's in the inputs' own dtype.",
    "Is anything converted on the way? float64 wants float64 throughout.",
    (),
)


def _first(says: str, basic: tuple[Case, ...]) -> tuple[Property, ...]:
    """What holds of every function. says: what it returns."""
    dtypes = tuple(replace(basic[0], dtype=dtype) for dtype in (rows.HALF, rows.DOUBLE))
    returned = Property(
        "outputs", says, "What does the function return, and in which dtype?", (), frozenset({Kind.OUTPUTS})
    )
    return (
        *rows.on(RUNS, cases=basic),
        *rows.on(returned, cases=(*basic, *dtypes)),
        *rows.on(UNMODIFIED, FRESH, cases=basic),
    )


def _in_every_dtype(*cases: Case) -> tuple[Case, ...]:
    return tuple(replace(case, dtype=dtype) for case in cases for dtype in (rows.SINGLE, rows.HALF, rows.DOUBLE))


_one_head = (Case((1, 1, 1, 8)), Case((1, 1, 1, 64)))

ROPE_TURN = Exercise(
    "llm.rope",
    "RoPE: turn the pairs of a head by their position's angles",
    _rope_inputs,
    ("turned",),
    _loosely(_rope),
    (
        *_first("Returns the turned q, in q's shape and dtype.", _one_head),
        *rows.on(
            Property(
                "pairs",
                "The partner of q[..., i] is q[..., i + head_dim / 2], and turned, a pair stays in its two places.",
                "Turn a q that is 0 but for one element, and look where it went. The two halves of a head are "
                "q.chunk(2, dim=-1).",
                (),
                expectation=_only_its_pair,
            ),
            cases=tuple(Case((1, 1, 1, 8), prepare=_one_number(index)) for index in (0, 1, 6)),
        ),
        *rows.on(
            Property(
                "rotation",
                "(a, b) becomes (a cos - b sin, b cos + a sin).",
                "A quarter turn has cos 0 and sin 1. Where does it bring the pair (1, 0), and where does yours?",
                (),
            ),
            cases=_one_head,
        ),
        *rows.on(
            Property(
                "positions",
                "Row p of cos and sin is for position p: for all heads there, and in all sequences.",
                "q has four dimensions, cos has two of them. Which are these, and where does each of them stand when "
                "PyTorch broadcasts cos?",
                (),
            ),
            cases=(Case((1, 3, 1, 4)), Case((1, 3, 3, 4)), Case((2, 5, 3, 8)), Case((3, 3, 2, 16))),
        ),
        *rows.on(
            replace(PRECISION, expectation=_rope), cases=_in_every_dtype(Case((1, 2, 2, 8)), Case((2, 17, 4, 64)))
        ),
    ),
    language="torch",
)

_square = (Case((1, 1, 1, 3, 3, 4)), Case((1, 1, 1, 8, 8, 16)))

GROUPED_HEADS = Exercise(
    "llm.grouped_heads",
    "Attention with grouped heads and a causal mask",
    _attention_inputs,
    ("y",),
    _loosely(_attention),
    (
        *_first("Returns y, in q's shape and dtype.", _square),
        *rows.on(
            Property(
                "causal mask",
                "A query sees no key of a later position.",
                "Which entries of the scores must have no weight after the softmax? Look at three queries and three "
                "keys: is what you keep below the diagonal or above it?",
                (),
                expectation=_no_future,
            ),
            cases=tuple(replace(case, prepare=_value_of_the_last_key) for case in _square),
        ),
        *rows.on(
            Property(
                "formula",
                "y = softmax(q k^T / sqrt(head_dim)) v, over the keys that the query sees.",
                "The weights of one query are positive and add up to 1: along which dimension, and after the mask or "
                "before it?",
                (),
            ),
            cases=_square,
        ),
        *rows.on(
            Property(
                "fewer queries than keys",
                "The last query is at the last key's position, however many queries there are.",
                "In a cache of 5 tokens the only query is the sixth token's. Which keys does it see, and what does "
                "tril() without a second argument leave it?",
                (),
            ),
            cases=(Case((1, 1, 1, 1, 3, 4)), Case((1, 1, 1, 2, 5, 4)), Case((1, 1, 1, 5, 17, 16))),
        ),
        *rows.on(
            Property(
                "grouped heads",
                "heads / kv_heads neighbouring heads of q share one of k and v.",
                "With 4 heads and 2 of k, q's heads 0 and 1 belong to k's head 0. In which order does your way of "
                "repeating put them?",
                (),
            ),
            cases=(
                Case((1, 2, 2, 3, 3, 4)),
                Case((1, 4, 2, 3, 3, 4)),
                Case((2, 6, 2, 3, 5, 4)),
                Case((2, 3, 1, 2, 4, 8)),
            ),
        ),
        *rows.on(
            Property(
                "strides",
                "q, k and v may be views, such as the model's: (batch, positions, heads, head_dim), transposed.",
                "view() wants dimensions that it can merge without a copy; flatten() and reshape() copy if they must.",
                (),
            ),
            cases=(Case((2, 4, 2, 3, 5, 4), prepare=_positions_first),),
        ),
        *rows.on(
            replace(PRECISION, expectation=_attention),
            cases=_in_every_dtype(Case((1, 2, 1, 3, 4, 8)), Case((2, 4, 2, 17, 33, 64))),
        ),
    ),
    language="torch",
)

_CACHES = ("k_cache", "v_cache")
_one_token = (Case((1, 1, 4, 1, 2)), Case((1, 2, 8, 1, 4)))

CACHE = Exercise(
    "llm.cache",
    "The KV cache: new keys and values of sequences of different lengths",
    _cache_inputs,
    ("new_lengths",),
    _cache,
    (
        *_first("Returns the new lengths, (batch,), int64.", _one_token),
        *rows.on(
            Property(
                "in place",
                "The new key is in the k_cache that was given.",
                "Which memory does the caller look into after the call? torch.cat makes a new tensor, and so does "
                "indexing with a list.",
                (),
                outputs=("k_cache",),
                expectation=_new_tokens,
            ),
            Property(
                "keys and values",
                "So is the new value in v_cache.",
                "Two caches, two stores.",
                (),
                outputs=("v_cache",),
                expectation=_new_tokens,
            ),
            cases=_one_token,
        ),
        *rows.on(
            Property(
                "position",
                "The first new token goes right after the tokens that are stored, and these stay as they are.",
                "A sequence of 2 tokens has them at positions 0 and 1.",
                (),
                outputs=_CACHES,
            ),
            cases=(Case((1, 1, 4, 1, 2), prepare=_lengths(1)), Case((1, 2, 8, 1, 4), prepare=_lengths(5))),
        ),
        *rows.on(
            Property(
                "several new tokens",
                "All new tokens are stored, in their order.",
                "k has new tokens along its third dimension. Which slice of the cache are they as long as?",
                (),
                outputs=_CACHES,
            ),
            cases=(Case((1, 1, 8, 3, 2)), Case((1, 2, 8, 3, 4), prepare=_lengths(2))),
        ),
        *rows.on(
            Property(
                "a length for each sequence",
                "Each sequence has a length of its own.",
                "lengths[0] is that of the first sequence. A slice is the same for the whole batch.",
                (),
                outputs=_CACHES,
            ),
            cases=(
                Case((2, 1, 4, 1, 2), prepare=_lengths(0, 2)),
                Case((3, 2, 8, 1, 4), prepare=_lengths(5, 0, 2)),
                Case((3, 2, 8, 2, 4), prepare=_lengths(1, 5, 0)),
            ),
        ),
        *rows.on(
            Property(
                "new lengths",
                "What is returned counts the new tokens too.",
                "How many tokens does the call bring?",
                (),
                outputs=("new_lengths",),
            ),
            cases=(Case((2, 1, 4, 1, 2), prepare=_lengths(0, 2)), Case((2, 1, 8, 3, 2), prepare=_lengths(4, 1))),
        ),
        *rows.on(
            Property(
                "the last place",
                "A cache can be filled to its last place.",
                "A cache of 4 with 3 tokens in it has room for one.",
                (),
            ),
            cases=(Case((1, 1, 4, 1, 2), prepare=_lengths(3)), Case((2, 1, 6, 2, 2), prepare=_lengths(4, 0))),
        ),
        *rows.on(
            Property(
                "a full cache",
                "Without room for all new tokens of every sequence it raises ValueError, and has stored nothing.",
                "Look before the first store, at the longest sequence. An IndexError is no help to the caller.",
                (),
                frozenset({Kind.ACCEPTED, Kind.RAISED, Kind.MODIFIED}),
            ),
            cases=(
                Case((1, 1, 4, 1, 2), prepare=_lengths(4), raises=ValueError),
                Case((2, 1, 4, 1, 2), prepare=_lengths(1, 4), raises=ValueError),
                Case((2, 1, 4, 3, 2), prepare=_lengths(0, 2), raises=ValueError),
            ),
        ),
        *rows.on(
            Property(
                "strides",
                "The caches may be parts of larger ones.",
                "reshape() and flatten() return a copy where no view can do it, and what is stored there is lost.",
                (),
            ),
            cases=(Case((2, 2, 4, 1, 2), prepare=_part_of_a_larger_cache(1, 0)),),
        ),
    ),
    language="torch",
    changes=_CACHES,
)

_DECODE = ("q", "k", "v", "cos", "sin", *_CACHES, "lengths")
_first_token = (Case((1, 1, 1, 4, 4)), Case((1, 1, 1, 8, 8)))

DECODE = Exercise(
    "llm.decode",
    "A decode step: RoPE, cache and attention together",
    _decode_inputs,
    ("y",),
    _loosely(_decode),
    (
        *_first("Returns y, in q's shape and dtype.", _first_token),
        *rows.on(
            Property(
                "what is kept",
                "The key is turned by the angles of its own position, and kept so; the value is kept as it came.",
                "The first token of a text is at position 0. At which position is the token that comes after 3 others? "
                "A later query is turned by its own angles alone: it finds the keys turned already.",
                (),
                outputs=_CACHES,
            ),
            cases=(
                *_first_token,
                Case((1, 1, 1, 4, 4), prepare=_lengths(3)),
                Case((1, 1, 1, 8, 8), prepare=_lengths(5)),
            ),
        ),
        *rows.on(
            Property(
                "the token itself",
                "The new token sees its own key.",
                "What does the cache hold when you look into it: the tokens before, or these and the new one? A text's "
                "first token gets its own value back.",
                (),
            ),
            cases=(Case((1, 1, 1, 1, 4)), Case((1, 1, 1, 1, 8))),
        ),
        *rows.on(
            Property(
                "the query's position",
                "The query is turned by the angles of its position, as its key is.",
                "Which of q, k and v are turned?",
                (),
            ),
            cases=(Case((1, 1, 1, 4, 4), prepare=_lengths(3)), Case((1, 1, 1, 8, 8), prepare=_lengths(7))),
        ),
        *rows.on(
            Property(
                "what is not stored",
                "Places past the new token are not looked at, whatever they hold.",
                "A cache is as long as it will ever be. How many of its places hold this text?",
                (),
            ),
            cases=(Case((1, 1, 1, 4, 4), prepare=_lengths(1)), Case((1, 1, 1, 8, 8), prepare=_lengths(3))),
        ),
        *rows.on(
            Property(
                "a length for each sequence",
                "Each sequence has its own position, and its own number of keys.",
                "cos[lengths] is a row for each sequence. The keys of a shorter sequence end earlier.",
                (),
            ),
            cases=(Case((2, 1, 1, 4, 4), prepare=_lengths(2, 0)), Case((3, 1, 1, 8, 8), prepare=_lengths(2, 7, 4))),
        ),
        *rows.on(
            Property("grouped heads", "heads / kv_heads neighbouring heads of q share one of k and v.", "As in 2.", ()),
            cases=(Case((2, 4, 2, 4, 4), prepare=_lengths(2, 1)),),
        ),
        *rows.on(
            replace(PRECISION, expectation=_decode),
            cases=_in_every_dtype(
                Case((2, 2, 1, 4, 8), prepare=_lengths(2, 0)), Case((3, 4, 2, 33, 64), prepare=_lengths(32, 0, 16))
            ),
        ),
    ),
    language="torch",
    changes=_CACHES,
)

EXERCISES = (ROPE_TURN, GROUPED_HEADS, CACHE, DECODE)
