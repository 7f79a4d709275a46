"""Names of the release, and the table of aliases."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.util
import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_augreg.checkpoints import names
from keras_augreg.recipe import AugReg
from keras_augreg.variants import VARIANTS

pytestmark = pytest.mark.once

B16 = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
PETS = "--oxford_iiit_pet-steps_0k-lr_0.003-res_384"

# The release: 9 architectures x 3 sets x 28 recipes x 68 adaptations,
# and B/8; `vit_jax_augreg.ipynb` counts 756 of each adaptation at 384 pixels.
GRID = [name for name in names.pretrained_names() if name.variant != "ViT_B8"]


@st.composite
def checkpoint_names(draw):
    name = draw(st.sampled_from(names.pretrained_names()))
    if draw(st.booleans()):
        name = draw(st.sampled_from(names.adapted_names(name)))
    return name


@given(checkpoint_names())
def test_round_trip(name):
    assert names.parse(str(name)) == name
    assert str(names.parse(f"{name}.npz")) == str(name)
    assert names.bucket_path(str(name)) == f"augreg/{name}.npz"
    assert names.resolve(name.variant, str(name)) == str(name)
    assert name.pretrained.adapt_dataset is None
    assert str(name).startswith(str(name.pretrained))


@settings(max_examples=20, deadline=None)
@given(st.text() | st.from_regex(names._NAME))
def test_any_other_text_is_refused(text):
    known = {str(name) for name in names.pretrained_names()}
    if text.removesuffix(".npz") in known:
        return
    with pytest.raises(ValueError, match="Unknown checkpoint"):
        names.parse(text)


@settings(max_examples=20, deadline=None)
@given(checkpoint_names(), st.data())
def test_a_changed_character_is_refused_or_another_name(name, data):
    text = str(name)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    try:
        assert str(names.parse(changed)) == changed
    except ValueError as error:
        assert "Unknown checkpoint" in str(error)  # noqa: PT017


def test_fields():
    assert names.parse(B16 + PETS) == names.CheckpointName(
        variant="ViT_B16",
        dataset="i21k",
        epochs=300,
        learning_rate=0.001,
        augment="medium1",
        weight_decay=0.1,
        dropout=0.0,
        stochastic_depth=0.0,
        adapt_dataset="oxford_iiit_pet",
        adapt_steps=500,
        adapt_learning_rate=0.003,
        adapt_resolution=384,
    )


def test_fields_take_every_spelling():
    parsed = names.parse(B16 + PETS)
    fields = {
        f.name: getattr(parsed, f.name)
        for f in dataclasses.fields(parsed)
        if f.init
    }
    fields |= {
        "variant": "B/16",
        "dataset": "imagenet-21k",
        "adapt_dataset": "pets",
    }
    assert names.CheckpointName(**fields) == parsed
    with pytest.raises(
        ValueError, match="with variant='ViT_Ti32'; expected 'ViT_"
    ):
        names.CheckpointName(**fields | {"variant": "Ti/32"})
    with pytest.raises(TypeError, match="positional"):
        names.CheckpointName("ViT_B16", **fields)


@pytest.mark.parametrize("spelling", ["i21k_30-30ep", "i21k-30ep"])
def test_both_spellings_of_30_epochs(spelling):
    text = B16.replace("i21k-300ep", spelling)
    name = names.parse(text)
    assert (name.upstream, name.epochs, str(name)) == ("i21k_30", 30, text)
    assert names.parse(B16).upstream == "i21k"


@pytest.mark.parametrize(
    ("paper", "release"),
    [("none", "none"), ("light1", "light0"), ("heavy2", "strong2")],
)
def test_the_level_has_two_names(paper, release):
    name = names.parse(B16.replace("medium1", release))
    assert (name.augment, name.release_augment) == (paper, release)
    assert f"augment='{paper}'" in repr(name)
    assert f"release_augment='{release}'" in repr(name)
    assert AugReg.from_checkpoint(str(name)).augment == paper


@pytest.mark.parametrize("variant", ["ViT_B16", "B_16", "B/16", "vit_b16"])
def test_every_spelling_of_an_architecture(variant):
    assert names.resolve(variant, "augreg-in21k") == B16
    assert names.default_weights(variant) == "augreg-in21k-ft-in1k"
    assert "in21k" in names.aliases(variant)


def test_the_rule_counts_as_the_release_does():
    assert len(GRID) == len(set(GRID)) == 9 * 3 * 28
    b8 = set(names.pretrained_names()) - set(GRID)
    assert {name.augment for name in b8} == {"medium1", "medium2"}
    assert {len(names.adapted_names(name)) for name in GRID} == {68}
    assert {len(names.adapted_names(name)) for name in b8} == {34}
    # With the third B/8 and without one missing file, as published.
    assert 756 * 68 + 3 * 34 - 1 == 51_509


@pytest.mark.parametrize(
    ("wrong", "message", "nearest"),
    [
        (B16.replace("wd_0.1", "wd_0.3"), "weight_decay=0.3", B16),
        (B16.replace("medium1", "medium3"), "is 'medium3', not 'none'", B16),
        (B16.replace("medium1", "heavy1"), "is 'heavy1', not 'none'", None),
        (B16.replace("sd_0.0", "sd_0.1"), "stochastic_depth=0.1", B16),
        (B16.replace("B_16", "B_14"), "variant='B_14'", B16),
        (B16.replace("i21k", "i22k"), "dataset='i22k'", B16),
        (B16.replace("300ep", "90ep"), "epochs=90", B16),
        (B16.replace("0.001", "0.01"), "learning_rate=0.01", B16),
        (B16.replace("wd_0.1", "wd_0.10"), f"writes it as {B16}", B16),
        (B16 + PETS.replace("0k", "3k"), "adapt_steps=3000", B16 + PETS),
        (B16 + PETS.replace("0k", "10k"), "adapt_steps=10000", B16 + PETS),
        (B16 + PETS.replace("_pet", "_dog"), "adapt_dataset=", B16 + PETS),
        (B16 + PETS.replace("384", "448"), "adapt_resolution=448", B16 + PETS),
        (
            B16 + PETS.replace("0.003", "0.3"),
            "adapt_learning_rate=0.3",
            B16 + PETS,
        ),
        (B16.replace("B_16", "B_8") + PETS, "adapt_resolution=384", None),
        (B16[:-4], "not the name", B16),
        (f"gs://vit_models/augreg/{B16}.npz", "not the name", B16),
        ("augreg_in21k", "not the name", "augreg-in21k"),
        ("ViT-B_16", "not the name", None),
        ("x" * 10_000, "'xxx.*xxx...': It is not the name", None),
        (B16 + PETS.replace("0k", "9" * 10_000 + "k"), "not the name", None),
    ],
)
def test_bad_names_get_the_nearest(wrong, message, nearest):
    with pytest.raises(ValueError, match="Unknown checkpoint") as error:
        names.parse(wrong)
    text = str(error.value)
    assert re.search(message, text)
    assert nearest is None or nearest in text.partition("Nearest: ")[2]
    assert "aliases: augreg-in21k, augreg-in21k-ft-in1k" in text
    assert len(text) < 1000


def test_the_table_is_consistent():
    rows = names.table()
    assert len(rows) == 84
    for name, row in rows.items():
        assert row["sources"], name
        if "/" in name:
            assert row["variant"] in VARIANTS
            assert names.bucket_path(name) == f"{name}.npz"
        else:
            assert names.parse(name).variant == row["variant"]
            assert names.bucket_path(name) == f"augreg/{name}.npz"
            assert (row["timm"] != "") <= ("timm" in row["sources"]), name
            # The checkpoint it was fine-tuned from is there as well.
            assert str(names.parse(name).pretrained) in rows


def _chosen(alias, resolution=None):
    return {
        variant: names.resolve(variant, alias, resolution)
        for variant in VARIANTS
        if alias in names.aliases(variant)
    }


def test_augreg_in21k_is_the_choice_of_google_research():
    chosen = _chosen("augreg-in21k")
    assert set(chosen) == {*names._FULL_GRID, "ViT_B8"}
    for variant, name in chosen.items():
        assert names.parse(name).adapt_dataset is None
        source = "notebook" if variant == "ViT_B8" else "readme"
        assert source in names.table()[name]["sources"].split()


def test_ft_in1k_is_the_choice_of_google_at_384_and_of_timm_at_224():
    assert _chosen("augreg-in21k-ft-in1k").keys() == {
        *names._FULL_GRID,
        "ViT_B8",
    }
    for resolution, source in ((384, "readme"), (224, "timm")):
        chosen = _chosen("augreg-in21k-ft-in1k", resolution)
        b8 = names.parse(chosen.pop("ViT_B8"))
        assert b8.adapt_resolution == 224  # there is no other
        for name in chosen.values():
            parsed = names.parse(name)
            assert parsed.adapt_dataset == "imagenet2012"
            assert parsed.adapt_resolution == resolution
            assert source in names.table()[name]["sources"].split()


def test_in1k_is_the_choice_of_timm():
    assert set(_chosen("augreg-in1k")) == {"ViT_S16", "ViT_B16", "ViT_B32"}
    for name in _chosen("augreg-in1k").values():
        parsed = names.parse(name)
        assert (parsed.dataset, parsed.adapt_dataset) == ("i1k", "imagenet2012")
        assert names.table()[name]["timm"].endswith("_224.augreg_in1k")


def test_in21k_is_the_older_release():
    assert _chosen("in21k") == {
        "ViT_B8": "imagenet21k/ViT-B_8",
        "ViT_B16": "imagenet21k/ViT-B_16",
        "ViT_B32": "imagenet21k/ViT-B_32",
        "ViT_L16": "imagenet21k/ViT-L_16",
        "ViT_L32": "imagenet21k/ViT-L_32",
        "R26_ViT_B32": "imagenet21k/R26+ViT-B_32",
        "R50_ViT_B16": "imagenet21k/R50+ViT-B_16",
        "R50_ViT_L32": "imagenet21k/R50+ViT-L_32",
    }


@pytest.mark.parametrize(
    ("resolution", "file"),
    [(None, 224), (32, 224), (304, 224), (305, 384), (384, 384), (1024, 384)],
)
def test_an_alias_means_the_nearer_resolution(resolution, file):
    name = names.resolve("ViT_B16", "augreg-in21k-ft-in1k", resolution)
    assert name.endswith(f"-res_{file}")


def test_the_table_agrees_with_timm():
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("needs the source of timm")
    models = pathlib.Path(spec.origin).parent / "models"
    found = {
        timm: name
        for path in models.glob("vision_transformer*.py")
        for timm, name in re.findall(
            r"'([\w.]+)': _cfg\(\s*url='https://storage.googleapis.com/"
            r"vit_models/augreg/([^']+)\.npz'",
            path.read_text(),
        )
    }
    ours = {row["timm"]: name for name, row in names.table().items()}
    assert len(found) > 30
    assert found == {timm: name for timm, name in ours.items() if timm}


def test_default_weights():
    assert {v for v in VARIANTS if names.default_weights(v) is None} == {
        "ViT_Ti32",
        "ViT_L32",
        "R26_ViT_B32",
        "R50_ViT_B16",
    }
    assert names.default_weights("ViT_B16") == "augreg-in21k-ft-in1k"


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match=r"'ViT_B14'\. Nearest: .*ViT_B16"):
        names.default_weights("ViT_B14")
    with pytest.raises(ValueError, match="architecture 'x'"):
        names.resolve("x", "augreg-in21k")


def test_an_alias_that_an_architecture_lacks():
    with pytest.raises(
        ValueError,
        match=r"'augreg-in1k' was not released for ViT_L16, only for ViT_S16, "
        r"ViT_B16, ViT_B32\. Aliases of ViT_L16: augreg-in21k, "
        r"augreg-in21k-ft-in1k, in21k\.",
    ):
        names.resolve("ViT_L16", "augreg-in1k")
    with pytest.raises(ValueError, match="Aliases of ViT_Ti32: none"):
        names.resolve("ViT_Ti32", "augreg-in21k")


def test_an_unknown_alias():
    with pytest.raises(ValueError, match="Nearest: augreg-in21k,"):
        names.resolve("ViT_B16", "augreg-in22k")


@pytest.mark.parametrize("name", [B16, B16 + PETS, "imagenet21k/ViT-B_16"])
def test_a_name_of_another_architecture(name):
    assert names.resolve("ViT_B16", f"{name}.npz") == name
    with pytest.raises(
        ValueError, match="checkpoint of ViT_B16, not of ViT_S16: build"
    ):
        names.resolve("ViT_S16", name)


def test_docstrings():
    assert doctest.testmod(names).failed == 0
    assert doctest.testmod(names).attempted > 0


def test_the_table_of_aliases_in_the_docs():
    def short(name):
        fields = names.parse(name)
        text = fields.augment
        if fields.release_augment != fields.augment:
            text += f" ({fields.release_augment})"
        text += f" {fields.weight_decay} {fields.dropout}"
        if fields.adapt_dataset:
            text += f" / {fields.adapt_learning_rate}"
            text += f" @{fields.adapt_resolution}"
        return text

    expected = []
    for variant, pretrained in _chosen("augreg-in21k").items():
        chosen = [pretrained] + [
            names.resolve(variant, "augreg-in21k-ft-in1k", resolution)
            for resolution in (384, 224)
        ]
        others = [
            name
            for name, row in names.table().items()
            if row["variant"] == variant and ".augreg_in21k" in row["timm"]
            if name not in chosen
        ]
        cells = [variant, *map(short, chosen), ", ".join(map(short, others))]
        expected.append(f"| {' | '.join(cells)} |")
    page = pathlib.Path(__file__).parents[2] / "docs/checkpoints.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    models = tuple(f"| {variant} " for variant in VARIANTS)
    assert [line for line in lines if line.startswith(models)] == expected
