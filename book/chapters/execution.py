# %% [markdown]
# # What ran
#
# **What you will see.** Each chapter's cells, how many of them are compared to the letter whenever the tests run, how long
# it took to execute as it is published here, and on which versions.
#
# **What you need.** Nothing. **Reading time:** none; it is a page to look things up in.

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
import json

from lab.benchmark.records import experiments_folder
from lab.benchmark.tables import Table
from lab.notebook import show

book = experiments_folder().parent
ran = json.loads((book / "execution.json").read_text())

# %% tags=["remove-input"]
rows = []
for name, run in ran.items():
    cells = json.loads((book / f"notebooks/{name}.ipynb").read_text())["cells"]
    title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    live = sum("nbval-ignore-output" in cell["metadata"].get("tags", ()) for cell in code)
    versions = run["versions"]
    shown = (versions["python"], versions["torch"], versions["triton"])
    rows.append([title, str(len(code)), str(len(code) - live), str(run["seconds"]), run["device"], *shown])
show(Table(["chapter", "cells", "compared", "seconds", "on", "python", "torch", "triton"], rows))

# %% [markdown]
# A cell that is not compared measures on the machine that it runs on; without a GPU it shows the published row. All others
# must come out the same on every machine, tables and figures included: `make test` executes every notebook again and
# compares. `make notebooks` writes this page's numbers anew for the chapters that changed.
