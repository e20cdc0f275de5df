"""A directive for pages that are no notebook: a figure out of a published record, drawn when the book is built.

    ```{times} rmsnorm both 65536x4096
    torch eager
    triton:naive
    ```

draws how long each of the candidates took for that operator, direction and shape, out of the record that the book shows
of the experiment that is named as the operator is.
"""

import html

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from lab.benchmark import figures, records


class Times(SphinxDirective):
    required_arguments = 3
    has_content = True

    def run(self):
        operator, direction, shape = self.arguments
        try:
            record = records.published(operator)
            sizes = tuple(map(int, shape.split("x")))
            drawn = figures.times(record, operator, direction, sizes, list(self.content))
        except (ValueError, FileNotFoundError) as error:
            raise self.warning(f"times: {error}") from None
        passes = "forward and backward" if direction == "both" else direction
        where = html.escape(f"{record.select(operator)[0].dtype}, on an {record.environment.gpu}")
        caption = f"<figcaption>{operator} {passes}, {shape} in {where}</figcaption>"
        return [nodes.raw("", f'<figure class="cell_output ladder">\n{drawn.svg}\n{caption}</figure>\n', format="html")]


def setup(app):
    app.add_directive("times", Times)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
