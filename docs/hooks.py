"""Makes the site's pages and tables whose source is elsewhere.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages, and so do the
notebooks, with the outputs that are in their files; one becomes a part of a
guide. `<!-- sizes -->`, `<!-- weights -->` and `<!-- checkpoints -->` become
tables of the package's own data.
"""

from __future__ import annotations

import csv
import importlib
import os
import pathlib
import re
from typing import Any

import griffe
import nbformat
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

# Keras takes TensorFlow otherwise, which may not be installed.
os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_augreg import describe
from keras_augreg.checkpoints import index, names
from keras_augreg.output import markdown_table
from keras_augreg.variants import VARIANTS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Notebooks that are a part of a guide, at the mark `<!-- NAME.ipynb -->`.
PARTS = {"finetune": "guides/finetune"}


class Api(griffe.Extension):
    """Shows examples as code, and the values of arguments' defaults."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Replaces constants in a signature by their values."""
        for parameter in func.parameters:
            if isinstance(parameter.default, griffe.Expr):
                module = importlib.import_module(func.module.path)
                value = eval(str(parameter.default), vars(module))
                parameter.default = repr(value)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Puts an example at Python's prompt, the last part, into fences."""
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
        text = _local(text.replace("(docs/", "("))
        files.append(File.generated(config, page, content=text))
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        for name, content in _rendered(notebook).items():
            if notebook.stem in PARTS and name.endswith(".md"):
                guide = files.src_uris[name]
                mark = f"<!-- {notebook.name} -->"
                content = guide.content_string.replace(mark, content)
                files.remove(guide)
            files.append(File.generated(config, name, content=content))
    for name, page in PARTS.items():  # Where it was before.
        to = f'<meta http-equiv="refresh" content="0; url=../{page}.html">'
        old = f"notebooks/{name}.html"
        files.append(File.generated(config, old, content=to))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the package's own tables in their places."""
    for table in (_sizes, _weights, _checkpoints):
        mark = f"<!-- {table.__name__[1:]} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown


def _local(text: str) -> str:
    """Makes links to notebooks lead to pages, and badges text.

    Badges are pictures on another server.
    """
    text = re.sub(
        r"\[!\[(.*?)\]\(.*?\)\](\(.*?\))\n(?=\[!)", r"[\1]\2 · ", text
    )
    text = re.sub(r"\[!\[(.*?)\]\(.*?\)\]", r"[\1]", text)
    for name, page in PARTS.items():  # From the first page, or a notebook's.
        text = text.replace(f"](notebooks/{name}.ipynb)", f"]({page}.md)")
        text = text.replace(f"]({name}.ipynb)", f"](../{page}.md)")
    return re.sub(r"\]\((?!https:)([^)]*)\.ipynb\)", r"](\1.md)", text)


def _rendered(path: pathlib.Path) -> dict[str, str | bytes]:
    """{file on the site: content} of a notebook: a page, and its pictures."""
    page = PARTS.get(path.stem, f"notebooks/{path.stem}")
    notebook = nbformat.read(path, as_version=4)
    if path.stem in PARTS:  # The guide has a title.
        first = notebook.cells[0]
        first.source = first.source.partition("\n")[2]
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"output_files_dir": path.stem}
    )
    folder = page.rpartition("/")[0]
    outputs = resources["outputs"].items()
    return {f"{page}.md": _local(text)} | {
        f"{folder}/{name}": content for name, content in outputs
    }


def _sizes() -> str:
    """The architectures and what they cost."""
    rows = []
    for name, variant in VARIANTS.items():
        sizes, costs = variant.sizes, describe(name)
        stem = sizes.stages and " + ".join(map(str, sizes.stages))
        rows.append(
            [
                f"`{name}`",
                f"{sizes.depth} x {sizes.width}, {sizes.num_heads} heads",
                "" if stem is None else stem or "0",
                sizes.stride,
                f"{costs.parameters:,}",
                f"{costs.flops / 1e9:.1f}",
            ]
        )
    head = ["builder", "blocks", "units of the stem", "pixels a token"]
    return markdown_table([*head, "parameters", "GFLOPs"], rows)


def _weights() -> str:
    """The aliases of each architecture, and google-research's figures."""
    rows = []
    for name in VARIANTS:
        aliases = names.aliases(name)
        shown = [f"`{alias}`" for alias in aliases] or ["none released"]
        best, size, top1, speed = "", None, None, None
        if "augreg-in21k" in aliases:
            file = names.resolve(name, "augreg-in21k")
            best = f"`{file}`"
            size = index.lookup(file).figures.get("size_mib")
            tuned = names.resolve(name, "augreg-in21k-ft-in1k", 384)
            figures = index.lookup(tuned).figures
            top1 = figures.get("adapt_final_test")
            speed = figures.get("infer_samples_per_sec")
        rows.append(
            [
                f"`{name}`",
                "<br>".join(shown),
                best,
                size and f"{size:,.0f}",
                top1 and f"{100 * top1:.2f}",
                speed and f"{speed:,.0f}",
            ]
        )
    head = ["builder", "`weights=`", "`augreg-in21k` is", "MiB", "top-1",
            "images/s"]  # fmt: skip
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
