# %% [markdown]
# # An LLM in three hundred lines
#
# **What you will see.** A decoder of the Llama family, whole: its weights, its blocks, its KV cache, how it draws a token,
# how it is saved and loaded. It calls its operators through the registry alone, so each of them can be swapped for a
# kernel of this course while the rest stays as it is; you do that, and see what ran and that the logits agree. At the
# end you count what a token costs, and predict what will bound it.
#
# **What you need.** PyTorch, and a rough idea of a transformer. No GPU: the model here is tiny, and the large ones are
# counted, not run. **Reading time:** about 45 minutes, exercises apart.

# %% tags=["hide-input"]
# In Colab this gets the course and keeps Colab's own torch; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from pathlib import Path

    repository = "https://github.com/OWNER/llm-kernel-lab"  # the address is configured in _config.yml
    if not Path("/content/llm-kernel-lab").exists():  # this cell may run twice
        subprocess.run(["git", "clone", "--depth", "1", repository, "/content/llm-kernel-lab"], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", "/content/llm-kernel-lab"]
    subprocess.run(install, check=True)
    sys.path.insert(0, "/content/llm-kernel-lab")

# %% tags=["hide-input"]
import lab  # before triton: with no GPU it switches Triton to its interpreter
import inspect
import math
import tempfile
import textwrap
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import FancyBboxPatch

from lab.backends.hardware import default_device
from lab.backends.registry import operator
from lab.benchmark import records
from lab.benchmark.figures import COLOURS, figure, style
from lab.benchmark.tables import Table
from lab.core import LLM, MODELS, CheckpointError, KVCache, Sampling, generate
from lab.core import cache as cache_module, model as model_module
from lab.core.cache import LayerCache
from lab.core.model import MLP, AddRMSNorm, Attention, Block, Linear, Module, RMSNorm, Rotary
from lab.notebook import code, show
from lab.ops.operator import Cost
from lab.ops.rope import rotate
from lab.profiling.roofline import Roofline

record = records.published("rmsnorm")  # for its ceilings
BIG, SMALL = MODELS["llama3-8b"], MODELS["llama3.2-1b"]
BFLOAT16 = torch.bfloat16.itemsize  # bytes


def agree(found, expected):
    """Equal but for float32's rounding: within 1e-4 of each number, and 1e-5."""
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)

# %% tags=["remove-input"]
def block_diagram():
    product, attends, other = COLOURS["cuda"], COLOURS["torch"], COLOURS["triton"]
    rows = [  # what, colour, whether it takes in the stream
        ("embedding", other, False), ("add, norm", other, True), ("q, k, v", product, False), ("RoPE", other, False),
        ("attention", attends, False), ("o", product, False), ("add, norm", other, True), ("gate, up", product, False),
        ("SwiGLU", other, False), ("down", product, False), ("add, norm", other, True), ("head", product, False),
        ("draw a token", other, False),
    ]
    with style():
        fig = MplFigure(figsize=(5.6, 6.8))
        axes = fig.subplots()
        axes.set(xlim=(0, 10), ylim=(len(rows) - 0.6, -1.1))
        axes.axis("off")
        stream, branch = 1.9, 5.0
        arrow = {"arrowstyle": "-|>", "color": "#767676", "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
        rounded = "round,pad=0,rounding_size=0.12"
        axes.add_patch(
            FancyBboxPatch((0.4, 0.58), 9.4, 8.84, boxstyle=rounded, fill=False, linestyle="--", edgecolor="#767676")
        )
        axes.text(9.6, 0.98, "each layer", ha="right", va="center", fontsize=12)
        for index, (name, colour, takes_in) in enumerate(rows):
            left = 0.9 if takes_in else 3.4
            axes.add_patch(
                FancyBboxPatch(
                    (left, index - 0.3), 6.6 - left, 0.6, boxstyle=rounded, facecolor=(colour, 0.3), edgecolor=colour
                )
            )
            axes.text(branch, index, name, ha="center", va="center", fontsize=12)
            if index + 1 < len(rows):
                axes.annotate("", (branch, index + 0.7), (branch, index + 0.3), arrowprops=arrow)
        for start, end in ((1, 6), (6, 10)):  # the stream: from sum to sum
            axes.annotate("", (stream, end - 0.3), (stream, start + 0.3), arrowprops=arrow | {"linewidth": 3})
            axes.text(
                stream - 0.35, (start + end) / 2, "the stream", rotation=90, ha="center", va="center", fontsize=12
            )
        axes.add_patch(
            FancyBboxPatch((7.6, 3.7), 1.9, 0.6, boxstyle=rounded, fill=False, edgecolor=attends, linewidth=2)
        )
        axes.text(8.55, 4, "KV cache", ha="center", va="center", fontsize=12)
        axes.annotate("", (6.6, 4), (7.6, 4), arrowprops=arrow | {"arrowstyle": "<|-|>"})
        axes.text(branch, -0.9, "token", ha="center", va="center", fontsize=12)
        axes.annotate("", (branch, -0.3), (branch, -0.7), arrowprops=arrow)
        return figure(
            fig,
            "A token goes down through the model: embedding; then in each layer add and norm, the products q, k and v, "
            "RoPE, attention with the KV cache, the product o, add and norm, the products gate and up, SwiGLU, the product "
            "down; after the last layer add and norm, the head, and the draw of a token. Beside them the stream runs from "
            "sum to sum.",
        )


show(block_diagram())

# %% [markdown]
# Orange are the matrix products, green is attention, blue the operators that memory bounds. The last *add, norm* is the
# next layer's first one, or, after the last layer, the norm before the head. Each box is an operator of the registry (but for
# the embedding, a look-up), with a contract, a reference and tests; this chapter puts them together.
#
# ## What a decoder does with a token
#
# A language model answers one question: **given a text so far, how likely is each token to come next?** On the way to
# the answer a token becomes a row of the embedding, its *stream*: `hidden_size` numbers. Each layer reads the stream
# twice and adds to it twice. Attention lets the token look at the tokens before it; the MLP works on every token alone.
# After the last layer, one more matrix, the head, makes of the stream a number for every token of the vocabulary: the
# *logits*, whose softmax are the probabilities.

# %%
device = default_device()
torch.manual_seed(0)
with torch.device(device):
    model = LLM(MODELS["tiny"]).use("torch")  # its weights are random
text = torch.tensor([[72, 101, 108, 108, 111]], device=device)  # five tokens
with torch.no_grad():
    logits = model(text)
print("tokens", tuple(text.shape), "logits", tuple(logits.shape))

# %% [markdown]
# <details><summary>Question: why five rows of logits, where only the token after the last one is unknown?</summary>
#
# Attention is causal: a token sees itself and what came before. So row i is the answer for the text that ends with
# token i, and one pass answers five questions. Training asks all of them at once. Generating needs the last row only, and
# then the head is given nothing but the last token's stream.
#
# </details>
#
# ## Where the weights are
#
# The shape of such a model is a dozen numbers. They have the names of a Hugging Face `config.json`:

# %%
NAMES = ("tiny", "llama3.2-1b", "llama3-8b")
LATER = ("rope_scaling", "qkv_bias", "eos_token_ids")
rows = [
    [field.name, *(str(getattr(MODELS[name], field.name)) for name in NAMES)]
    for field in fields(BIG)
    if field.name not in LATER
]
show(Table(["", *NAMES], rows))

# %% [markdown]
# **How many weights is that, and in which matrices?** Guess attention's share before you look. On PyTorch's `meta` device
# a model has shapes and no memory, so an 8-billion one is made at once.

# %%
with torch.device("meta"):
    big = LLM(BIG).use("torch")

alike = {}  # weights that differ in their layer only
for name, weight in big.named_parameters():
    kind = name.split(".", 2)[2] if name.startswith("layers.") else name
    alike.setdefault(kind, []).append(weight)

rows, counted = [], 0
for kind, weights in alike.items():
    count = sum(weight.numel() for weight in weights)
    shape = " x ".join(map(str, weights[0].shape))
    share = f"{100 * count / BIG.parameters:.1f}%"
    rows.append([kind, shape, str(len(weights)), f"{count / 1e6:.1f}", share])
    counted += count
show(Table(["llama3-8b", "shape", "how many", "millions", "share"], rows))
print(f"{counted:,} weights; the config says {BIG.parameters:,}")

# %% tags=["remove-input"]
def shares(name):
    """Percent of the weights in each part; the norms' are left out, too few to be seen."""
    words = {"mlp": "MLP", "self_attn": "attention", "norm": "norms", "": "embedding and head"}
    counts = Counter()
    with torch.device("meta"):
        for key, weight in LLM(MODELS[name]).named_parameters():
            counts[next(part for word, part in words.items() if word in key)] += weight.numel()
    return {part: 100 * count / counts.total() for part, count in counts.items() if part != "norms"}


def weights_figure(names):
    found = {name: shares(name) for name in names}
    with style():
        fig = MplFigure(figsize=(5.6, 2.6))
        axes = fig.subplots()
        left = [0.0] * len(names)
        for part, colour in (
            ("MLP", COLOURS["cuda"]),
            ("attention", COLOURS["torch"]),
            ("embedding and head", COLOURS["triton"]),
        ):
            values = [found[name][part] for name in names]
            axes.barh(names, values, left=left, color=(colour, 0.3), edgecolor=colour, label=part)
            for index, value in enumerate(values):
                axes.text(left[index] + value / 2, index, f"{value:.0f}", ha="center", va="center", fontsize=12)
            left = [start + value for start, value in zip(left, values)]
        axes.invert_yaxis()
        axes.tick_params(left=False)
        axes.set(xlim=(0, 100), xlabel="% of the weights")
        fig.legend(loc="outside upper center", ncols=3, handlelength=1, columnspacing=1.0, handletextpad=0.4)
        told = "; ".join(
            f"{name}: " + ", ".join(f"{part} {value:.0f}" for part, value in of.items()) for name, of in found.items()
        )
        return figure(fig, f"Percent of a model's weights in each part. {told}")


show(weights_figure(["qwen2-0.5b", "llama3.2-1b", "llama3-8b"]))

# %% tags=["remove-input"]
mlp, heads = (shares("llama3-8b")[part] for part in ("MLP", "attention"))
show(
    f"Attention, which these models are known for, holds {heads:.0f}% of the 8B's weights; the MLPs hold {mlp:.0f}%. The "
    "smaller the model, the more of it is vocabulary: a row of the embedding for each token, whatever the model's size."
)

# %% [markdown]
# **What does a tied head save?** The embedding has a row for each token, and so has the head. Small models use the same
# matrix for both.

# %%
assert SMALL.tie_word_embeddings and not BIG.tie_word_embeddings
for name, config in (("llama3.2-1b", SMALL), ("llama3-8b", BIG)):
    tied, untied = (
        replace(config, tie_word_embeddings=tie).parameters
        for tie in (True, False)
    )
    saved = (untied - tied) * BFLOAT16 / 2**20
    share = 100 * (1 - tied / untied)
    print(f"{name}: {saved:.0f} MiB, {share:.0f}% of the untied model")

# %% [markdown]
# It saves memory, not work: the head's product is computed all the same, and its weights are read for it.
#
# ## The block
#
# From here on you read the model itself. What is printed is the code that runs and that is tested, taken out of
# `lab/core/model.py`. In its comments B is the number of sequences, T of new tokens of each, C the hidden size, H and K
# the heads of q and of k and v, D the size of a head.

# %% tags=["remove-input"]
show(code(Block))

# %% [markdown]
# **Why is the norm first?** Because then nothing stands in the stream's way. In the first transformers
# ([Vaswani et al. 2017](../references.md)) the norm came after each addition, so that on its way from the loss to the
# first layer the gradient passed through every norm; deep ones needed a careful warm-up
# ([Xiong et al. 2020](../references.md)). With the norm in front of each sublayer, `x + f(norm(x))`, the stream runs from
# the embedding to the last norm through additions alone.
#
# **Why is the addition left to the next norm?** The sum is what the next norm reads. If a block added up by itself, the
# sum would be written to memory and read back at once. So a block hands on two tensors, what it adds and what that is
# added to, and the norm that comes next does both in one kernel, `add_rmsnorm`:

# %% tags=["remove-input"]
show(code(RMSNorm, AddRMSNorm))

# %%
shape = (512, BIG.hidden_size)  # 512 tokens
norm, fused = (
    operator(name).cost(shape, torch.bfloat16, "forward").bytes
    for name in ("rmsnorm", "add_rmsnorm")
)
add = 3 * math.prod(shape) * BFLOAT16  # reads both, writes the sum
print(f"add, then norm: {(add + norm) / 2**20:.0f} MiB")
print(f"fused:          {fused / 2**20:.0f} MiB")

# %% [markdown]
# Only the first layer has nothing to add yet; and the last sum falls to the norm before the head.
#
# ## Attention: heads in groups

# %% tags=["remove-input"]
show(code(Attention))

# %% [markdown]
# Four matrix products, and between them RoPE and attention. There are three kinds of attention here, because the same
# formula is three different problems for a kernel: all tokens look at all before them (training: no cache), the tokens of
# a prompt look at each other and at what the cache holds (*prefill*), or a single new token looks at the whole cache
# (*decode*).
#
# **What do grouped heads save?** In the 8B 32 heads of q share 8 of k and v
# ([Ainslie et al. 2023](../references.md)). The scores are as many as ever, 32 heads of them. But `k_proj` and `v_proj` are
# a quarter as large as `q_proj`, and so is what must be kept of every token, its k and v. That is what counts while text
# is generated, as we shall see.

# %% [markdown]
# ## RoPE: a position is an angle
#
# Attention by itself does not know in which order the tokens came. **How is it told?** RoPE
# ([Su et al. 2021](../references.md)) takes the numbers of a head in pairs and turns each pair like the hand of a clock,
# by the token's position times a frequency of the pair's own: fast hands for near things, slow ones for far ones.

# %% tags=["remove-input"]
show(code(Rotary, rotate))

# %% [markdown]
# A score is a product of q and k. Turn both, and only the difference of their angles is left: what a token sees of
# another depends on **how far apart they are**, not on where they stand.

# %%
# One head of one token each.
q, k = torch.randn(2, 1, 1, 1, SMALL.head_dim, dtype=torch.float64)


def turned(x, position):
    angles = position * SMALL.frequencies().double()[None]
    return rotate(x, angles.cos(), angles.sin())


def score(q_position, k_position):
    return (turned(q, q_position) * turned(k, k_position)).sum()


first, shifted, nearer = score(7, 3), score(1007, 1003), score(6, 3)
print("both 1000 further on: same score:", torch.allclose(first, shifted))
print("one nearer: same score:", torch.allclose(first, nearer))

# %% [markdown]
# **What if the sequences of a batch are at different positions?** While texts of different lengths are being generated,
# the next token is the 4th of one and the 90th of another. The operator takes one row of cos and sin for each position of
# a sequence. So the model lays all tokens of the batch in one row, as if they were positions of a single sequence:
# `q.view(1, batch * new, ...)`, with the angles of `positions.reshape(-1, 1)`. RoPE looks at each token alone; it does not
# mind.
#
# <details><summary>Question: the model may be bfloat16. Why do the frequencies stay float32?</summary>
#
# bfloat16 has 8 bits of mantissa. A frequency that is off by a five-hundredth, times position 1000, is an angle that is
# off by whole radians. The next cell computes it for the second-fastest pair. A table of cos and sin, though, may
# be rounded: an error there does not grow.
#
# </details>

# %%
exact = BIG.frequencies()[1].double()
rounded = exact.to(torch.bfloat16).double()
off = abs(exact - rounded) * 1000
print(f"at position 1000 the angle is off by {off:.1f} radians")

# %% [markdown]
# **Can a model read texts longer than those it was trained on?** Its slow hands have then never been seen in such
# places. Llama 3.1 and 3.2 slow them down, and leave the fast ones, which have been everywhere, as they are. Tokens for a
# full turn, of some of Llama 3.2's 32 pairs:

# %%
def full_turn(frequency):
    tokens = float(f"{2 * math.pi / frequency:.3g}")  # to three digits
    return f"{tokens:,.0f}"


plain = replace(SMALL, rope_scaling=None).frequencies()
slowed = SMALL.frequencies()
rows = [
    [str(pair), full_turn(plain[pair]), full_turn(slowed[pair])]
    for pair in (0, 8, 14, 16, 18, 24, 31)
]
show(Table(["pair", "by itself", "slowed down"], rows))

# %% tags=["remove-input"]
scaling = SMALL.rope_scaling
show(
    f"A pair that goes round at least {scaling.high_freq_factor:.0f} times in {scaling.original_max_position_embeddings} "
    f"tokens, as many as the model was first trained on, stays as it is; one that goes round less than "
    f"{'once' if scaling.low_freq_factor == 1 else scaling.low_freq_factor} turns {scaling.factor:.0f} times as slowly; "
    "between the two the factor grows."
)

# %% [markdown]
# ## The MLP: three matrices

# %% tags=["remove-input"]
show(code(Linear, MLP))

# %% [markdown]
# **Why three matrices, where an MLP has two?** One makes candidates (`up`), one decides how much of each goes through
# (`gate`, after silu), the third brings the product back. In trials with equally many weights that did better than two
# matrices with ReLU between them ([Shazeer 2020](../references.md)); why, the paper does not claim to know. For equal
# weights three matrices must be narrower: $8/3$ of the hidden size instead of 4. Llama 3 takes more:

# %%
ratio = BIG.intermediate_size / BIG.hidden_size
print(f"llama3-8b: {ratio} times the hidden size; 8 / 3 is {8 / 3:.2f}")

# %% [markdown]
# ## From tokens to logits

# %% tags=["remove-input"]
lines = {module: len(inspect.getsource(module).splitlines()) for module in (model_module, cache_module)}
assert lines[model_module] <= 300
show(code(LLM.__init__, LLM.forward, LLM.hidden))

# %% tags=["remove-input"]
show(
    f"That is all of the model but for loading and saving: `lab/core/model.py` has {lines[model_module]} lines, comments "
    f"and docstrings among them, and the cache another {lines[cache_module]}."
)

# %%
row = BIG.vocab_size * BFLOAT16
print(f"llama3-8b's logits for a token: {row / 2**10:.0f} KiB")
print(f"for a prompt of 512 tokens: {512 * row / 2**20:.0f} MiB")

# %% [markdown]
# That is why there is `hidden` beside `forward`: whoever generates text takes the last token's stream out of it, and gives
# the head that alone.
#
# ## The swap
#
# **How does one exchange a kernel in a model that runs?** No operator is called by its implementation. A module knows a
# *choice*, a string such as `"torch,rmsnorm=triton"`, and hands it to the operator with every call; the registry looks up
# what that means. A new model has the choice `"auto"`: PyTorch on a CPU, on a GPU what was fastest in its record. This is
# the base class of every module above:

# %% tags=["remove-input"]
show(code(Module))

# %%
model.use("torch,rmsnorm=triton,add_rmsnorm=triton")
rows = [
    [name or "the model", op, str(runs.implementation)]
    for name, op, runs in model.placements()
    if not name.startswith("layers.1.")
]
show(Table(["module", "operator", "runs on"], rows))

# %% [markdown]
# (The second layer is like the first one, but for its first norm. For any model, `lab ops --model llama3-8b --backend
# "torch,rmsnorm=triton"` prints such a table.)
#
# **Did it really run?** A plan is no proof. `lab.trace` notes what the registry has run. And `agree`, here and below, is
# `torch.allclose` with `rtol=1e-4` and `atol=1e-5`:

# %%
with torch.no_grad(), lab.trace() as calls:
    swapped = model(text)
ran = Counter((call.operator, f"{call.backend}:{call.rung}") for call in calls)
rows = [[op, ran_on, str(times)] for (op, ran_on), times in sorted(ran.items())]
show(Table(["operator", "ran on", "times"], rows))
print("same logits as PyTorch's:", agree(swapped, logits))

# %% [markdown]
# `use` works on any module, so also on a single layer. Here the last one gets the first Triton kernel of the RMSNorm
# chapter, and everything else is PyTorch's again:

# %%
model.use("torch").layers[-1].use("torch,add_rmsnorm=triton:naive")
with torch.no_grad(), lab.trace() as calls:
    swapped = model(text)
for call in calls:
    if call.operator == "add_rmsnorm":
        print(f"add_rmsnorm ran on {call.backend}:{call.rung}")
print("same logits:", agree(swapped, logits))

# %% [markdown]
# That is how to find a kernel that spoils a model: swap it in layer by layer. And what cannot be had is refused before
# anything has changed:

# %%
try:
    model.use("torch,linear=tritn")
except ValueError as error:
    print(error)
_ = model.use("torch")

# %% [markdown]
# ## The KV cache
#
# **To write token 101, what of the first 100 must be computed again?** Nothing. The new token's query meets the keys and
# values of the old ones, and these cannot change: a token never sees what comes after it. So they are kept, in every
# layer, and a step computes one token instead of all. (A token's stream is of no more use once its keys and values are
# kept.)

# %% tags=["remove-input"]
show(code(LayerCache, KVCache))

# %% [markdown]
# All room is allocated once: a cache that grew by a token with each step would be copied with each step.
#
# **How large is it?** Two tensors, k and v, for each layer, kv head and number of a head. Without grouped heads the 8B
# would keep four times as much:

# %%
def gib(config, batch, tokens):
    cache = KVCache(config, batch, tokens, device="meta", dtype=torch.bfloat16)
    return cache.nbytes / 2**30


models = {"llama3.2-1b": SMALL, "llama3-8b": BIG}
models["8b, ungrouped"] = replace(BIG, num_key_value_heads=BIG.num_attention_heads)
header = ["in bfloat16", "a token", "8192 tokens", "64 texts of 8192", "the weights"]
rows = []
for name, config in models.items():
    token = f"{gib(config, 1, 1) * 2**20:.0f} KiB"
    one, many = f"{gib(config, 1, 8192):.2f} GiB", f"{gib(config, 64, 8192):.0f} GiB"
    weights = f"{config.parameters * BFLOAT16 / 2**30:.0f} GiB"
    rows.append([name, token, one, many, weights])
show(Table(header, rows))

# %% [markdown]
# A GPU that serves many long texts holds more cache than model.
#
# **Is it the same model?** Prefill three tokens, then give it the other two one by one:

# %%
def new_cache():
    """Room for one text of eight tokens."""
    return KVCache(model.config, 1, 8, device=device, dtype=torch.float32)


cache = new_cache()
with torch.no_grad(), lab.trace() as calls:
    parts = [model(part, cache) for part in text.split([3, 1, 1], dim=1)]
print("same logits as without a cache:", agree(torch.cat(parts, dim=1), logits))
ran = Counter(call.operator for call in calls)
print({op: ran[op] for op in ("attention", "decode_attention")})

# %% [markdown]
# ## Prompts of different lengths
#
# **How do prompts of three and of six tokens go through the model together?** A tensor has one length. The shorter
# prompt is filled up, at its *end*, with token 0. The prompts go through at once, then a token of each text at a time.

# %% tags=["remove-input"]
show(code(generate))

# %% [markdown]
# **Why is that harmless?** For a real token, padding is the future, and nobody sees the future. The padding itself computes
# nonsense, and three things keep it from mattering: its rows of the result are not looked at, `cache.trim` sets each
# sequence's length back to its own, and the next token is then stored over the first of it.

# %%
prompts = [[72, 105, 33], [72, 101, 108, 108, 111, 33]]
padded = [[*prompts[0], 0, 0, 0], [*prompts[0], 255, 255, 255]]
with torch.no_grad():
    third = model.hidden(torch.tensor(padded, device=device))[:, 2]
print("the third token's stream is the same:", agree(third[0], third[1]))

# %%
together = list(zip(*generate(model, prompts, max_new_tokens=8)))
alone = [
    tuple(token for (token,) in generate(model, [prompt], max_new_tokens=8))
    for prompt in prompts
]
print("together they continue as alone:", together == alone)

# %% [markdown]
# <details><summary>Question: many programs pad at the front instead. What does it cost them?</summary>
#
# All sequences then end at the same place, so that the last column is the last token of each. But positions no longer
# start at 0, so they must be shifted for each sequence; and the padding is now the past: it must be masked in every
# attention from then on, and takes up room in the cache until the end.
#
# </details>
#
# ## Drawing a token
#
# The model gives probabilities. **Which token is it then?** Always the likeliest (`temperature=0`, greedy) is repeatable,
# and dull: long texts fall into loops. Drawn from all of them, some token soon comes out of the long tail of unlikely
# ones, and the text goes on from there ([Holtzman et al. 2020](../references.md)). So the distribution is bent first:
# `temperature` divides the logits, `top_k` keeps the k likeliest, `top_p` keeps the fewest that have the share p of the
# probability together.

# %% tags=["remove-input"]
show(code(Sampling.pick))

# %% [markdown]
# Six tokens that might follow on *the cat sat on the*, their probabilities at three temperatures T, in percent, and which of
# them came up in two thousand draws at temperature 1:

# %%
words = ["mat", "floor", "chair", "dog", "moon", "theorem"]
scores = torch.tensor([3.0, 2.5, 2.0, 1.0, 0.0, -2.0])
draws = scores.expand(2000, -1)


def drawn(**sampling):
    generator = torch.Generator().manual_seed(0)
    tokens = Sampling(**sampling).pick(draws, generator, "torch")
    return ["yes" if index in tokens else "" for index in range(len(words))]


def probabilities(temperature):
    p = lab.ops.softmax(scores / temperature, backend="torch")
    return [f"{100 * each:.1f}" for each in p.tolist()]


columns = {
    "token": words,
    "logit": [str(score) for score in scores.tolist()],
    "T = 0.5": probabilities(0.5),
    "T = 1": probabilities(1.0),
    "T = 2": probabilities(2.0),
    "top_k 3": drawn(temperature=1.0, top_k=3),
    "top_p 0.95": drawn(temperature=1.0, top_p=0.95),
    "greedy": drawn(temperature=0.0),
}
show(Table(list(columns), list(zip(*columns.values()))))

# %% [markdown]
# <details><summary>Question: why does top_p keep four tokens here?</summary>
#
# Add up the column of T = 1: three of them fall short of p, four do not. A token stays if those *before* it fall
# short. So the first always stays, however small p is.
#
# </details>
#
# The seed is part of what you ask for: the same seed gives the same text, on the same machine.

# %%
warm = Sampling(temperature=1.0, top_p=0.9, seed=7)
once, again = (list(generate(model, prompts, 8, warm)) for _ in range(2))
print("same seed, same tokens:", once == again)

# %% [markdown]
# ## Loading a checkpoint
#
# The modules and weights have the names of a Hugging Face checkpoint, so there is nothing to convert: a folder with
# `config.json`, `*.safetensors` and, if there is one, `tokenizer.json` is a model.

# %%
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
model.save_pretrained(folder)
print(sorted(path.name for path in folder.iterdir()))
loaded = LLM.from_pretrained(folder, device=device, backend="torch")
with torch.no_grad():
    print("same logits, to the bit:", torch.equal(loaded(text), model(text)))

# %% [markdown]
# A safetensors file is a table of names, shapes and places, and then the numbers: unlike a pickle it cannot run code, and
# the model refuses to read pickles. **What if the download broke off?**

# %%
def refused():
    try:
        LLM.from_pretrained(folder)
    except CheckpointError as error:
        print(textwrap.fill(str(error).replace(str(folder), "folder"), 76))


weights = folder / "model.safetensors"
complete = weights.read_bytes()
weights.write_bytes(complete[:-1000])
refused()

# %% [markdown]
# And if the config belongs to another model?

# %%
weights.write_bytes(complete)
config_json = folder / "config.json"
raw = config_json.read_text()
config_json.write_text(raw.replace('e_size": 160', 'e_size": 168'))
refused()
scratch.cleanup()

# %% [markdown]
# With a real checkpoint in a folder, and a GPU that has room for it, text comes out of it like this:
#
# ```sh
# lab generate --model Llama-3.2-1B --max-new-tokens 20 --prompt "The capital of France is"
# ```
#
# ## What a token costs
#
# **What bounds a model that writes text?** Every operator's contract says what a call of it costs: its operations, and the
# bytes that must cross memory at least once. So walk through the model as it stands, ask each for its cost, and add up.
# (What one operator writes and the next one reads crosses memory twice, and is counted twice.)

# %%
def work(model, batch, new, past):
    """[(operator, its cost)] of one call: `new` tokens of each of `batch`
    texts, `past` tokens before them. The head takes the last token of each."""
    c, tokens = model.config, batch * new
    heads = c.num_attention_heads, c.num_key_value_heads
    shapes = {
        "rmsnorm": (tokens, c.hidden_size),
        "add_rmsnorm": (tokens, c.hidden_size),
        "swiglu": (tokens, c.intermediate_size),
        "rope": (1, tokens, *heads, c.head_dim),
        "attention": (batch, *heads, new, past + new, c.head_dim),
        "decode_attention": (batch, *heads, past + new, c.head_dim),
    }
    unused = "attention" if new == 1 else "decode_attention"
    costs = []
    for name, op, _ in model.placements():
        if op in ("cross_entropy", "softmax", unused):
            continue
        if op == "linear":
            rows = batch if name == "lm_head" else tokens
            shape = rows, *model.get_submodule(name).weight.shape
        else:
            shape = shapes[op]
        costs.append((op, cost(op, shape)))
    return costs


def cost(op, shape):
    """In bfloat16, without a bias: Llama's products have none."""
    stated = operator(op).cost(shape, torch.bfloat16, "forward")
    flops, moved = (
        {term: n for term, n in terms.items() if "bias" not in term}
        for terms in (stated.flop_terms, stated.byte_terms)
    )
    return Cost(flops, moved)


def total(costs):
    flops = sum(cost.flops for _, cost in costs)
    moved = sum(cost.bytes for _, cost in costs)
    return Cost({"all": flops}, {"all": moved})

# %% [markdown]
# **Does that count what runs?** A trace of the tiny model tells:

# %%
for what, new in (("a prefill", 3), ("a decode step", 1)):
    with torch.no_grad(), lab.trace() as calls:
        model(text[:, :new], new_cache())
    counted = Counter(op for op, _ in work(model, 1, new, 0))
    traced = Counter(call.operator for call in calls)
    print(f"{what}: counted what was traced:", counted == traced)

# %% [markdown]
# Two calls of llama3-8b in bfloat16: a step that writes one token after 512, and the prefill of a prompt of 512.

# %%
decode, prefill = work(big, 1, 1, 512), work(big, 1, 512, 0)


def row(name, costs):
    whole = total(costs)
    numbers = whole.flops / 1e9, whole.bytes / 1e9, whole.intensity
    return [name, str(len(costs)), *(f"{number:.3f}" for number in numbers)]


for what, costs in (("a decode step", decode), ("a prefill", prefill)):
    rows = []
    for op in dict.fromkeys(op for op, _ in costs):
        rows.append(row(op, [each for each in costs if each[0] == op]))
    rows.append(row("all", costs))
    show(Table([what, "calls", "GFLOPs", "GB", "FLOPs a byte"], rows))

# %% tags=["remove-input"]
here = Roofline(total(decode), record.ceilings)
of_weights = (BIG.parameters - big.embed_tokens.weight.numel()) * BFLOAT16 / total(decode).bytes


def floor_ms(costs):
    """Each operator at its own floor, one after the other."""
    return sum(record.ceilings.floor_us(cost) for _, cost in costs) / 1e3


bounds = (Roofline(total(decode), record.ceilings).bound, Roofline(total(prefill), record.ceilings).bound)
assert bounds == ("memory", "compute")
show(
    f"A weight is two bytes and, for one token, two operations: a multiplication and an addition. So a decode step does "
    f"{total(decode).intensity:.1f} FLOPs a byte: {100 * of_weights:.0f}% of its {total(decode).bytes / 1e9:.1f} GB are weights "
    "(all but the embedding's), read for a single token. In the prefill the same weights serve 512 tokens. On the "
    f"{record.environment.gpu} of the RMSNorm chapter's record, a byte takes as long as {here.ridge:.0f} FLOPs, the *ridge*.\n\n"
    f"**Prediction:** a decode step is memory-bound, and takes at least {floor_ms(decode):.1f} ms: that text cannot come "
    f"faster than {1e3 / floor_ms(decode):.0f} tokens a second, whatever the kernels. The prefill is compute-bound, "
    f"and takes at least {floor_ms(prefill):.1f} ms: for 512 tokens about as long as decoding "
    f"{floor_ms(prefill) / floor_ms(decode):.0f}. Whether that holds, only a measurement can say."
)

# %% [markdown]
# <details><summary>Question: what is memory-bound in the prefill all the same?</summary>
#
# Every row of the table that is below the ridge: norms, RoPE and SwiGLU do about one FLOP a byte, however long the prompt,
# and at 512 tokens even attention stays below. They move a small part of the bytes, but they are kernels of their own: the
# floor just given adds up each operator's own. And one product: the head is given the last token alone, and reads all of
# its weight for it.
#
# </details>
#
# **If one token wastes the weights that it reads, why not write many texts at once?** That is what servers do. The figure
# adds up the same contracts for larger batches:

# %%
BATCHES, PASTS = [2**n for n in range(11)], (512, 2048, 8192)
intensities = {
    past: [total(work(big, batch, 1, past)).intensity for batch in BATCHES]
    for past in PASTS
}

# %% tags=["remove-input"]
def intensity_figure():
    with style():
        fig = MplFigure(figsize=(5.6, 3.8))
        axes = fig.subplots()
        for (past, values), marker in zip(intensities.items(), "os^"):
            axes.loglog(BATCHES, values, marker=marker, markersize=6, base=2, label=f"after {past} tokens")
        axes.axhline(here.ridge, color="#767676", linestyle="--", linewidth=1)
        axes.text(1, here.ridge * 1.1, "compute-bound from here on", fontsize=12, va="bottom")
        axes.set(xlabel="texts at once", ylabel="FLOPs a byte", ylim=(0.7, here.ridge * 3))
        axes.set_xticks([1, 4, 16, 64, 256, 1024], labels=["1", "4", "16", "64", "256", "1024"])
        axes.set_yticks([1, 4, 16, 64, 256], labels=["1", "4", "16", "64", "256"])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.legend(loc="lower right")
        told = "; ".join(
            f"after {past} tokens from {values[0]:.1f} to {values[-1]:.0f}" for past, values in intensities.items()
        )
        return figure(
            fig,
            f"FLOPs a byte of a decode step of llama3-8b, 1 to 1024 texts at once: {told}. The ridge is at {here.ridge:.0f}.",
        )


endless = {past: total(work(big, 2**24, 1, past)).intensity for past in PASTS}
assert max(endless.values()) < here.ridge
show(intensity_figure())

# %% tags=["remove-input"]
show(
    "The weights are shared, the caches are not: each text brings its own, and attention reads each number of it for the "
    f"{BIG.num_attention_heads // BIG.num_key_value_heads} heads of a group alone, about as many FLOPs a byte. With "
    f"batches without end the step would reach {endless[512]:.0f} FLOPs a byte after 512 tokens, {endless[8192]:.0f} after "
    "8192. With texts as long as these, decoding stays memory-bound on this GPU at any batch; and the longer they are, the "
    "more it is the cache that is read, and the less the weights."
)

# %% [markdown]
# ## Where it loses
#
# Three hundred lines leave things out. What a system has that serves text to many:

# %% tags=["remove-input"]
launch = record.select("rmsnorm", "forward", (64, 4096), "torch eager")[0].launch_us
eager_ms = len(decode) * launch / 1e3
assert eager_ms > floor_ms(decode)
q, kv = (heads * BIG.head_dim for heads in (BIG.num_attention_heads, BIG.num_key_value_heads))
three = sum(cost("linear", (512, columns, BIG.hidden_size)).bytes for columns in (q, kv, kv))
one = cost("linear", (512, q + 2 * kv, BIG.hidden_size)).bytes
show(
    f"- **Fewer launches.** A step is {len(decode)} calls. In the RMSNorm chapter's record a call of PyTorch's norm took the CPU "
    f"{launch:.0f} us; if they all did, the CPU would need {eager_ms:.1f} ms for a step whose floor on the GPU is "
    f"{floor_ms(decode):.1f} ms. CUDA graphs, which replay a whole step at once, are the cure; "
    "besides, each step here waits until the CPU has seen the token of the one before.\n"
    "- **Fused products.** q, k and v are three products that read the same x, and so are gate and up two. As one product "
    f"with the three matrices stacked, q, k and v of 512 tokens move {100 * one / three:.0f}% of the bytes, in one launch. "
    "Here each has the name that it has in a checkpoint.\n"
    "- **A paged cache.** Every text here gets room for the longest one. A server hands out the cache in small pages, as texts "
    "grow (Kwon et al. 2023).\n"
    "- **Continuous batching.** Here a batch begins and ends together: a text that has ended keeps its place, idle, until the "
    "last one has. A server puts the next request there.\n"
    "- **Quantized weights.** If the weights are what is read, half the bytes are half the time: int8, int4 and fp8 weights "
    "pay off in decoding first.\n"
    "- **A model on several GPUs**, and anything but dense Llama-style layers: no experts, no sliding window, no layer norm."
)

# %% [markdown]
# ## Take-away
#
# - A decoder is a stream to which attention and MLPs add; most of its weights, and nearly all of its operations, are matrix
#   products.
# - If a model names its operators instead of their implementations, a kernel can be tried in it with one string, and a trace
#   proves that it ran.
# - The KV cache turns writing a text from computing all of it at every step into computing one token; what it costs is
#   memory, and that is why heads are grouped.
# - Padding at the end is free under a causal mask. Positions and lengths belong to each sequence, not to the batch.
# - Count before you measure: reading a prompt is bound by compute, writing by memory, and the same model needs different
#   kernels for each.
#
# ## Exercises
#
# Write RoPE, grouped heads, the KV cache's update, and the decode step that they make together: `exercises/llm.ipynb` in the
# repository, or `exercises/llm.py` with `lab check llm` in a terminal. They are plain PyTorch, and need no GPU.
#
# ## References
#
# Vaswani et al. 2017 for the transformer, Touvron et al. 2023 and Grattafiori et al. 2024 for Llama; Xiong et al. 2020 on
# where the norm belongs, Su et al. 2021 for RoPE, Ainslie et al. 2023 for grouped heads, Shazeer 2020 for SwiGLU, Holtzman
# et al. 2020 for top-p, Kwon et al. 2023 for paged caches. All are on the [references page](../references.md).
