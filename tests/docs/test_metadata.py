"""Files that other programs read: citation, hooks, forms, workflow."""

from __future__ import annotations

import pathlib
import re
import shutil
import sys

import pytest
import yaml

import keras_augreg

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_citation():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == keras_augreg.__version__
    paper = citation["preferred-citation"]
    assert paper["identifiers"][0]["value"] == "arXiv:2106.10270"
    assert len(paper["authors"]) == 6


def test_one_address_of_the_repository():
    address = read("CITATION.cff")["repository-code"]
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        found = set(re.findall(r"https://github\.com/[\w-]+/keras_\w+", text))
        assert found == {address}, notebook


def test_design_page_maps_every_module():
    """The tree of docs/design.md has the package's folders and files."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^keras_augreg/\n(.*?)^recipes/", page, re.M | re.S)
    mapped, folder = set(), ""
    for indent, name in re.findall(r"^( +)([\w/.]+)", tree, re.MULTILINE):
        if name.endswith("/"):
            folder = name
        else:
            mapped.add(name if len(indent) == 2 else folder + name)
    package = ROOT / "keras_augreg"
    assert mapped == {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if file.name != "__init__.py"
    }


def test_hooks_call_the_tools_of_ci():
    script = (ROOT / "tests" / "run.sh").read_text(encoding="utf-8")
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    tools = [hook["entry"].split(" --")[0] for hook in repository["hooks"]]
    assert tools == ["ruff format", "ruff check", "mypy", "lint-imports"]
    folder = pathlib.Path(sys.executable).parent
    for tool in tools:
        assert shutil.which(tool.split()[0], path=str(folder))
        assert f" {tool}" in script


def test_forms():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    assert [form.stem for form in forms] == ["bug", "feature"]
    for form in [*forms, forms[0].with_name("checkpoint.yml")]:
        content = read(form)
        assert {"name", "description", "body"} <= content.keys()
        kinds = {part["type"] for part in content["body"]}
        assert kinds <= {"markdown", "textarea", "input"}


def test_workflow():
    jobs = read(".github/workflows/tests.yml")["jobs"]
    matrix = jobs["quick"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert matrix["backend"] == ["jax", "tensorflow", "torch"]
    commands = [
        step.get("run") for job in jobs.values() for step in job["steps"]
    ]
    assert {"bash tests/run.sh quick", "bash .ci/run"} <= set(commands)
