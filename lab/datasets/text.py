"""English texts: the reference that comes with Python, and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics


class DataError(ValueError):
    """A text that cannot be used; the message names the file, and the line if it is one's fault."""


def pydoc_topics() -> str:
    """Python's language reference, as `help()` shows it: it needs no download, and differs between Python's versions.

    Topics quote each other. A paragraph is kept where it comes first, lest a model be validated on what it has been
    trained on.
    """
    paragraphs: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            paragraphs.setdefault(" ".join(paragraph.split()), paragraph.strip("\n"))
    paragraphs.pop("", None)
    return "\n\n".join(paragraphs.values())


def texts(path: Path) -> Iterator[str]:
    """The texts in a file: of a .jsonl file the field `text` of each line, of any other the whole. Raises DataError."""
    if path.suffix != ".jsonl":
        yield _decoded(path.read_bytes(), str(path))
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                entry = json.loads(_decoded(line, where))
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: is not JSON: {error}") from error
            if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
                raise DataError(f"{where}: has no text; expected an object with a string in the field text")
            yield entry["text"]


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8: {error}") from error
