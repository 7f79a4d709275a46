"""The site builds without a warning; links, anchors and pictures exist."""

from __future__ import annotations

import html.parser
import inspect
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

import keras_augreg
from keras_augreg import augment, checkpoints, data, study, visualize

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
# Described by the functions that take them.
CONSTANTS = {
    *("COLUMNS", "DATASETS", "FIGURES", "OPERATIONS", "PRINTED", "STATEMENTS")
}
# Attributes that make a browser fetch a file.
FETCHED = {("img", "src"), ("link", "href"), ("script", "src")}


class Page(html.parser.HTMLParser):
    """The links, resources and anchors of a page."""

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
    """{file: Page} of the site, which is built here."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
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


def text_of(site, name):
    """The text of the page `name`, given as "FOLDER/FILE"."""
    (file,) = (f for f in site if f.as_posix().endswith(f"/{name}.html"))
    return re.sub("<.*?>", "", file.read_text(encoding="utf-8"))


def test_tables_and_notebooks_are_there(site):
    (models,) = (
        f for f in site if f.name == "models.html" if f.parent.name != "api"
    )
    models = models.read_text(encoding="utf-8")
    assert "R50_ViT_L32" in models
    assert "328,994,856" in models
    assert "vit_tiny_patch16_224.augreg_in21k" in models
    best = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    row = re.search(f"{best}</code>(.*?)</tr>", models, re.DOTALL)[1]
    # Top-1 and images/s of B/16 in google-research's README.
    assert "85.49" in row
    assert "138" in row
    quickstart = text_of(site, "notebooks/quickstart")
    assert "Open in Colab · Open in Kaggle" in quickstart
    assert "Training a small model" in quickstart  # Printed by a cell.


def test_one_page_on_fine_tuning(site):
    """The guide has the notebook in it, and the old address leads there."""
    text = text_of(site, "guides/finetune")
    assert "python recipes/finetune.py" in text
    assert "using handwritten digits" in text  # Printed by a cell.
    assert text.index("Save, and name a new") < text.index("What to set")
    (page,) = (f for f in site if f.as_posix().endswith("guides/finetune.html"))
    assert any(x.startswith("finetune/") for x in site[page].fetched)
    old = page.parents[1] / "notebooks" / "finetune.html"
    assert "url=../guides/finetune.html" in old.read_text(encoding="utf-8")


def test_first_page_shows_pictures_before_tables(site):
    (index,) = (f for f in site if f.name == "index.html")
    text = index.read_text(encoding="utf-8")
    before, _, _ = text.partition("<table>")
    assert "predictions.png" in before
    assert {"images/attention.png", "images/recipes.png"} <= site[index].links
    assert "Open in Colab" in before


def test_signatures_show_the_values_of_defaults(site):
    training = text_of(site, "api/training")
    assert "learning_rate=0.001," in training
    assert "warmup_steps=10000," in training
    # A line for each argument, so that none leaves the page.
    assert re.search(r"^\s+total_steps,$", training, re.MULTILINE)
