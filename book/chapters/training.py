# %% [markdown]
# # Training it
#
# **What you will see.** The model of the last chapter learns. You count what a training step must compute, move and keep,
# predict its time, and hold that against a GPU; you train a small model on text that every Python brings along, until it
# beats one that counts pairs, and read what it writes; you kill a run and resume it to the same losses bit for bit; and
# you find out whether another backend trains another model.
#
# **What you need.** *The roofline* and *An LLM in three hundred lines*. No GPU: times and curves are the published ones,
# and what runs here is tiny. **Reading time:** about 35 minutes, exercises apart.

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
import itertools
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import yaml
from matplotlib.figure import Figure as MplFigure

from lab import datasets
from lab.benchmark import records, training_runs
from lab.benchmark.figures import COLOURS, figure, loss_curve, seed_spread, style
from lab.benchmark.tables import Table, model_table
from lab.core import LLM, MODELS, Sampling, checkpoint, generate, generate_text
from lab.core.cost import flop_terms
from lab.datasets.bigram import bigram_loss
from lab.notebook import code, show
from lab.training import Trainer, metrics
from lab.training.optimizer import Optimizer
from lab.training.schedule import learning_rate

curve = training_runs.published("pydoc")
backends = training_runs.published("training_backends")
step_record = records.published("training_step")
(run,) = curve.runs

# %% tags=["remove-input"]
show(loss_curve(curve))

# %% tags=["remove-input"]
assert run.error is None and run.validation_losses[-1] < curve.bigram_loss
show(
    f"A byte-level model of {curve.parameters / 1e6:.1f} million weights learns Python's own reference on one "
    f"{curve.environment.gpu}, {curve.config['steps']} steps of {run.seconds * 1e3:.0f} ms. Dots: its loss on text that it has "
    "not been trained on. Dashed: a model that has counted which byte follows which, and knows nothing else."
)

# %% [markdown]
# ## What a step does
#
# A model is a function of its weights, and its loss a single number: how little it expected the tokens that came. **How
# does that number tell billions of weights where to go?** By its slope along each of them, the gradient. A step goes
# forward through the model to the loss, and backward through the same operators in the opposite order, each of which
# turns the gradient of its output into those of its inputs. Then every weight moves a little, downhill. This is the code
# that all runs of this chapter ran:

# %% tags=["remove-input"]
show(code(Trainer.step))

# %% [markdown]
# The optimizer is [AdamW](../references.md). It keeps two running means for each weight, of the gradient and of its square, and
# moves the weight by the first over the root of the second: so all weights move about equally far, however large their
# gradients are. Apart from that, each weight of a matrix shrinks by a small part at each step (the W: *weight decay*).
# Before, all gradients together are scaled down if their norm is above a limit, lest one odd batch throw the model far off
# ([clipping](../references.md)).

# %% tags=["remove-input"]
show(code(Optimizer.take_gradients, Optimizer.step))

# %% [markdown]
# ## Why there are two sets of weights
#
# The model is in bfloat16, because that is what tensor cores take. **May its weights be updated there?** A step moves a
# weight by about the learning rate. Here is a weight of 1 that is to lose a thousandth, a hundred times:

# %%
short, long = torch.ones((), dtype=torch.bfloat16), torch.ones(())
for _ in range(100):
    short -= 0.001
    long -= 0.001
print(f"bfloat16: {short.item():.3f}")
print(f"float32:  {long.item():.3f}")

# %% [markdown]
# bfloat16 has 8 bits of precision. Just below 1 its numbers are 1/256 apart; one thousandth is less than half of that, so
# the result is rounded back to 1 each time. The model would stand still. So the optimizer has weights of its own in
# float32, adds every step to those, and rounds them into the model's ([Micikevicius et al. 2018](../references.md)). In
# float32 are the gradients' sums too, and both running means.
#
# <details><summary>Question: float16 training scales the loss, by thousands. Why does this not?</summary>
#
# float16 has 5 bits of exponent, and small gradients would be rounded to 0; scaling the loss moves them up. bfloat16 has
# the 8 bits of float32, at the price of precision, and holds numbers as small.
#
# </details>
#
# ## A batch in parts
#
# A step on more tokens has a truer gradient, but each token's activations have to be kept until its backward pass. **What
# if they do not fit?** The gradient of a mean is the mean of gradients. So the batch is cut into parts that run one after
# the other, and only the gradients are kept:

# %%
torch.manual_seed(0)
model = LLM(MODELS["tiny"]).use("torch")
tokens = torch.randint(256, (8, 65))


def gradients(parts):
    model.zero_grad()
    for part in tokens.chunk(parts):
        (model.loss(part[:, :-1], part[:, 1:]) / parts).backward()
    return [weight.grad.clone() for weight in model.parameters()]


pairs = list(zip(gradients(1), gradients(4), strict=True))
off = max(float((whole - parts).norm() / whole.norm()) for whole, parts in pairs)
print("the same up to rounding:", off < 1e-5)

# %% [markdown]
# Of activations, it takes the memory of one part; the sum of the gradients has to be kept meanwhile. What it costs is the
# time of smaller products, and of one more addition for each weight and part.
#
# <details><summary>Question: in the code above each part's loss is divided by the number of parts. When is that wrong?</summary>
#
# When parts have different numbers of tokens that count, as with padding. A mean of means then weighs a token in a short
# part more. Add up sums, and divide by all tokens; exercise 3 is about this.
#
# </details>
#
# ## How fast to learn
#
# The learning rate is a function of the step: it rises in a line, the *warm-up*, since at first AdamW's running means are
# made of few gradients and point anywhere; then it falls along half a cosine wave
# ([Loshchilov and Hutter 2017](../references.md)), because large steps get far and small ones get close.

# %% tags=["remove-input"]
(config,) = training_runs.configs("pydoc")
rates = [learning_rate(step, config.steps, config.optimizer) for step in range(1, config.steps + 1)]
with style():
    fig = MplFigure(figsize=(5.6, 2.4))
    axes = fig.subplots()
    axes.plot(range(1, config.steps + 1), rates, color=COLOURS["triton"])
    axes.set(xlim=(0, config.steps), ylim=(0, None), xlabel="step", ylabel="learning rate")
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y")
    peak = config.optimizer
    show(figure(fig, f"The learning rate over {config.steps} steps: a line up to {peak.lr:g} at step {peak.warmup}, then half a "
                     f"cosine wave down to {peak.min_lr:g}."))

# %% [markdown]
# ## What a step must compute
#
# Now a model of a size that fills a GPU. **How many FLOPs is a step?** The rule of thumb is 6 for each weight and token: each
# weight of a product is multiplied and added once forward, 2, and a backward pass is two such products, one for the
# gradient of the input and one for that of the weight. The contracts of the operators count it exactly.

# %%
(workload,) = step_record.model_workloads()
shape, dtype, ceilings = workload.config, workload.torch_dtype, step_record.ceilings
new = workload.batch * workload.tokens
forward = flop_terms(workload.calls, dtype)
both = workload.cost.flop_terms
calls = Counter()
for call in workload.calls:
    calls[call.operator] += call.count
rows = []
for name, flops in sorted(both.items(), key=lambda term: -term[1]):
    numbers = [f"{forward[name] / 1e12:.3f}", f"{flops / 1e12:.3f}", f"{100 * flops / workload.cost.flops:.2f}"]
    rows.append([name, str(calls[name]), *numbers])
whole = [f"{sum(forward.values()) / 1e12:.3f}", f"{workload.cost.flops / 1e12:.3f}", ""]
rows.append(["all", str(calls.total()), *whole])
what = f"{workload.model}, {workload.batch} x {workload.tokens} tokens"
show(Table([what, "calls", "forward TFLOP", "with backward", "%"], rows))

# %%
looked_up = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size  # a tied one is the head, too
multiplied = shape.parameters - looked_up
rule = 6 * multiplied * new
print(f"6 x {multiplied / 1e9:.3f} billion weights x {new} tokens: {rule / 1e12:.3f} TFLOP")
print(f"beside the products' own:  {100 * (rule / both['linear'] - 1):+.2f}%")
print(f"beside all of the step's:  {100 * (rule / workload.cost.flops - 1):+.2f}%")

# %% tags=["remove-input"]
assert abs(rule / both["linear"] - 1) < 0.01 and 0.01 < 1 - rule / workload.cost.flops < 0.2
show(
    f"For the products the rule is right. ({shape.parameters / 1e9:.2f} billion weights are there; the embedding, which is looked up, "
    f"does no FLOPs, and {'is the head, too, which does' if shape.tie_word_embeddings else 'is not counted'}.) What it leaves out is "
    "attention, which grows with the length of the text: the backward pass computes the scores again, so that attention has "
    f"{both['attention'] / forward['attention']:.2f} times its forward FLOPs in all, where a product has "
    f"{both['linear'] / forward['linear']:.0f}."
)

# %% [markdown]
# ## What it must keep
#
# **What does each weight take, apart from itself?** And what has to be kept of each token, from its forward pass to its
# backward pass? A product needs its input again, SwiGLU both of its inputs, attention q, k, v and its output, a norm the
# sum that it has normed.

# %%
weights = shape.parameters
per_weight = {
    "the model's weights": 2, "the optimizer's weights": 4, "the mean of gradients": 4, "the mean of their squares": 4,
    "gradients": 4,
}
hidden, middle = shape.hidden_size, shape.intermediate_size
q, kv = (heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads))
per_token = {  # numbers in each layer
    "two norms: the sums": 2 * hidden,
    "q, k, v and gate, up: what they multiply": 2 * hidden,
    "attention: q, k, v and its output": 2 * q + 2 * kv,  # the output is also what o multiplies
    "SwiGLU: gate and up": 2 * middle,
    "down: what it multiplies": middle,
}
logits = new * shape.vocab_size * dtype.itemsize
state = {name: size * weights for name, size in per_weight.items()}
kept = {name: count * dtype.itemsize * shape.num_hidden_layers * new for name, count in per_token.items()}
kept["the loss: the logits"] = logits
rows = [[name, f"{size / 1e9:.2f}"] for name, size in {**state, **kept}.items()]
show(Table([what, "GB"], rows))

# %% tags=["remove-input"]
activations = sum(kept.values())
before_backward = activations + 2 * logits
fixed = sum(state.values()) - state["gradients"]
most = max(before_backward, state["gradients"])
where = "where the backward pass begins" if most == before_backward else "where all gradients are there"
assert logits > 0.1 * activations
show(
    f"Weights and all that goes with them take {sum(state.values()) / 1e9:.1f} GB, {sum(per_weight.values())} bytes for each, "
    f"however short the text. Activations take {activations / 1e9:.1f} GB, {activations / new / 1e3:.0f} kB for each token; "
    f"{100 * logits / activations:.0f}% of that are the logits, which are there once, while what a layer keeps is there "
    f"{shape.num_hidden_layers} times.\n\n"
    "**Prediction.** Activations and gradients are hardly there together: a backward pass frees the ones and makes the others. "
    "Where it begins, all activations are there, and PyTorch's loss has the logits three times: themselves, the logarithms of "
    f"their softmax, and their gradient. That is {before_backward / 1e9:.1f} GB. Where it has ended, there are gradients for all "
    f"weights, {state['gradients'] / 1e9:.1f} GB. So beyond the {fixed / 1e9:.1f} GB of weights and means memory is highest {where}, with "
    f"{most / 1e9:.1f} GB."
)

# %% [markdown]
# ## What it must move
#
# Each operator by itself is bound by compute or by memory, as its contract says. And the optimizer has no FLOPs worth
# counting, but passes over each weight many times. In the code above, for every weight:

# %%
OPTIMIZER = {  # bytes of each weight
    "gradients to float32: read 2, write 4": 6,
    "their norm: read 4": 4,
    "clipping: read 4, write 4": 8,
    "AdamW: read weight, gradient and means, write weight and means": 28,
    "the model's weights: read 4, write 2": 6,
}
least = Counter()
for call in workload.calls:
    least[call.operator] += call.count * ceilings.floor_us(call.cost(dtype, "both")) / 1e3
update = sum(OPTIMIZER.values()) * weights / ceilings.copy_gbps / 1e6
rows = [[name, f"{ms:.1f}"] for name, ms in least.most_common()] + [["the optimizer", f"{update:.1f}"]]
show(Table([f"{what}: at the floor", "ms"], rows))

# %% [markdown]
# How much of a GPU does a training run use? *Model FLOPs utilization*, [MFU](../glossary.md#mfu), is the step's FLOPs over its
# time, as a fraction of what the GPU can do ([Chowdhery et al. 2022](../references.md)). Here the latter is no datasheet's
# number but the measured rate of a large product.

# %% tags=["remove-input"]
products, others = least["linear"], least.total() - least["linear"]
norms = least["rmsnorm"] + least["add_rmsnorm"]
rate = ceilings.matmul_tflops * 1e12
at_floor, in_eager = products + others + update, products + 3 * others + update


def mfu(ms):
    """Percent."""
    return 100 * workload.cost.flops / rate / ms * 1e3


assert others < update + products / 2 and norms < 0.05 * at_floor
show(
    f"The large product reached {ceilings.matmul_tflops:.0f} TFLOP/s in this run. The optimizer has {100 * update / at_floor:.0f}% of the "
    f"time at the floor, and has it for any number of tokens: with {new} of them in a step it weighs heavily, and with more it "
    "would weigh less. That is one reason to train on large batches, and another one to make up a batch of parts.\n\n"
    f"**Prediction.** If each operator ran at its floor, a step would take {at_floor:.0f} ms: {mfu(at_floor):.0f}% MFU. "
    "torch.compile should come near that. PyTorch's eager mode makes several kernels of some of what is one operator here, and the "
    "chapters before this one saw it at a third to three quarters of the floor's speed; with three times the floor for all but the "
    f"products and the optimizer, {in_eager:.0f} ms: {mfu(in_eager):.0f}%. Norms are {100 * norms / at_floor:.1f}% of the time at the floor, so if "
    f"PyTorch's take three times as long, the lab's cannot win more than {2 * norms:.0f} ms."
)

# %% [markdown]
# ## What the GPU took
#
# Every candidate trains the same weights on the same tokens, in turns. Where the lab's norms are named, all else is PyTorch's.
# Liger is another project's Triton kernels, for norms, RoPE, SwiGLU and the loss ([Hsu et al. 2024](../references.md)).

# %% tags=["remove-input"]
show(f"On one {step_record.environment.gpu}:", model_table(step_record, workload))
for row in step_record.models:
    if row.error:
        show(f"Not timed: {row.label}, {row.error}.")

# %% tags=["remove-input"]
timed = {row.label: row for row in step_record.models if row.timing}
eager, compiled = timed["torch eager"], timed["torch compiled"]
assert eager.weights == fixed
fastest = min(timed.values(), key=lambda row: row.timing.median_us)
ours = [row for row in timed.values() if "rmsnorm=" in row.backend and not row.compiled]


def ms(row):
    return row.timing.median_us / 1e3


assert ms(eager) > 1.1 * in_eager and ms(compiled) > 1.1 * at_floor  # so says the text


def peak_of(row):
    return row.peak_memory / 1e9


def less(row, than):
    change = 100 * (1 - ms(row) / ms(than))
    return f"{abs(change):.1f}% {'less' if change > 0 else 'more'} time than {than.label}"


show(
    f"**Outcome.** Eager PyTorch takes {ms(eager):.0f} ms, {ms(eager) / in_eager:.2f} times the prediction: {mfu(ms(eager)):.0f}% "
    f"MFU. Compiled it takes {ms(compiled):.0f} ms, {ms(compiled) / at_floor:.2f} times what was predicted of it: "
    f"{mfu(ms(compiled)):.0f}%. The lab's norms, in eager mode: "
    + "; ".join(f"{row.label} takes {less(row, eager)}" for row in ours)
    + f". The fastest step of all is {fastest.label}'s, {less(fastest, eager)}. Both predictions were too low; *From a kernel to a training "
    "step* finds what is missing in the rest, neither norms nor products.\n\n"
    f"Beyond weights and means, eager PyTorch needs {peak_of(eager):.1f} GB at most, {1e9 * peak_of(eager) / most:.2f} "
    f"times the prediction, and compiled {peak_of(compiled):.1f} GB."
)

# %% [markdown]
# On your GPU it is `lab bench --level training --model llama3.2-1b --compile --peers`. What becomes of a kernel's gain on its
# way into a step, and why a compiler may leave little of it, is the subject of *From a kernel to a training step*.
#
# ## A text, and something to beat
#
# What should a small model be trained on? It should be text that everybody has, with no download: Python's own reference,
# which `help("while")` shows, comes with every interpreter. A token is a byte: 256 of them, no tokenizer to train, and
# every text can be written.

# %%
print(datasets.byte_level().encode("int é").ids)

# %% [markdown]
# The reference changes with Python's version, so a hash of it goes into the record. Topics quote each other, and a paragraph
# is kept only where it first comes: or the model would be validated on what it was trained on. The last tenth is held
# out. Here is the text of the Python that runs this page. (So this cell is one of the few that are not compared.)

# %% tags=["nbval-ignore-output"]
data = curve.config["data"]
dataset = datasets.load(None, None, data["validation"])
same = "that of" if dataset.digest == curve.data else "another one than that of"
print(f"Python {sys.version.split()[0]}: {len(dataset.train)} bytes to train on, {len(dataset.validation)} held out;")
print(f"it is {same} the record, which is Python {curve.environment.python}'s.\n")
begin = len(dataset.validation) // 2
print(dataset.tokenizer.decode(dataset.validation[begin : begin + 320].tolist()))

# %% [markdown]
# **When has a model learned anything?** A loss needs something beside it. One that knows nothing gives each byte the same
# probability: the logarithm of 256. One that knows only the byte before, a *bigram* model, is a table of counts:

# %% tags=["remove-input"]
show(code(bigram_loss))

# %% tags=["remove-input"]
def bits(nats):
    return nats / math.log(2)


rows = [[name, f"{nats:.2f}", f"{bits(nats):.2f}"]
        for name, nats in (("no knowledge", math.log(256)), ("the byte before", curve.bigram_loss))]
show(Table(["on the held-out text of the record", "nats a byte", "bits a byte"], rows))

# %% [markdown]
# ## The run
#
# `lab train book/experiments/pydoc/train.yaml` trains the model that comes with the lab; the config says all there is to say:

# %% tags=["remove-input"]
show("```yaml\n" + (records.experiments_folder() / "pydoc" / "train.yaml").read_text().split("\n", 1)[1].strip() + "\n```")

# %% [markdown]
# **Prediction:** below the bigram model's loss before the warm-up is over, because pairs are what is easiest to learn; at the
# end far below, since words, indentation and brackets need more than one byte of memory. The figure at the top of this
# page shows what came.

# %%
evaluations = list(zip(run.evaluated, run.validation_losses))
rows = [[str(step), f"{loss:.3f}", f"{bits(loss):.3f}", f"{loss - curve.bigram_loss:+.3f}"]
        for step, loss in [evaluations[0], *evaluations[1::2]]]
show(Table(["after step", "nats a byte", "bits a byte", "less the bigram model's"], rows))

# %% tags=["remove-input"]
warmup = curve.config["optimizer"]["warmup"]
ends = dict(evaluations)
lately = sum(run.losses[-20:]) / 20
read = curve.config["steps"] * curve.config["batch"]["sequences"] * curve.config["batch"]["length"]
best_step, best = min(evaluations, key=lambda evaluation: evaluation[1])
last = run.validation_losses[-1]
assert ends[warmup] < curve.bigram_loss and lately < 0.9 * last and read > 2e6
turned = "" if last < 1.01 * best else (
    f" After step {best_step}, where it was {best:.3f}, the loss on the held-out text has risen again: that was the step to stop at."
)
show(
    f"**Outcome.** After the {warmup} steps of the warm-up the model is just ahead of the bigram model, {ends[warmup]:.2f} to "
    f"{curve.bigram_loss:.2f}. At the end it needs {bits(last):.2f} bits for a byte that it has not seen, the bigram model "
    f"{bits(curve.bigram_loss):.2f}. On the text that it is trained on it is better still, {lately:.2f} nats over the last twenty "
    f"steps to {last:.2f}: of the {read / 1e6:.1f} million bytes that it has read, most were not new to it, and it has begun to "
    f"learn the text by heart.{turned}"
)

# %% [markdown]
# <details><summary>Question: why not train it longer?</summary>
#
# It was tried, with two and a half times the steps and the same schedule stretched over them. The loss on the held-out
# text fell until about half of that and then rose, past where the shorter run ends, while on the training text it
# went on falling: more of the text by heart, and nothing that helps with another one. The shorter run is the one that
# is kept. What would help is more text.
#
# </details>

# %%
show(training_runs.table(curve))

# %% tags=["remove-input"]
alike = [each for each in backends.runs if each.runs_on == "torch"]
plain = sorted(each.seconds for each in alike)[len(alike) // 2]
assert run.mfu < 0.05 and plain < run.seconds and "cuda" in str(run.implementations) and backends.flops == curve.flops
show(
    f"Look at the MFU: {100 * run.mfu:.1f}%. The step has {curve.flops / 1e12:.2f} TFLOP, which the GPU could do in "
    f"{curve.flops / curve.ceilings.matmul_tflops / 1e9:.2f} ms; it took {run.seconds * 1e3:.1f}. The model is far too small for this "
    "GPU: its operators are over before the next ones have been launched. To train it faster, launch less: *Where the time "
    "goes* says how to tell.\n\n"
    f"The lab's own kernels do not help here, on the contrary. This run was on `{curve.config['backend']}`, which is "
    f"{', '.join(f'{what} for {op}' for op, what in run.implementations.items() if not what.startswith('torch'))}. The same step with "
    f"PyTorch's operators takes {plain * 1e3:.1f} ms ({len(alike)} runs of the experiment below, the middle one). To launch a "
    "kernel from Python takes more of the CPU's time than from PyTorch's C++, and in this model launches are all that there is."
)

# %% [markdown]
# ## What it writes
#
# The trained model is in the package, in bfloat16. `lab generate --prompt "..."` runs it where no `--model` is named. Here it
# is loaded in float32, on the CPU, and always takes the likeliest byte:

# %%
own = LLM.from_pretrained(checkpoint.SHIPPED / "pydoc", dtype=torch.float32, device="cpu", backend="torch")


def continued(prompt, count):
    """A text and the least lead that the likeliest byte had, over the next likely one, in logits."""
    begin = own.tokenizer.encode(prompt).ids
    ids = begin + [token for (token,) in generate(own, [begin], count)]
    with torch.no_grad():
        first, second = own(torch.tensor([ids[:-1]]))[0, len(begin) - 1 :].topk(2).values.T
    return own.tokenizer.decode(ids), float((first - second).min())


leads = []
for prompt in ("The ", "A function ", "def f("):
    text, lead = continued(prompt, 60)
    leads.append(lead)
    print(repr(text))
assert min(leads) > 2e-4  # far more than rounding in float32: every machine writes the same

# %% [markdown]
# Words, the manual's tone, and no sense. Always taking the likeliest byte, such a model soon walks in circles. Drawing among
# the likely ones breaks them. (What is drawn depends on the version of PyTorch, so this cell is not compared either.)

# %% tags=["nbval-ignore-output"]
sampling = Sampling(temperature=0.8, top_p=0.95, seed=0)
print("The " + "".join(generate_text(own, "The ", 200, sampling)))

# %% [markdown]
# ## Killed, and resumed
#
# Runs die: machines are taken away, memory runs out. **How much is lost?** A checkpoint holds the weights, both running
# means and the step. It is written into a folder of another name that is renamed when all of it is on the disk: so it is
# there as a whole, or not there. And nothing else needs to be kept, because what a step is trained on is a function of
# the seed and the step, and not of what some random generator has gone through before:

# %% tags=["remove-input"]
show(code(datasets.random_windows))

# %% [markdown]
# **Prediction:** a run that is killed without warning and resumed has the losses of a run that was left alone. Not nearly:
# the same bits. We try it, in processes of their own, on the CPU:

# %%
folder = Path(tempfile.mkdtemp())
raw = {**curve.config, "steps": 40, "dtype": "float32", "backend": "torch", "model": "tiny",
       "batch": {"sequences": 8, "length": 64, "accumulation": 2},
       "optimizer": {**curve.config["optimizer"], "warmup": 5},
       "evaluation": {"every": 20, "sequences": 8}, "checkpoint": {"every": 5, "keep": 2}}
(folder / "small.yaml").write_text(yaml.safe_dump(raw))


def start(run, *options):
    """`lab train` in a process of its own."""
    command = [sys.executable, "-m", "lab", "train", str(folder / "small.yaml"), "--output", str(run), *options]
    cpu = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=cpu, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


whole, killed = folder / "whole", folder / "killed"
assert start(whole).wait() == 0
process = start(killed)
while not training_runs.checkpoint.steps(killed) and process.poll() is None:
    time.sleep(0.001)
process.kill()  # no handler sees this one
print("ended by signal", -process.wait())
assert start(killed, "--resume").wait() == 0


def losses(run):
    return [entry["loss"] for entry in metrics.read(run) if "loss" in entry]


def weights_of(run):
    return (run / "step-000040" / "model.safetensors").read_bytes()


print(len(losses(killed)), "losses, the same bit for bit:", losses(killed) == losses(whole))
print("the same weights, byte for byte:", weights_of(killed) == weights_of(whole))

# %% [markdown]
# **Outcome.** The same. On a GPU it need not be: where many threads add to one number, as in the gradient of the embedding, the
# order of the additions may differ from run to run, and so may the last bits.
#
# <details><summary>Question: is the same not true of a run that nobody killed?</summary>
#
# It is. On a GPU two runs of the same config differ in their last bits, unless every kernel adds in a fixed order. So the
# promise is that a resumed run is as good as another run, and on the CPU, where it can be checked, that it is the same.
#
# </details>
#
# ## Does another backend train another model?
#
# A kernel that passes its tests still rounds in its own way. In one pass that is a matter of the last bits. But a training
# run is hundreds of steps, each of which starts from what the one before has left, and differences grow. **How far may two
# backends drift apart?** There is no bound to be had from theory. What can be asked is whether they are farther apart
# than what one changes without a thought: the seed. So the experiment trains the model above for 200 steps with five seeds, on
# PyTorch and on the lab's kernels. Two runs with the same seed begin with the same weights and read the same text: they are
# *twins*, and differ in rounding alone.
#
# **Prediction:** a run on another backend follows its twin on PyTorch closely at first and then less and less; in the end it is
# as good as any seed, because rounding is unbiased: it pushes the weights nowhere in particular.

# %% tags=["remove-input"]
found = training_runs.spread(backends)
show(seed_spread(backends))

# %% tags=["remove-input"]
assert set(found.backends) == {"triton", "cuda"} and all(len(runs) == len(found.seeds) == 5 for runs in found.backends.values())
assert backends.config["steps"] == 200 and backends.config["model"] == curve.config["model"]
lists = {name: [op for op, what in runs[0].implementations.items() if what.startswith(name)] for name, runs in found.backends.items()}
show(
    "Above, the loss of the steps: from the least to the greatest of PyTorch's five seeds, and the mean of the others' five. Below, "
    "the same band less its mean, and each run on the lab's kernels less its twin. ("
    + "; ".join(f"{name} has {', '.join(ops)}" for name, ops in lists.items())
    + "; all else is PyTorch's. A point is the mean of twenty steps.) On the text that was held out:"
)


def mean_loss(runs, index):
    return sum(each.validation_losses[index] for each in runs) / len(runs)


rows = []
for index, step in enumerate(found.seeds[0].evaluated):
    column = [seed.validation_losses[index] for seed in found.seeds]
    means = [mean_loss(runs, index) for runs in (found.seeds, *found.backends.values())]
    rows.append([str(step), *(f"{loss:.4f}" for loss in (min(column), max(column), *means))])
show(Table(["after step", "torch, least", "torch, greatest", "torch, mean", *(f"{name}, mean" for name in found.backends)], rows))

# %% tags=["remove-input"]
def apart(pairs, index):
    """How far two runs are apart after an evaluation, in the mean over the pairs."""
    return sum(abs(one.validation_losses[index] - other.validation_losses[index]) for one, other in pairs) / len(pairs)


runs = [each for runs in found.backends.values() for each in runs]
twins, seeds = [(each, found.twin(each)) for each in runs], list(itertools.combinations(found.seeds, 2))
least, *_, greatest = sorted(seed.validation_losses[-1] for seed in found.seeds)
out = sum(not least <= each.validation_losses[-1] <= greatest for each in runs)
assert not any(map(found.outside, found.backends)) and out <= len(runs) / 2  # or the verdict is another
show(
    "**Outcome.** Over its five seeds each backend's mean lies inside the spread of PyTorch's five, at every evaluation. Of the "
    f"{len(runs)} single runs {out} end outside of it."
)

# %% [markdown]
# That is a weak test: a mean of five scatters less than the single runs that it is held against. A sharper one takes the
# twins, run by run. The mean of their differences, and its standard error, in nats:

# %%
def from_twins(name, index):
    """Mean difference from the twins after an evaluation, and its standard error."""
    apart = [each.validation_losses[index] - found.twin(each).validation_losses[index] for each in found.backends[name]]
    return statistics.fmean(apart), statistics.stdev(apart) / len(apart) ** 0.5


paired = {name: [from_twins(name, index) for index in range(len(found.seeds[0].evaluated))] for name in found.backends}
rows = [[str(step), *(f"{mean:+.4f} ± {error:.4f}" for mean, error in (each[index] for each in paired.values()))]
        for index, step in enumerate(found.seeds[0].evaluated)]
show(Table(["after step", *(f"{name}, less its twin" for name in paired)], rows))

# %% tags=["remove-input"]
signs = [mean > 0 for each in paired.values() for mean, _ in each]
sure = max(abs(mean) / error for each in paired.values() for mean, error in each)
last = max(abs(each[-1][0]) / each[-1][1] for each in paired.values())
STUDENT = 2.776  # so many standard errors a mean of five lies from zero by chance in one of twenty cases
assert last < STUDENT
show(
    f"{sum(signs)} of the {len(signs)} differences are above zero, so ours are a little worse if anything; at the end none is more than {last:.1f} "
    f"standard errors from it, where five differences want {STUDENT:.1f} to be sure of one. (Of all evaluations the most is {sure:.1f}; but of {len(signs)} "
    "looks one may be large by chance, and neighbours in a run are no new evidence.) Five seeds do not tell a small loss from none."
)

# %% [markdown]
# <details><summary>Question: single runs outside of the spread. Is a backend wrong?</summary>
#
# Draw six numbers from the same distribution. The sixth is the least or the greatest of them two times in six. So a third
# of all honest runs ends outside of what five others span, PyTorch's own included. It is the mean that would tell.
#
# </details>
#
# And how far is a run from its twin, beside two seeds from each other?

# %%
rows, parts = [], []
for index, step in enumerate(found.seeds[0].evaluated):
    parts.append(apart(twins, index) / apart(seeds, index))
    rows.append([str(step), f"{apart(twins, index):.4f}", f"{apart(seeds, index):.4f}", f"{100 * parts[-1]:.0f}"])
show(Table(["after step", "from its twin, nats", "two seeds, nats", "%"], rows))

# %% tags=["remove-input"]
assert parts[0] < 0.5 and parts[0] < parts[-1] < 1.2
show(
    f"**Outcome.** As predicted: at first {100 * parts[0]:.0f}% of the distance between two seeds, at the end {100 * parts[-1]:.0f}%. By then a run on "
    "another backend is nearly as different from its twin as one with another seed would be: rounding is enough to become another run."
)

# %% [markdown]
# A wrong gradient may look different: it pushes the same way at every step, and the loss leaves the band for good, upwards. Or it
# looks the same, because a model can train around a small mistake, only worse. A loss near its twin's is no proof that a
# backward pass is right; for that, every kernel is tested against float64.
#
# ## Where it loses
#
# - **Everything is kept.** No activation is computed a second time to save memory (*checkpointing* of activations), and the
#   logits of all tokens are there at once. Both limit the tokens of a part.
# - **The optimizer passes over the weights five times.** Clipping needs the norm of all gradients before the first weight may
#   move; apart from that, one kernel could do the rest in one pass.
# - **One GPU.** The state alone takes what the table above says for each weight; larger models need it split among GPUs.
# - **MFU counts what a model asks for.** A step that computes activations again does more FLOPs than that, and its MFU falls
#   although the GPU is as busy.
# - **Launches.** The lab's kernels are launched from Python. A model as small as the one above trains faster without them.
# - **A small model of one text.** It has learned how Python's reference sounds, and nothing that it says.
# - **A seed is not a sample.** Five seeds say roughly how wide the spread is, not whether two backends differ by less.
#
# ## Take-away
#
# - A training step costs three forward passes, 6 FLOPs for each weight and token, and attention on top.
# - It keeps 18 bytes for each weight in bfloat16 training with AdamW, and for each token what backward passes read.
# - Update in float32, whatever the model computes in: most steps are too small for bfloat16.
# - Make a step a function of the config, the step and the weights, and resuming is free.
# - A loss means nothing alone: hold it against a bigram model; and a difference between two runs against that of two seeds.
#
# ## Exercises
#
# A slope from two losses, the test that finds wrong gradients, a batch in parts, what a weight takes, and MFU:
# `exercises/training.ipynb` in the repository, or `exercises/training.py` with `lab check training` in a terminal. They need
# no GPU.
#
# ## References
#
# Loshchilov and Hutter 2019 for AdamW and 2017 for the cosine, Micikevicius et al. 2018 for float32 weights behind a model of
# 16 bits, Pascanu, Mikolov and Bengio 2013 for clipping, Kaplan et al. 2020 for the rule of six, Chowdhery et al. 2022 for
# MFU, Chen and Goodman 1996 for the smoothing of the bigram model, Hsu et al. 2024 for Liger: on the
# [references page](../references.md).
