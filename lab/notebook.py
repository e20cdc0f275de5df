"""What a chapter calls: show things in a notebook and in a plain Python run alike, print kernels as they are in the
package, and measure on the GPU that is there."""

from __future__ import annotations

import html
import inspect
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.backends import registry
from lab.benchmark import experiments
from lab.benchmark.candidates import Workload
from lab.benchmark.config import Experiment, without_bfloat16
from lab.benchmark.figures import Figure
from lab.benchmark.records import Record
from lab.benchmark.tables import Table, ladder_table, shape_text
from lab.profiling import roofline


def show(*things: object) -> None:
    """Display each: a str is Markdown, a Table or Figure shows itself. In a plain Python run: print it."""
    for thing in things:
        if "ipykernel" in sys.modules:
            from IPython.display import Markdown, display

            display(Markdown(thing) if isinstance(thing, str) else thing)
        else:
            print(thing)


@dataclass(frozen=True)
class Folded:
    """What a reader opens: a line that is always there, and below it text, tables or figures. Of those that share a
    `group` one is open at a time. A notebook shows it as HTML that needs no script."""

    summary: str
    things: tuple[str | Table | Figure, ...]
    group: str = ""
    is_open: bool = False

    def _repr_html_(self) -> str:
        attributes = f' name="{html.escape(self.group)}"' if self.group else ""
        attributes += " open" if self.is_open else ""
        parts = [f"<p>{html.escape(t)}</p>\n" if isinstance(t, str) else t._repr_html_() for t in self.things]
        return f"<details{attributes}><summary>{html.escape(self.summary)}</summary>\n{''.join(parts)}</details>\n"

    def __repr__(self) -> str:
        return "\n".join([self.summary, *map(str, self.things)])


def code(*functions: object) -> str:
    """The Python source of classes, functions, methods or Triton kernels, as Markdown, without notes to a formatter."""
    sources = [inspect.getsource(getattr(function, "fn", function)) for function in functions]  # type: ignore
    text = "\n\n\n".join(textwrap.dedent(source).rstrip() for source in sources).replace("  # fmt: skip", "")
    return f"```python\n{text}\n```"


def cuda_code(path: Path, first: str, last: str | None = None) -> str:
    """The lines of a CUDA C++ file from the one that starts with `first` up to the one before `last`, as Markdown; None
    means up to the end.

    Raises ValueError if either is missing.
    """
    lines = path.read_text().splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith(first)), None)
    if begin is None:
        raise ValueError(f"{path.name} has no line that starts with {first!r}")
    after = range(begin + 1, len(lines))
    end = len(lines) if last is None else next((i for i in after if lines[i].startswith(last)), None)
    if end is None:
        raise ValueError(f"{path.name} has no line that starts with {last!r} after the one with {first!r}")
    return "```cpp\n" + "\n".join(lines[begin:end]).rstrip() + "\n```"


def ladder_of(operator: str, backend: str) -> Table:
    """The rungs of a backend, each with what it changes."""
    rungs = registry.ladder(operator, backend)
    return Table(["rung", "what it changes"], [[f"{backend}:{rung.rung}", rung.change] for rung in rungs])


class Published:
    """Numbers of one record, as a chapter quotes them."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def _row(self, label: str, operator: str, direction: str, shape: tuple[int, ...]):
        rows = self.record.select(operator, direction, shape, label)
        if not rows or rows[0].timing is None:
            raise ValueError(f"the record has no time of {label} for {operator} {direction} {shape_text(shape)}")
        return rows[0]

    def percent(self, label: str, operator: str, direction: str, shape: tuple[int, ...], digits: int = 0) -> str:
        """Percent of the ceiling that `label` reaches on a workload."""
        return f"{100 * self._row(label, operator, direction, shape).fraction:.{digits}f}%"

    def us(self, label: str, operator: str, direction: str, shape: tuple[int, ...]) -> str:
        """Median time."""
        return f"{self._row(label, operator, direction, shape).timing.median_us:.0f} us"

    def ratio(self, slow: str, fast: str, operator: str, direction: str, shape: tuple[int, ...]) -> str:
        """Time of `slow` over time of `fast`."""
        times = [self._row(label, operator, direction, shape).timing.median_us for label in (slow, fast)]
        return f"{times[0] / times[1]:.2f}"


def explore(record: Record) -> None:
    """Rooflines to look through: every operator at its named shapes in bfloat16, folded; and where somebody sits in
    front of this kernel, an operator, shape, dtype and direction of their choice, too."""
    if has_front_end():
        from IPython.display import display

        display(explorer(record))
    for index, (name, op) in enumerate(registry.operators().items()):
        groups = {
            direction: [Workload(name, shape, "bfloat16", direction) for shape in op.shapes.values()]
            for direction in ("forward", "backward")
        }
        every = [workload for group in groups.values() for workload in group]
        things = (roofline.places(record, groups), roofline.table(record, every))
        show(Folded(name, things, group="explorer", is_open=index == 0))


def has_front_end() -> bool:
    """Whether this kernel belongs to a page that is open in Jupyter or Colab, which can show widgets; not so where a
    notebook is executed to be published or tested."""
    return "google.colab" in sys.modules or "JPY_SESSION_NAME" in os.environ


def explorer(record: Record):
    """A widget: choose an operator, one of its shapes, a dtype and a direction, and see the place on the roofline."""
    import ipywidgets

    operators = registry.operators()

    def shapes_of(name: str) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"{shape_text(sizes)} {shape}", sizes) for shape, sizes in operators[name].shapes.items()]

    operator = ipywidgets.Dropdown(options=list(operators), description="operator")
    shape = ipywidgets.Dropdown(options=shapes_of(operator.value), description="shape")
    dtype = ipywidgets.Dropdown(options=["bfloat16", "float16", "float32"], description="dtype")
    direction = ipywidgets.Dropdown(options=["forward", "backward", "both"], description="direction")
    place = ipywidgets.HTML()

    def offer_shapes(change) -> None:
        shape.options = shapes_of(change.new)

    def draw(*_) -> None:
        workload = Workload(operator.value, shape.value, dtype.value, direction.value)
        shown = (roofline.places(record, {operator.value: [workload]}), roofline.table(record, [workload]))
        place.value = "".join(thing._repr_html_() for thing in shown)

    operator.observe(offer_shapes, "value")
    for control in (shape, dtype, direction):
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([operator, shape, dtype, direction, place])


def measure_here(
    record: Record, operator: str, direction: str, shape: tuple[int, ...], choices: tuple[str, ...]
) -> None:
    """Time `choices` on the GPU that is here and show the table; without a GPU, the published one. A GPU with little
    memory gets fewer rows, one without bfloat16 float16."""
    if not torch.cuda.is_available():
        show(f"No GPU here. Published, on {record.environment.gpu}:", ladder_table(record, operator, direction, shape))
        return
    if torch.cuda.get_device_properties(0).total_memory < 30e9:
        shape = (shape[0] // 4, *shape[1:])
    workload = without_bfloat16(Workload(operator, shape, "bfloat16", direction), torch.cuda.get_device_capability())
    here = experiments.run(
        Experiment("live", seed=0, min_samples=20, max_samples=40, workloads=(workload,), implementations=choices,
                   peers=("torch eager",)), progress=False,
    )  # fmt: skip
    show(f"On this {here.environment.gpu}:", ladder_table(here, operator, direction, shape))
