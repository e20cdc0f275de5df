"""Texts, their tokens, windows of them, and the bigram model."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lab.datasets import DataError, bigram, bigram_loss, byte_level, load, random_windows, spaced_windows, tokens
from lab.datasets.text import pydoc_topics


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llm-kernel-lab" / "tokens"


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def words(tmp_path):
    """A tokenizer.json of 300 words, w0, w1, ..., that truncates to two tokens and pads to eight."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "words.json"))
    return tmp_path / "words.json"


# Tokenizer -----------------------------------------------------------------------------------------------------------

EVERY_BYTE_OF_UTF8 = "".join(map(chr, range(0x800))) + "€\ud7ff\uffff\U0001f600\U0010ffff"


@pytest.mark.parametrize("text", ["", "a", " two  spaces\r\n\ttab\x00", "naïve €5 𝄞", EVERY_BYTE_OF_UTF8])
def test_byte_level_ids_are_the_bytes(text, tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (byte_level(), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))):
        ids = tokenizer.encode(text).ids
        assert ids == list(text.encode()) and tokenizer.decode(ids) == text


def test_byte_level_has_all_bytes():
    assert sorted(byte_level().get_vocab().values()) == list(range(256))


# Python's reference --------------------------------------------------------------------------------------------------


def test_pydoc_topics_are_english_and_say_nothing_twice():
    paragraphs = [" ".join(paragraph.split()) for paragraph in pydoc_topics().split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs) > 1000 and "" not in paragraphs
    assert len(pydoc_topics()) > 200_000 and pydoc_topics().count(" the ") > 2000


def test_pydoc_validation_is_not_in_the_training_text():
    dataset = load(None, None, 0.1)
    train, validation = bytes(dataset.train), bytes(dataset.validation)
    assert train + validation == pydoc_topics().encode()
    assert len(validation) == pytest.approx(0.1 * len(train + validation), abs=1)
    assert not [i for i in range(0, len(validation) - 100, 20) if validation[i : i + 100] in train]


# Files ---------------------------------------------------------------------------------------------------------------


def test_texts_of_files_follow_one_another(write):
    text = write("a.txt", "first\r\n")
    lines = write("b.jsonl", json.dumps({"text": "sécond", "id": 7}) + "\n" + json.dumps({"text": "third"}))
    dataset = load([text, lines], None, 0.25)
    whole = "first\r\nsécondthird".encode()
    assert bytes(dataset.train) + bytes(dataset.validation) == whole and len(dataset.validation) == 5


def test_a_tokenizer_file(write, words):
    dataset = load([write("a.txt", "w1 w299 w7 w8")], words, 0.5)
    assert dataset.train.tolist() == [1, 299] and dataset.validation.tolist() == [7, 8]  # neither truncated nor padded
    assert dataset.train.dtype == np.uint16 and dataset.vocab_size == 300


def test_tokens_are_mapped_and_made_once(write, words, monkeypatch, cache):
    path = write("a.jsonl", '{"text": "w1 w2"}')
    first = load([path], words, 0.5)
    made = []
    tokenize = tokens._tokenize
    monkeypatch.setattr(tokens, "_tokenize", lambda *arguments: made.append(1) or tokenize(*arguments))
    again = load([path], words, 0.5)
    assert made == [] and again.digest == first.digest and again.train.tolist() == [1]
    assert isinstance(again.train, np.memmap) and isinstance(again.validation, np.memmap)
    assert len(list(cache.iterdir())) == 1
    assert load([path], None, 0.5).digest != first.digest and made == [1]  # another tokenizer
    assert load([write("a.txt", path.read_bytes())], words, 0.5).digest != first.digest and made == [1, 1]  # no JSON
    write("a.jsonl", '{"text": "w2 w1"}')
    assert load([path], words, 0.5).train.tolist() == [2] and made == [1, 1, 1]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", '{"text": "fine"}\n{"text": oops}\n', r"a.jsonl:2: is not JSON: Expecting value"),
        ("a.jsonl", '{"text": "fine"}\n\n', r"a.jsonl:2: is not JSON"),
        ("a.jsonl", '{"text": "fine"}\n{"txt": "x"}\n', r"a.jsonl:2: has no text; expected an object with a string"),
        ("a.jsonl", '{"text": "fine"}\n{"text": 5}\n', r"a.jsonl:2: has no text"),
        ("a.jsonl", '["text"]\n', r"a.jsonl:1: has no text"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "\xff"}\n', r"a.jsonl:2: is not UTF-8"),
        ("a.txt", b"abc\xff", r"a.txt: is not UTF-8"),
        ("a.txt", "", r"files: hold no text; expected at least one token"),
        ("a.jsonl", "", r"files: hold no text"),
    ],
)
def test_a_bad_file_is_named_and_leaves_nothing(write, cache, name, content, message):
    with pytest.raises(DataError, match=message):
        load([write(name, content)], None, 0.5)
    assert list(cache.iterdir()) == []


def test_a_bad_tokenizer_is_named(write):
    with pytest.raises(DataError, match=r"bad.json: is not a tokenizer"):
        load(None, write("bad.json", "{}"), 0.5)


# Windows -------------------------------------------------------------------------------------------------------------


def test_random_windows_depend_on_seed_and_step_alone():
    text = np.arange(50, dtype=np.uint8)
    first = random_windows(text, 10, 2000, seed=1, step=5)
    assert first.shape == (2000, 10) and first.dtype == torch.int64
    assert torch.equal(first, first[:, :1] + torch.arange(10))
    assert set(first[:, 0].tolist()) == set(range(41))  # every place, both ends included
    torch.manual_seed(0), np.random.seed(0), random_windows(text, 10, 2000, seed=1, step=6)
    assert torch.equal(random_windows(text, 10, 2000, seed=1, step=5), first)
    for seed, step in ((1, 6), (2, 5), (5, 1)):
        assert not torch.equal(random_windows(text, 10, 2000, seed, step), first)


@pytest.mark.parametrize("tokens, length, most, starts", [
    (50, 10, 100, [0, 10, 20, 30, 40]), (59, 10, 100, [0, 12, 24, 36, 49]), (50, 10, 2, [0, 40]), (10, 10, 9, [0]),
])  # fmt: skip
def test_spaced_windows_do_not_overlap(tokens, length, most, starts):
    windows = spaced_windows(np.arange(tokens, dtype=np.uint16), length, most)
    assert windows.dtype == torch.int64
    assert windows.tolist() == [list(range(start, start + length)) for start in starts]


# Bigram --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_bigram_loss_by_hand(monkeypatch, chunk):
    monkeypatch.setattr(bigram, "CHUNK", chunk)
    train = np.array([0, 1, 0, 1, 0, 2], np.uint8)  # 01 twice, 10 twice, 02 once
    single = [3 / 8, 3 / 8, 2 / 8]  # two, two and one of the five that follow another, and one more of each
    p01 = (2 + 2 * single[1]) / (3 + 2)
    p11 = (0 + 1 * single[1]) / (2 + 1)
    p22 = (0 + 1 * single[2]) / (0 + 1)  # nothing was seen after 2
    expected = -(math.log(p01) + math.log(p11) + math.log(p22)) / 3
    windows = torch.tensor([[0, 1], [1, 1], [2, 2]])
    assert bigram_loss(train, windows, 3) == pytest.approx(expected, rel=1e-12)


def test_bigram_probabilities_sum_to_one(seed):
    train = np.random.default_rng(seed).integers(7, size=100).astype(np.uint8)
    for before in range(7):
        losses = [bigram_loss(train, torch.tensor([[before, after]]), 7) for after in range(7)]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)
