"""The language model: against transformers, with and without a cache, swapped operator by operator."""

import math
import os
from contextlib import nullcontext
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers should not even try

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import lab
from lab.backends import registry
from lab.backends.hardware import default_device
from lab.backends.implementation import BackendUnavailable, ranges
from lab.core import LLM, MODELS, CheckpointError, KVCache, Sampling, generate, generate_text
from lab.core.config import RopeScaling, from_hugging_face, to_hugging_face
from lab.core.model import Module

DEVICE = default_device()
TINY = replace(MODELS["tiny"], vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=8)
SHAPES = {
    "plain": TINY,
    "one head for each": replace(TINY, num_key_value_heads=4),
    "tied": replace(TINY, tie_word_embeddings=True),
    "wide heads": replace(TINY, head_dim=12),
    "llama3 rope": replace(TINY, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)),
    "qwen2": replace(TINY, qkv_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-6),
}
TRITON = "torch,rmsnorm=triton,add_rmsnorm=triton,softmax=triton"
CONFIGS = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}
CLASSES = {"llama": transformers.LlamaForCausalLM, "qwen2": transformers.Qwen2ForCausalLM}


def randomized(model: nn.Module, seed: int) -> nn.Module:
    """Weights that matter, all of them: biases that are not 0, norms that are not 1, heads that look somewhere."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if weight.dim() == 1 else noise * 1.5 / math.sqrt(weight.shape[-1]))
    return model


def ours(config, seed) -> LLM:
    return randomized(LLM(config).use("torch"), seed).to(DEVICE)


def theirs(config, seed):
    """The same shape in transformers."""
    raw = to_hugging_face(config, torch.float32)
    built = CONFIGS[raw.pop("model_type")](**raw | {"eos_token_id": None, "bos_token_id": None})
    return randomized(CLASSES[built.model_type](built).eval(), seed)


def tokens(batch, length, seed, config=TINY):
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@torch.no_grad()
def logits_of(model, ids):
    found = model(ids.to(next(model.parameters()).device))
    return getattr(found, "logits", found).to(DEVICE)


def close(a, b, tolerance=1e-4):
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def byte_tokenizer() -> Tokenizer:
    """One token for each of 64 letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (not letter.isascii(), letter))[:63]
    vocabulary = {letter: index for index, letter in enumerate([*letters, "Ġ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def folder(tmp_path, seed):
    """A checkpoint of ours."""
    model = ours(TINY, seed)
    model.tokenizer = byte_tokenizer()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# Against transformers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_checkpoint_of_transformers_gives_its_logits_and_tokens(config, tmp_path, seed):
    reference = theirs(config, seed)
    reference.save_pretrained(tmp_path)
    model = LLM.from_pretrained(tmp_path, backend="torch")
    assert model.config == replace(config, eos_token_ids=())
    assert model.embed_tokens.weight.device.type == DEVICE.type and model.embed_tokens.weight.dtype == torch.float32
    ids = tokens(2, 100, seed)
    assert close(logits_of(model, ids), logits_of(reference, ids))
    prompt = ids[:1, :20].cpu()
    expected = reference.generate(prompt, max_new_tokens=30, do_sample=False)[0, 20:].tolist()
    assert [token for (token,) in generate(model, prompt.tolist(), 30)] == expected


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_transformers_reads_our_checkpoint(config, tmp_path, seed):
    model = ours(config, seed)
    model.save_pretrained(tmp_path)
    reference = CLASSES["qwen2" if config.qkv_bias else "llama"].from_pretrained(tmp_path)
    ids = tokens(2, 100, seed)
    assert close(logits_of(reference, ids), logits_of(model, ids))
    again = LLM.from_pretrained(tmp_path, backend="torch")
    assert again.config == config and torch.equal(logits_of(again, ids), logits_of(model, ids))


def test_a_sharded_checkpoint(tmp_path, seed):
    reference = theirs(TINY, seed)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = tokens(2, 9, seed)
    assert close(logits_of(LLM.from_pretrained(tmp_path, backend="torch"), ids), logits_of(reference, ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(folder, tmp_path, dtype):
    model = LLM.from_pretrained(folder, dtype=dtype, backend="torch")
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert model.rotary.frequencies.dtype == torch.float32
    model.save_pretrained(tmp_path / "again")
    again = LLM.from_pretrained(tmp_path / "again", backend="torch")
    for name, weight in again.named_parameters():
        assert weight.dtype == dtype and torch.equal(weight, model.get_parameter(name))


def test_frequencies_stay_exact(seed):
    """In bfloat16 the fastest but one would be off by a whole turn after a few hundred positions."""
    model = LLM(MODELS["llama3.2-1b"]) if DEVICE.type == "cuda" else LLM(SHAPES["llama3 rope"])
    exact = model.rotary.frequencies.clone()
    assert torch.equal(model.to(torch.bfloat16).float().rotary.frequencies, exact)


# Configs ------------------------------------------------------------------------------------------------------------


def test_both_forms_of_rope():
    config = SHAPES["llama3 rope"]
    old = to_hugging_face(config, torch.float32)
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_theta": old["rope_theta"], **old["rope_scaling"]}
    assert from_hugging_face(old) == from_hugging_face(new) == config
    assert from_hugging_face(old | {"rope_scaling": None}) == replace(config, rope_scaling=None)


@pytest.mark.parametrize("name", MODELS)
def test_named_shapes_go_through_a_config_file(name):
    config = MODELS[name]
    assert from_hugging_face(to_hugging_face(config, torch.bfloat16)) == config
    with torch.device("meta"):
        assert sum(weight.numel() for weight in LLM(config).parameters()) == config.parameters


def test_a_config_without_optional_keys():
    raw = to_hugging_face(replace(TINY, num_key_value_heads=4), torch.float32)
    for key in ("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_act"):
        del raw[key]
    assert from_hugging_face(raw | {"eos_token_id": 7}) == replace(TINY, num_key_value_heads=4, eos_token_ids=(7,))


LLAMA3_ROPE = {"rope_type": "llama3", **vars(RopeScaling(8.0, 1.0, 4.0, 64))}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; expected 'llama' or 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"mlp_bias": True}, "mlp_bias is True; expected False"),
        ({"attention_bias": True}, "attention_bias is True; expected False"),
        ({"use_sliding_window": True}, "use_sliding_window is True; expected False"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'; expected 'default' or 'llama3'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
            "low_freq_factor of RoPE's llama3 scaling is missing",
        ),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "64"}, "vocab_size is '64'; expected a whole number of at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a whole number of at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected a whole number of at least 1"),
        ({"num_attention_heads": "6"}, "num_attention_heads is '6'; expected a whole number of at least 1"),
        ({"rope_parameters": "x"}, "rope_parameters is 'x'; expected an object or null"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]; expected an object or null"),
        ({"rope_scaling": LLAMA3_ROPE | {"factor": "a"}}, "factor is 'a'; expected a number above 0"),
        ({"rope_scaling": LLAMA3_ROPE | {"factor": 0}}, "factor is 0; expected a number above 0"),
        ({"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 4.0}}, "high_freq_factor is 4.0; expected more than low"),
        ({"eos_token_id": "a"}, "eos_token_id is 'a'; expected a whole number, or a list of them"),
        ({"eos_token_id": [1, None]}, "eos_token_id is None; expected a whole number, or a list of them"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06; expected a number above 0"),
        ({"rope_parameters": {"rope_theta": "much"}}, "rope_theta is 'much'; expected a number above 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; expected a divisor of num_attention_heads, 4"),
        ({"head_dim": 7}, "head_dim is 7; expected an even number"),
    ],
)
def test_a_wrong_config_names_the_key(change, message):
    with pytest.raises(ValueError, match=message):
        from_hugging_face(to_hugging_face(TINY, torch.float32) | change)


# Files that are wrong -----------------------------------------------------------------------------------------------


def rewritten(folder, change):
    """The weights of a checkpoint, changed and written again."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


HEAD = "lm_head.weight"
WRONG_WEIGHTS = {
    "missing": (lambda w: w.pop(HEAD), r"model.safetensors: tensor lm_head.weight is missing"),
    "missing inside": (
        lambda w: w.pop("model.layers.1.mlp.up_proj.weight"),
        "tensor model.layers.1.mlp.up_proj.weight is",
    ),
    "extra": (lambda w: w.update({"model.extra": torch.ones(1)}), "tensor model.extra has no place in this model"),
    "foreign": (lambda w: w.update({"extra": torch.ones(1)}), "tensor extra has no place in this model"),
    "shape": (
        lambda w: w.update({"model.norm.weight": torch.ones(31)}),
        r"tensor model.norm.weight has shape \(31,\); expected \(32,\), as config.json says",
    ),
    "dtype": (lambda w: w.update({HEAD: torch.ones(64, 32, dtype=torch.int8)}), "lm_head.weight has dtype torch.int8"),
}


@pytest.mark.parametrize("change, message", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_wrong_weights_name_the_tensor(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(CheckpointError, match=message):
        LLM.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors: is not a complete safetensors file"):
        LLM.from_pretrained(folder)


def test_a_pickle_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no model.safetensors.*pytorch_model.bin is a pickle"):
        LLM.from_pretrained(folder)
    torch.save(LLM(TINY).state_dict(), folder / "model.safetensors")  # a pickle by another name
    with pytest.raises(CheckpointError, match=r"model.safetensors: is not a complete safetensors file"):
        LLM.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_that_is_not_json(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{name}: (is not JSON|holds a list; expected an object)"):
        LLM.from_pretrained(folder)


def test_a_missing_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json: is not there"):
        LLM.from_pretrained(folder)


def test_a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is not a tokenizer"):
        LLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "index, message",
    [
        (
            '{"weight_map": {"a": "other.safetensors"}}',
            "other.safetensors: is missing; model.safetensors.index.json names it",
        ),
        ('{"weight_map": {"a": "../model/model.safetensors"}}', r"names '../model/model.safetensors'; expected"),
        ('{"weight_map": {"a": "weights.bin"}}', r"names 'weights.bin'; expected a \*.safetensors file of this folder"),
        ('{"weight_map": {"a": 3}}', "weight_map is missing; expected a file name for each tensor"),
        ("{}", "weight_map is missing; expected a file name for each tensor"),
    ],
)
def test_an_index_that_is_wrong(folder, index, message):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        LLM.from_pretrained(folder)


def test_a_tied_head_that_is_stored_too(tmp_path, seed):
    model = ours(SHAPES["tied"], seed)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda w: w.update({HEAD: w["model.embed_tokens.weight"].clone()}))
    again = LLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.embed_tokens.weight
    rewritten(tmp_path, lambda w: w[HEAD].mul_(2))
    with pytest.raises(CheckpointError, match=r"tensor lm_head.weight differs from model.embed_tokens.weight"):
        LLM.from_pretrained(tmp_path)


def test_saving_leaves_no_other_model_in_the_folder(folder, seed):
    ours(TINY, seed).save_pretrained(folder)
    assert LLM.from_pretrained(folder).tokenizer is None
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index.json: is there already"):
        ours(TINY, seed).save_pretrained(folder)


def test_saving_that_fails_leaves_the_old_model(folder, seed, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("lab.core.checkpoint.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours(TINY, seed + 1).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# The cache ----------------------------------------------------------------------------------------------------------


def cache_for(model, batch, capacity):
    weight = model.embed_tokens.weight
    return KVCache(model.config, batch, capacity, device=weight.device, dtype=weight.dtype)


@pytest.mark.parametrize("pieces", [[12, 1, 1, 1], [1] * 15, [5, 4, 1, 5], [15]], ids=str)
def test_the_cache_changes_nothing(pieces, seed):
    model, ids = ours(TINY, seed), tokens(3, sum(pieces), seed)
    cache = cache_for(model, 3, 15)
    with torch.no_grad():
        found = torch.cat([model(piece, cache) for piece in ids.split(pieces, dim=1)], dim=1)
    assert close(found, logits_of(model, ids))
    assert cache.longest == 15 and cache.lengths.tolist() == [15] * 3


def test_sequences_of_different_lengths(seed):
    model, lengths = ours(TINY, seed), [3, 9, 1, 6]
    ids, more = tokens(4, 9, seed), tokens(4, 5, seed + 1)
    cache = cache_for(model, 4, 14)
    with torch.no_grad():
        model(ids, cache)
        cache.trim(lengths)
        found = torch.cat([model(token[:, None], cache) for token in more.T], dim=1)
    assert cache.lengths.tolist() == [length + 5 for length in lengths] and cache.longest == 14
    for row, length in enumerate(lengths):
        alone = torch.cat([ids[row, :length], more[row]])[None]
        assert close(found[row], logits_of(model, alone)[0, length:])


def test_a_cache_that_is_too_small_is_left_as_it_was(seed):
    model, ids = ours(TINY, seed), tokens(2, 9, seed)
    cache = cache_for(model, 2, 8)
    with torch.no_grad():
        model(ids[:, :6], cache)
        before = torch.stack(cache.k), cache.lengths.clone()
        for wrong, message in (
            (ids[:, 6:], "cache: 3 more tokens after 6 need a capacity of 9; this one's is 8"),
            (ids[:1, 6:7], "cache: holds 2 sequences; expected 1, as input_ids has"),
        ):
            with pytest.raises(ValueError, match=message):
                model(wrong, cache)
        cache.trim([6, 2])
        with pytest.raises(ValueError, match="input_ids has 2 tokens a sequence; expected 1"):
            model(ids[:, 6:8], cache)
    assert (
        torch.equal(torch.stack(cache.k), before[0])
        and before[1].tolist() == [6, 6]
        and cache.lengths.tolist() == [6, 2]
    )


@pytest.mark.parametrize("lengths", [[6], [6, 0], [7, 1], [1, 2, 3]])
def test_trimming_to_impossible_lengths(lengths, seed):
    model = ours(TINY, seed)
    cache = cache_for(model, 2, 8)
    with torch.no_grad():
        model(tokens(2, 6, seed), cache)
    with pytest.raises(ValueError, match=r"expected numbers from 1 to \[6, 6\]"):
        cache.trim(lengths)
    assert cache.lengths.tolist() == [6, 6]
    cache.trim([6, 2])
    with pytest.raises(ValueError, match=r"lengths is \[6, 3\]; expected numbers from 1 to \[6, 2\]"):
        cache.trim([6, 3])


@pytest.mark.parametrize(
    "shape, message", [((4,), "expected \\(batch, tokens\\)"), ((2, 0), "at least one"), ((1, 257), "position 257")]
)
def test_wrong_input_ids(shape, message, seed):
    with pytest.raises(ValueError, match=f"input_ids .*{message}"):
        ours(TINY, seed)(torch.zeros(shape, dtype=torch.int64, device=DEVICE))


# Generating ---------------------------------------------------------------------------------------------------------


def test_a_batch_generates_what_each_would_alone(seed):
    model = ours(TINY, seed)
    prompts = [tokens(1, length, seed + length)[0].tolist() for length in (4, 11, 1)]
    together = list(zip(*generate(model, prompts, 12)))
    assert [list(text) for text in together] == [[t for (t,) in generate(model, [prompt], 12)] for prompt in prompts]


def test_a_text_ends_at_its_end_token(seed):
    model = ours(TINY, seed)
    prompts = [tokens(1, 5, seed)[0].tolist(), tokens(1, 5, seed + 1)[0].tolist()]
    free = [list(text) for text in zip(*generate(model, prompts, 20))]
    model.config = replace(TINY, eos_token_ids=(free[0][3],))
    steps = list(generate(model, prompts, 20))
    for text, before in zip(zip(*steps), free):
        end = before.index(free[0][3]) + 1 if free[0][3] in before else 20
        assert list(text) == before[:end] + [None] * (len(steps) - end)
    assert len(steps) == 20 or any(token is not None for token in steps[-1])


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-6), Sampling(1e-6)], ids=str)
def test_sampling_can_be_greedy(sampling, seed):
    model, prompt = ours(TINY, seed), tokens(1, 5, seed).tolist()
    assert list(generate(model, prompt, 20, sampling)) == list(generate(model, prompt, 20))


def test_no_temperature_is_too_low():
    """A logit over it alone would be infinite, and its probability NaN."""
    logits, generator = torch.tensor([[3.0, 40.0, -5.0]]), torch.Generator().manual_seed(0)
    assert Sampling(2e-38).pick(logits, generator, "torch").tolist() == [1]


def test_seeds(seed):
    model, prompt = ours(TINY, seed), tokens(1, 5, seed).tolist()
    texts = [list(generate(model, prompt, 30, Sampling(1.5, seed=number))) for number in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "sampling, expected",
    [
        (Sampling(1.0), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(2.0), None),  # the square roots over their sum
        (Sampling(1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(1.0, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(1.0, top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(1.0, top_k=3, top_p=0.99), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
    ],
    ids=str,
)
def test_the_distribution_that_is_drawn_from(sampling, expected, seed):
    p = torch.tensor([0.1, 0.5, 0.15, 0.25], device=DEVICE)  # in an order that must not matter
    if sampling.temperature == 2:
        expected = (p.sqrt() / p.sqrt().sum()).sort(descending=True)[0].tolist()
    count = 20000
    generator = torch.Generator(DEVICE).manual_seed(seed)
    with lab.trace() as calls:
        drawn = sampling.pick(p.log().expand(count, 4), generator, "torch")
    assert [call.operator for call in calls] == ["softmax"]
    found = drawn.bincount(minlength=4)[[1, 3, 2, 0]].tolist()
    for times, share in zip(found, expected):
        assert abs(times - count * share) <= 5 * math.sqrt(count * share * (1 - share))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: iter((Sampling(-1),)), "temperature is -1; expected a number of at least 0"),
        (lambda: iter((Sampling(math.nan),)), "temperature is nan"),
        (lambda: iter((Sampling(10**400),)), "temperature is 10+; expected a number of at least 0"),
        (lambda: iter((Sampling(1, top_k=0),)), "top_k is 0; expected at least 1"),
        (lambda: iter((Sampling(top_k=3),)), "temperature is 0, which draws nothing; expected one above 0 with top_k"),
        (lambda: iter((Sampling(1, top_p=0),)), "top_p is 0; expected a number above 0, up to 1"),
        (lambda: generate(LLM(TINY), [], 3), "prompts: expected at least one"),
        (lambda: generate(LLM(TINY), [[1], []], 3), "prompts: expected at least one, of at least one token each"),
        (lambda: generate(LLM(TINY), [[64]], 3), "prompts: expected tokens from 0 to 63"),
        (lambda: generate(LLM(TINY), [[1]], 0), "max_new_tokens is 0; expected at least 1"),
        (lambda: generate(LLM(TINY), [[1] * 200], 57), "max_new_tokens is 57; expected at most 56 after 200 tokens"),
        (lambda: generate_text(LLM(TINY), "a", 3), "model has no tokenizer"),
    ],
)
def test_what_cannot_be_generated(make, message):
    with pytest.raises(ValueError, match=message):
        next(make())


def test_text_comes_in_pieces(folder):
    model = LLM.from_pretrained(folder)
    prompt = model.tokenizer.encode("ABC ").ids
    text = model.tokenizer.decode([token for (token,) in generate(model, [prompt], 20)])
    assert len(prompt) == 4 and "".join(generate_text(model, "ABC ", 20)) == text


# The swap -----------------------------------------------------------------------------------------------------------


def modules_that_call(model, ids):
    """{module name: operators that ran inside it, and not in a module inside it}, and where they ran."""
    inside, found = [""], {}

    def note(call):
        found.setdefault(inside[-1], set()).add((call.operator, f"{call.backend}:{call.rung}"))
        return nullcontext()

    hooks = []
    for name, module in model.named_modules():
        if name and isinstance(module, Module):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    with ranges(note), torch.no_grad():
        model.loss(ids, ids)
        list(generate(model, ids[:1].tolist(), 2, Sampling(1.0)))
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def other(monkeypatch):
    """A backend that has every operator: PyTorch's by another name."""
    registry.backends()
    monkeypatch.setattr(registry, "_ladders", dict(registry._ladders))
    registry.register_backend("other", {op: registry.ladder(op, "torch") for op in registry.operators()})
    return "other"


@pytest.mark.parametrize("backend", ["torch", TRITON, "other"])
def test_placements_are_what_runs(backend, seed, other):
    model = ours(TINY, seed).use(backend)
    said = {}
    for name, op, resolved in model.placements():
        said.setdefault(name, set()).add((op, str(resolved.implementation)))
    assert modules_that_call(model, tokens(2, 5, seed)) == said
    places = {op: where for places in said.values() for op, where in places}
    swapped = {"rmsnorm", "add_rmsnorm", "softmax"} if backend == TRITON else set(places)
    assert all(
        where.startswith(("triton" if backend == TRITON else backend) + ":") == (op in swapped)
        for op, where in places.items()
    )


def test_triton_gives_the_logits_of_torch(seed):
    model, ids = ours(TINY, seed), tokens(2, 7, seed)
    expected = logits_of(model, ids)
    model.use(TRITON)
    with lab.trace() as calls:
        assert close(logits_of(model, ids), expected)
    ran = {call.operator for call in calls if call.backend == "triton"}
    assert ran == {"rmsnorm", "add_rmsnorm"} and not any(call.backend == "cuda" for call in calls)
    assert list(generate(model, ids.tolist(), 9)) == list(generate(model.use("torch"), ids.tolist(), 9))


def test_gradients_are_those_of_torch(seed):
    model, ids = ours(TINY, seed), tokens(2, 7, seed)
    target = ids.roll(-1, dims=1)
    target[:, -1] = -100
    found = []
    for backend in ("torch", TRITON):
        model.use(backend).zero_grad()
        model.loss(ids, target).backward()
        found.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, grad in found[0].items():
        assert grad.abs().max() > 0 and close(found[1][name], grad), name


def test_one_module_can_be_swapped(seed):
    model, ids = ours(TINY, seed), tokens(2, 7, seed)
    expected = logits_of(model, ids)
    model.layers[1].use(TRITON)
    with lab.trace() as calls:
        assert close(logits_of(model, ids), expected)
    assert [call.operator for call in calls if call.backend == "triton"] == ["add_rmsnorm"] * 2


@pytest.mark.parametrize(
    "backend, error, message",
    [
        ("pascal", ValueError, "unknown backend 'pascal'"),
        ("torch,linear=torch:warp", ValueError, "unknown rung 'warp'"),
        ("torch,rmsnorm=none", BackendUnavailable, "needs a GPU of 2040"),
    ],
)
def test_a_swap_that_cannot_be_changes_nothing(backend, error, message, seed, monkeypatch):
    registry.backends()
    monkeypatch.setattr(registry, "_ladders", dict(registry._ladders))
    rung = replace(registry.ladder("rmsnorm", "torch")[0], unavailable=lambda device: "needs a GPU of 2040")
    registry.register_backend("none", {"rmsnorm": rung})
    model = ours(TINY, seed)
    with pytest.raises(error, match=message):
        model.use(backend)
    assert {module.backend for module in model.modules() if isinstance(module, Module)} == {"torch"}


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_compiled(backend, seed):
    """Logits, and decoding with a cache, in few graphs: one for the prompt, one for every later token."""
    model, ids = ours(SHAPES["qwen2"], seed).use(backend), tokens(2, 20, seed)
    expected = logits_of(model, ids)
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    aot = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert close(logits_of_function(aot, ids), expected)
    torch._dynamo.reset()
    step = torch.compile(model, backend=count, fullgraph=True)
    cache = cache_for(model, 2, 20)
    with torch.no_grad():
        found = [step(ids[:, :9], cache), *(step(ids[:, i : i + 1], cache) for i in range(9, 20))]
    assert close(torch.cat(found, dim=1), expected) and len(graphs) <= 4
    torch._dynamo.reset()


@torch.no_grad()
def logits_of_function(function, ids):
    return function(ids)


def test_compiled_a_layer_writes_into_its_own_part_of_the_cache(seed):
    """What the compiler rewrites without writing in place makes no tensor of several layers' keys or values: else each
    layer's new token could cost a copy of the whole cache."""
    model, ids, made = ours(TINY, seed), tokens(2, 9, seed), []
    cache = cache_for(model, 2, 400)  # a layer's is larger than anything else here

    def note(graph, inputs):
        made.extend(
            node.meta["val"].shape for node in graph.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
        )
        return graph

    torch._dynamo.reset()
    step = torch.compile(model, backend=aot_autograd(fw_compiler=note), fullgraph=True)
    with torch.no_grad():
        model(ids, cache)
        step(ids[:, :1], cache)
    assert max(made, key=math.prod) == cache.k[0].shape
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [TRITON, "torch,rmsnorm=cuda,add_rmsnorm=cuda"])
def test_a_billion_weights_in_bfloat16(backend, seed):
    """The error against float32 weights and arithmetic is at most twice torch's own in bfloat16."""
    with torch.device(DEVICE):
        exact = LLM(MODELS["llama3.2-1b"]).use("torch")
    for weight in exact.parameters():
        weight.data = weight.to(torch.bfloat16).float()  # the same weights in both
    ids = tokens(2, 200, seed, exact.config)
    expected = logits_of(exact, ids)
    rounded = exact.to(torch.bfloat16)
    torchs = (logits_of(rounded, ids).float() - expected).abs()
    ran = (logits_of(rounded.use(backend), ids).float() - expected).abs()
    assert ran.max() <= 2 * torchs.max() and ran.mean() <= 2 * torchs.mean()
