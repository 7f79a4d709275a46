"""The site builds without a warning; links, anchors and pictures exist."""

from __future__ import annotations

import html.parser
import inspect
import os
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

import keras_augreg
from keras_augreg import augment, checkpoints, data, study, visualize

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
# Documented where they are used.
CONSTANTS = {"COLUMNS", "DATASETS", "FIGURES", "OPERATIONS"}
# Attributes that make a browser fetch something by itself.
FETCHED = {("img", "src"), ("link", "href"), ("script", "src")}


class Page(html.parser.HTMLParser):
    """The links of a page, what it fetches, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.links, self.fetched, self.anchors = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.anchors.add(attrs["id"])
        for name in ("href", "src"):
            if attrs.get(name):
                self.links.add(attrs[name])
                fetches = (tag, name) in FETCHED
                if fetches and attrs.get("rel") != "canonical":
                    self.fetched.add(attrs[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{file: Page} of the built site."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("EXECUTE_NOTEBOOKS", None)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build"),
            *("--strict", "--site-dir", str(folder)),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        file: Page(file.read_text(encoding="utf-8"))
        for file in folder.rglob("*.html")
        if file.name != "404.html"
    }


def test_links_lead_somewhere(site):
    broken = []
    for file, page in site.items():
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            path = urllib.parse.unquote(url.path)
            target = (file.parent / path).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or not target.stat().st_size:
                broken.append(f"{file.name}: {link}")
            elif url.fragment and target in site:
                anchors = site[target].anchors
                if urllib.parse.unquote(url.fragment) not in anchors:
                    broken.append(f"{file.name}: {link} (no such anchor)")
    assert not broken


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = {link for page in site.values() for link in page.fetched}
    assert any(link.endswith("operations.png") for link in fetched)
    assert not {x for x in fetched if urllib.parse.urlsplit(x).netloc}


def test_every_public_name_is_documented(site):
    anchors = {a for page in site.values() for a in page.anchors}
    builders = {n for n in keras_augreg.__all__ if "ViT_" in n} - {"ViT_B16"}
    modules = {
        name
        for name in keras_augreg.__all__
        if inspect.ismodule(getattr(keras_augreg, name))
    }
    expected = {*keras_augreg.__all__} - builders - modules
    named = {anchor.rsplit(".", 1)[-1] for anchor in anchors}
    assert expected <= named
    for module in (augment, checkpoints, data, study):
        missing = {*module.__all__} - CONSTANTS - named
        assert not missing, module
    assert f"{visualize.__name__}.plot_rollout" in anchors


def test_tables_and_notebooks_are_there(site):
    text = {
        file.stem: file.read_text(encoding="utf-8")
        for file in site
        if file.stem in ("models", "quickstart", "index")
        and file.parent.name != "api"
    }
    assert "R50_ViT_L32" in text["models"]
    assert "328,994,856" in text["models"]
    assert "vit_tiny_patch16_224.augreg_in21k" in text["models"]
    assert "Open in Colab" in text["quickstart"]
    assert "Two commands" in text["index"]
