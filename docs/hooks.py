"""What the site shows but is written elsewhere, once.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages; notebooks become
pages (with their outputs where the environment variable EXECUTE_NOTEBOOKS is
1: they are executed then, which takes minutes); `<!-- models -->` and
`<!-- checkpoints -->` become tables from the package's own.
"""

from __future__ import annotations

import csv
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import griffe
import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

from keras_augreg.output import markdown_table

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


class Examples(griffe.Extension):
    """Shows examples as code that are written as at Python's prompt."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Puts a docstring's example, its last part, between fences."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Example:\n+(>>> .*)\Z",
                r"Example:\n\n```pycon\n\1\n```",
                obj.docstring.value,
                flags=re.MULTILINE | re.DOTALL,
            )


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that are written elsewhere."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        for other, its_page in PAGES.items():
            text = text.replace(f"({other})", f"({its_page})")
        text = text.replace("(docs/", "(").replace(".ipynb)", ".md)")
        files.append(File.generated(config, page, content=text))
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        for file in _pages(notebook, config):
            files.append(file)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the package's own tables in their places."""
    for name, table in (("models", _models), ("checkpoints", _checkpoints)):
        mark = f"<!-- {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown


def _pages(path: pathlib.Path, config: Any) -> Iterable[File]:
    """A notebook as a page, and the pictures in its outputs."""
    notebook = nbformat.read(path, as_version=4)
    if os.environ.get("EXECUTE_NOTEBOOKS") == "1":
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(
        notebook, {"output_files_dir": path.stem}
    )
    # Badges are pictures on another server.
    text = re.sub(r"\[!\[(.*?)\]\(.*?\)\]", r"[\1]", text)
    text = text.replace(".ipynb)", ".md)")
    # Back to the source for those whose links we just turned.
    text = re.sub(r"(https://\S+)\.md\)", r"\1.ipynb)", text)
    yield File.generated(config, f"notebooks/{path.stem}.md", content=text)
    for name, content in resources["outputs"].items():
        yield File.generated(config, f"notebooks/{name}", content=content)


def _models() -> str:
    from keras_augreg import checkpoints, describe
    from keras_augreg.checkpoints import names
    from keras_augreg.variants import VARIANTS

    rows = []
    for name, v in VARIANTS.items():
        costs = describe(name)
        aliases = names.aliases(name)
        alias = "augreg-in21k" if "augreg-in21k" in aliases else None
        best = f"`{checkpoints.resolve(name, alias)}`" if alias else "none"
        stem = "" if v.stages is None else " + ".join(map(str, v.stages)) or "0"
        rows.append(
            [
                f"`{name}`",
                f"{v.depth} x {v.width}, {v.num_heads} heads",
                stem,
                v.stride,
                f"{costs.parameters:,}",
                f"{costs.flops / 1e9:.1f}",
                ", ".join(f"`{a}`" for a in aliases) or "none",
                best,
            ]
        )
    head = ["builder", "blocks", "units of the stem", "pixels a token"]
    head += ["parameters", "GFLOPs", "`weights=`", "`augreg-in21k` is"]
    return markdown_table(head, rows)


def _checkpoints() -> str:
    file = ROOT / "keras_augreg" / "assets" / "checkpoints.csv"
    with file.open(encoding="utf-8") as lines:
        rows = [
            [
                f"`{row['name']}`",
                row["sources"],
                row["timm"] and f"`{row['timm']}`",
                row["adapt_final_test"]
                and f"{100 * float(row['adapt_final_test']):.2f}",
            ]
            for row in csv.DictReader(lines)
        ]
    return markdown_table(["name", "seen in", "timm's name", "top-1"], rows)
