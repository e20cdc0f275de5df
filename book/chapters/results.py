# %% [markdown]
# # All results
#
# **What you will see.** Every published record: each operator on each GPU, all that was timed beside all that it was
# timed against, and on what. The chapters quote from here. Compare within a record; between two GPUs compare percents of
# the ceiling, for each GPU has its own.
#
# **What you need.** *How to read the numbers*, in the introduction. **Reading time:** none; it is a page to look things up in.

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
from lab.backends import registry
from lab.benchmark import records, report, training_runs
from lab.benchmark.figures import ladder, loss_curve, seed_spread, timing_errors
from lab.benchmark.tables import NOTHING, Table, ladder_table, model_table, shape_text, table, trap_table
from lab.notebook import Folded, show

published = [records.read(path) for _, path in report.all_records()]
trained = [training_runs.read_record(path) for _, path in report.training_records()]

# %% [markdown]
# ## Where they come from
#
# A record is one run on one machine: ceilings, times, and what it ran on. *With changes*: some file in the folder was not the
# commit's.

# %% tags=["remove-input"]
rows = []
for record in (*published, *trained):
    e, c = record.environment, record.ceilings
    commit = f"{(e.commit or 'unknown')[:7]}{', with changes' if e.dirty else ''}"
    rows.append([record.experiment, e.gpu, e.date[:10], commit, f"{c.copy_gbps:.0f}", f"{c.matmul_tflops:.0f}"])
show(Table(["experiment", "GPU", "date", "commit", "copy GB/s", "matmul TFLOP/s"], rows))

# %% tags=["remove-input"]
packages = sorted({name for record in (*published, *trained) for name in record.environment.packages})
versions = [
    [f"{record.experiment}, {e.gpu}", e.driver or "unknown", e.python, *(e.packages.get(name, NOTHING) for name in packages)]
    for record in (*published, *trained)
    for e in [record.environment]
]
show(Folded("The versions of all of them", (Table(["record", "driver", "python", *packages], versions),)))

# %% [markdown]
# ## Operators
#
# One picture of each operator's ladder. Then tables in percent of the ceiling, best in bold: of each backend the best rung,
# then the peers. The line below each table opens all rungs and peers at each shape, with times and their intervals.

# %% tags=["remove-input"]
for name in registry.operators():
    for record in published:
        if name not in record.operators():
            continue
        of_models = f", at the shapes of {record.experiment}" if record.models else ""
        show(f"### {name}, {record.environment.gpu}{of_models}")
        first = next(row for row in record.select(name) if row.timing)
        where = f"{first.direction} {shape_text(first.shape)} in {first.dtype}"
        show(f"{where}:", ladder(record, name, first.direction, first.shape, dtype=first.dtype))
        for direction in record.directions(name):
            timed = dict.fromkeys((row.shape, row.dtype) for row in record.select(name, direction) if row.timing)
            every = tuple(ladder_table(record, name, direction, shape, dtype) for shape, dtype in timed)
            show(table(record, name, direction), Folded(f"{name} {direction}: every rung and peer, with times", every))

# %% [markdown]
# ## Models
#
# A model, a block or a layer on a choice of backends, as PyTorch runs it and compiled.

# %% tags=["remove-input"]
with_models = [record for record in published if record.model_workloads()]
for record in with_models:
    show(f"### {record.experiment}, {record.environment.gpu}")
    for workload in record.model_workloads():
        show(model_table(record, workload))

# %% [markdown]
# ## Training runs
#
# What the chapter [Training it](training.ipynb) is about.

# %% tags=["remove-input"]
for record in trained:
    show(f"### {record.experiment}, {record.environment.gpu}", training_runs.table(record))
    show(loss_curve(record) if len(record.runs) == 1 else seed_spread(record))

# %% [markdown]
# ## Ways to measure
#
# What the chapter [How to time a kernel](timing.ipynb) is about: wrong ways to time some work, beside the right ones.

# %% tags=["remove-input"]
for record in published:
    if record.traps:
        show(f"### {record.experiment}, {record.environment.gpu}")
        show(timing_errors(record), *map(trap_table, record.traps))

# %% tags=["remove-input"]
if missing := report.not_recorded():
    show(f"Experiments of the book that have no record yet: {', '.join(missing)}.")
