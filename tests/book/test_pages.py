"""The pages of the course: they exist, clone one address, and hold no measured number that was typed by hand."""

import ast
import copy
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

from lab.benchmark import records

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "book/chapters").glob("*.py"))


# No typed measurement -------------------------------------------------------------------------------------------------

# A performance number with its unit. A line of a page may state one if it is not a measurement of ours, and says so:
# `<!-- datasheet -->`. A chapter may predict one: from "**Prediction" to "**Outcome" or the end of the paragraph.
MEASURED = re.compile(
    r"""\d[\d.,]*\s?(?:[kMGT]i?B/s|[MGTP]FLOPS?(?:/s|\b)|ms\b|us\b|[µμ]s\b)
      | \d[\d.,]*\s?(?:x|\xd7|times)\s+(?:as\s+fast|faster|slower|quicker|speed-?up|the\s+speed)
      | speed-?up\s+of\s+\d
      | \d[\d.,]*\s?(?:%|percent)\s+of\s+(?:the\s+|its\s+)?(?:\w+\s+)?(?:ceiling|roofline|roof|floor|peak|bandwidth)
    """,
    re.VERBOSE | re.IGNORECASE,
)
# On pages, any percentage and any fractional factor too, and units in words.
MEASURED_ON_A_PAGE = re.compile(
    MEASURED.pattern + r"| \d[\d.,]*\s?(?:%|percent\b|(?:milli|micro|nano)seconds?\b|ns\b) | \d+\.\d+\s?[x\xd7](?!\w)",
    MEASURED.flags,
)
DATASHEET = "<!-- datasheet -->"
PREDICTION = re.compile(r"\*\*Prediction.*?(?=\*\*Outcome|\n\s*\n|\Z)", re.DOTALL)


def typed_on_a_page(text: str) -> list[str]:
    """Performance numbers in Markdown."""
    lines = [line for line in PREDICTION.sub("", text).splitlines() if DATASHEET not in line]
    return [match.group() for line in lines for match in MEASURED_ON_A_PAGE.finditer(line)]


def typed_in_a_chapter(text: str) -> list[str]:
    """Performance numbers in a chapter's Markdown and in the strings of its code, which it may show."""
    found = []
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        if cell.cell_type == "code":
            strings = (node.value for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Constant))
            found += [number for string in strings if isinstance(string, str) for number in typed_on_a_page(string)]
        else:
            found += typed_on_a_page(cell.source)
    return found


def typed_in_docstrings(source: str) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [match.group() for text in texts for match in MEASURED.finditer(text)]


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *(ROOT / "book").glob("*.md")], ids=lambda path: path.name)
def test_pages_have_no_typed_measurement(path):
    assert not typed_on_a_page(path.read_text())


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_chapters_have_no_typed_measurement(path):
    assert not typed_in_a_chapter(path.read_text())


def test_docstrings_and_cuda_sources_have_no_typed_measurement():
    found = {path.name: typed_in_docstrings(path.read_text()) for path in (ROOT / "lab").rglob("*.py")}
    for path in (*(ROOT / "lab").rglob("*.cu"), *(ROOT / "lab").rglob("*.cuh")):
        found[path.name] = [match.group() for match in MEASURED.finditer(path.read_text())]
    assert not {name: numbers for name, numbers in found.items() if numbers}


MEASUREMENTS = [
    "2.9 TB/s", "3005 GB/s", "710 TFLOP/s", "710 TFLOPS", "0.42 ms", "88.7 us", "88 µs", "88 μs", "2x faster",
    "1.7 times slower", "3\xd7 speedup", "a speedup of 2", "94% of the ceiling", "94 percent of peak bandwidth",
]  # fmt: skip
ON_PAGES_ONLY = ["reaches 94%", "97.5 percent", "12 microseconds", "is 1.7x as good"]
NO_MEASUREMENTS = [
    "16384x4096 in bfloat16", "2^31 elements", "128 MiB", "16 bytes a thread", "sm_90", "2x PyTorch's own error",
    "in GB/s and us", "uses 3 blocks", "4 msgs", "2 operations more",
]  # fmt: skip


@pytest.mark.parametrize("text", MEASUREMENTS)
def test_a_typed_measurement_is_found_anywhere(text):
    assert typed_on_a_page(f"It takes {text}.")
    assert typed_in_a_chapter(f"# %% [markdown]\n# It takes\n# {text}.\n")
    assert typed_in_a_chapter(f"# %%\nshow(f'It takes {text} on {{gpu}}')\n")
    assert typed_in_docstrings(f'def f():\n    """It takes {text}."""\n')


@pytest.mark.parametrize("text", ON_PAGES_ONLY)
def test_a_typed_measurement_is_found_on_a_page(text):
    assert typed_on_a_page(text)


@pytest.mark.parametrize("text", NO_MEASUREMENTS)
def test_other_numbers_are_let_through(text):
    assert not typed_on_a_page(text) and not typed_in_docstrings(f'"""{text}."""')


def test_a_number_read_from_a_record_is_let_through():
    assert not typed_in_a_chapter("# %%\nshow(f'It takes {row.median:.1f} us, {percent(row)}% of the ceiling.')\n")


def test_datasheets_and_predictions_are_let_through_and_outcomes_are_not():
    assert not typed_on_a_page(f"The datasheet says 3.35 TB/s. {DATASHEET}")
    assert not typed_on_a_page("**Prediction:** fewer loads,\nso above 90%.")
    assert typed_on_a_page("**Prediction:** above 90%. **Outcome:** 94%.") == ["94%"]
    assert typed_on_a_page("**Prediction:** above 90%.\n\nIt reached 94%.") == ["94%"]


# Pages and addresses --------------------------------------------------------------------------------------------------


def toc_pages(toc: dict) -> Iterator[str]:
    """Every page that a table of contents names."""
    for key, value in toc.items():
        if key in ("root", "file"):
            yield value
        for entry in value if isinstance(value, list) else []:
            yield from toc_pages(entry)


def missing_pages(toc: dict, root: Path) -> list[str]:
    return [page for page in toc_pages(toc) if not list(root.glob(f"{page}.md")) + list(root.glob(f"{page}.ipynb"))]


def test_the_table_of_contents_names_pages_that_exist_and_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    assert not missing_pages(toc, ROOT)
    assert {f"book/notebooks/{chapter.stem}" for chapter in CHAPTERS} <= set(toc_pages(toc))


def test_a_missing_page_is_found(tmp_path):
    (tmp_path / "here.md").touch()
    toc = {"root": "here", "parts": [{"caption": "A part", "chapters": [{"file": "gone"}, {"file": "here"}]}]}
    assert missing_pages(toc, tmp_path) == ["gone"]


def clones(chapter: str, url: str) -> bool:
    """Whether the first code cell of a chapter clones this address, and no other."""
    cells = jupytext.reads(chapter, fmt="py:percent").cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    return "google.colab" in first and set(re.findall(r"https://[^\s\"')]+", first)) == {url}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_the_first_cell_clones_the_configured_repository(path):
    assert clones(path.read_text(), yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"])


def test_a_wrong_address_is_found():
    chapter = '# %%\nimport sys\nif "google.colab" in sys.modules:\n    clone("https://github.com/me/lab")\n'
    assert clones(chapter, "https://github.com/me/lab")
    assert not clones(chapter, "https://github.com/you/lab") and not clones(chapter, "https://github.com/me/la")
    assert not clones("# %%\nimport lab\n" + chapter, "https://github.com/me/lab")


# Size -----------------------------------------------------------------------------------------------------------------


MODEL = re.compile(r"lab/models/[^/]+/model\.safetensors")  # the weights that come with the lab


def too_large(root: Path) -> list[str]:
    """Files over 1 MiB (a model's weights over 4) that git tracks, or would if they were added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    most = {name: 2**22 if MODEL.fullmatch(name) else 2**20 for name in listed if (root / name).is_file()}
    return [name for name, size in most.items() if (root / name).stat().st_size > size]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git what belongs to the repository")
def test_the_repository_has_no_large_file():
    assert not too_large(ROOT)


def test_a_large_file_is_found(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("ignored\n")
    weights, larger = "lab/models/a/model.safetensors", "lab/models/b/model.safetensors"
    sizes = {"large": 2**20 + 1, "small": 2**20, "ignored": 2**21, weights: 2**22, larger: 2**22 + 1}
    sizes["lab/models/a/optimizer.safetensors"] = 2**20 + 1
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert set(too_large(tmp_path)) == {"large", larger, "lab/models/a/optimizer.safetensors"}


# A chapter's frame ----------------------------------------------------------------------------------------------------


def lacks(notebook: nbformat.NotebookNode) -> list[str]:
    """What a chapter that teaches has to have and this one has not: at its beginning a summary, what one needs, how
    long it takes and a figure, at its end a take-away, exercises and references, and somewhere where it loses."""
    first = next(i for i, cell in enumerate(notebook.cells) if re.search(r"^## ", cell.source, re.M))
    opening = "\n".join(cell.source for cell in notebook.cells[: first + 1]).partition("\n## ")[0]
    opening = re.sub(r"\s+", " ", opening)
    shown = [out.data for cell in notebook.cells[:first] for out in cell.get("outputs", []) if "data" in out]
    text = "\n".join([cell.source for cell in notebook.cells] + [d.get("text/markdown", "") for d in map(dict, shown)])
    headings = re.findall(r"^## (.*)", text, re.M)
    found = [f"{each!r}" for each in ("What you will see.", "What you need.", "Reading time:") if each not in opening]
    found += [] if any("<svg" in data.get("text/html", "") for data in shown) else ["a headline figure"]
    found += [f"a section {each!r}" for each in ("Take-away", "Exercises", "References") if each not in headings]
    return found + ([] if "Where it loses" in text or "where it loses" in text else ["where it loses"])


def test_every_chapter_that_teaches_has_its_frame():
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    teach = [page for part in parts if part["caption"] != "Reference" for page in toc_pages(part)]
    assert len(teach) >= 9
    notebooks = {page: nbformat.read(ROOT / f"{page}.ipynb", as_version=4) for page in teach}
    assert not {page: missing for page, notebook in notebooks.items() if (missing := lacks(notebook))}


def test_a_missing_part_of_the_frame_is_found():
    notebook = nbformat.read(ROOT / "book/notebooks/rmsnorm.ipynb", as_version=4)
    assert not lacks(notebook)
    for part, expected in {
        "What you need.": "'What you need.'",
        "Reading time:": "'Reading time:'",
        "## Exercises": "a section 'Exercises'",
        "here it loses": "where it loses",
    }.items():
        without = copy.deepcopy(notebook)
        for cell in without.cells:
            cell.source = cell.source.replace(part, "")
        assert lacks(without) == [expected]
    figure = next(i for i, cell in enumerate(notebook.cells) if "<svg" in str(cell.get("outputs", "")))
    del notebook.cells[figure]
    assert lacks(notebook) == ["a headline figure"]


# The GPU that a chapter shows -----------------------------------------------------------------------------------------


def unnamed(chapter: str, notebook: nbformat.NotebookNode) -> list[str]:
    """GPUs of the records that a chapter quotes and that it names nowhere in words (a figure's alternative text is not
    seen), and records that it asks for by a GPU's name, which another GPU's record could not replace."""
    quoted = re.findall(r'(?<!resources)(?<!training_runs)\.published\("(\w+)"', chapter)
    gpus = {records.published(name).environment.gpu for name in quoted}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = " ".join(str(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    by_name = re.findall(r'"(NVIDIA \w+\d[^"]*)"(?!:)', chapter)
    return [f"does not name {gpu}" for gpu in sorted(gpus) if gpu not in shown] + [f"asks for {gpu}" for gpu in by_name]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_a_chapter_names_the_gpu_that_it_shows(path):
    notebook = nbformat.read(ROOT / "book/notebooks" / f"{path.stem}.ipynb", as_version=4)
    assert not unnamed(path.read_text(), notebook)


def test_a_gpu_that_is_not_named_is_found():
    gpu = records.published("rmsnorm").environment.gpu
    output = nbformat.v4.new_output("display_data", data={"text/markdown": f"On an {gpu}:"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    assert not unnamed('records.published("rmsnorm")', notebook)
    assert unnamed(f'records.published("rmsnorm", "{gpu}")', notebook) == [f"asks for {gpu}"]
    assert unnamed('records.published("rmsnorm")', nbformat.v4.new_notebook()) == [f"does not name {gpu}"]
    assert not unnamed('resources.published("nothing")', notebook)
