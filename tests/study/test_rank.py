"""Ranking by features, with made-up checkpoints in a mirror directory."""

from __future__ import annotations

import csv

import _checkpoints
import keras
import numpy as np
import pytest
from _checkpoints import INDEX_HEADER
from scipy import optimize, stats

import keras_augreg
from keras_augreg.checkpoints import load
from keras_augreg.study import rank
from keras_augreg.study.rank import rank_checkpoints, transfer_scores

NAME = "S_16-i21k-300ep-lr_0.001-aug_{}-wd_0.1-do_0.0-sd_0.0"
GOOD, USELESS, AWAY = map(NAME.format, ("none", "light1", "medium1"))
ACCURACY = {GOOD: 0.3, USELESS: 0.5, AWAY: 0.4}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Two files, one with features that are all alike, and the index."""
    folder = tmp_path / "mirror"
    (folder / "augreg").mkdir(parents=True)
    for seed, name in enumerate((GOOD, USELESS)):
        arrays = _checkpoints.release(grid=(4, 4), patch=4, seed=seed)
        if name == USELESS:
            arrays["Transformer/encoder_norm/scale"] *= 0
        np.savez(folder / "augreg" / f"{name}.npz", **arrays)
    with open(folder / "augreg/index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, INDEX_HEADER, restval="")
        writer.writeheader()
        for name, accuracy in ACCURACY.items():
            for tuned in ("oxford_iiit_pet-steps_0k-lr_0.003-res_224",):
                writer.writerow(
                    {"filename": name, "final_val": accuracy,
                     "adapt_filename": f"{name}--{tuned}"}
                )  # fmt: skip
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", str(folder))
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path / "cache"))
    return folder


def photos(count=24):
    """Batches of bright and of dark images; the last one is padded."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 80, (count, 16, 16, 3)) + 150 * labels[
        :, None, None, None
    ]  # fmt: skip
    kept = np.ones(count)
    kept[-2:] = 0
    labels[-2:] = 7
    return [
        (pixels[i : i + 8].astype("uint8"), labels[i : i + 8], kept[i : i + 8])
        for i in range(0, count, 8)
    ]


def test_ranking_and_its_caveats(mirror):
    lines = []
    found = rank_checkpoints(photos(), report=lines.append)
    assert [row.name for row in found.rows] == [GOOD, USELESS]
    good, useless = found.rows
    assert (good.place, useless.place) == (1, 2)
    assert (good.knn, good.fewshot) == (1, 1)
    assert useless.fewshot <= 0.7
    assert good.logme > useless.logme
    assert (good.upstream, useless.upstream) == (0.3, 0.5)
    # The best upstream comes first: a budget would be spent on it.
    assert [line.split(":")[0] for line in lines] == [USELESS, GOOD]
    assert found.examples == 22
    text = str(found)
    assert "minival" in text
    assert "8 of 45 lost half a point" in text
    assert "Of those pre-trained on i21k, the best" in text
    assert f"best upstream, {USELESS}, is at place 2 of 2" in text
    assert "| name | place | knn | fewshot | logme | upstream |" in text
    assert found.to_pandas()["name"].tolist() == [GOOD, USELESS]


def test_features_are_what_the_classifier_reads(mirror):
    path = mirror / "augreg" / f"{GOOD}.npz"
    features, labels = rank._features(GOOD, photos())
    again, _ = rank._features(str(path), photos())
    np.testing.assert_array_equal(features, again)
    model = _checkpoints.tiny(include_preprocessing=True)
    load(model, path)
    body = keras.Model(model.inputs, model.get_layer("head").input)
    images = np.concatenate([batch[0] for batch in photos()])
    expected = np.asarray(body.predict(images, verbose=0))
    np.testing.assert_allclose(features, expected[:22], atol=1e-5)
    assert labels.tolist() == [0, 1] * 11


def test_a_sweeps_own_models(mirror, tmp_path):
    model = _checkpoints.tiny()
    path = keras_augreg.checkpoints.to_npz(model, tmp_path / "model.npz")
    found = rank_checkpoints(photos(), [path, GOOD])
    assert {row.name for row in found.rows} == {str(path), GOOD}
    by_name = {row.name: row for row in found.rows}
    assert by_name[str(path)].upstream is None
    content = bytearray(path.read_bytes())
    for start, what in ((0, path), (1000, path)):
        content[start : start + 40] = bytes(40)
        path.write_bytes(content)
        found = rank_checkpoints(photos(), [what, GOOD], report=len)
        assert [row.name for row in found.rows] == [GOOD]
        assert str(path) in found.left_out


@pytest.mark.once
def test_budgets_of_downloads_and_minutes(mirror, tmp_path, monkeypatch):
    asked = []
    here = {GOOD: 0, USELESS: 0}
    other = NAME.format("medium2")

    def features(name, batches):
        asked.append(name)
        if name == other:
            raise rank.release.DownloadError("HTTP 404")
        return np.eye(2)[[0, 1] * 5], np.array([0, 1] * 5)

    monkeypatch.setattr(rank, "_features", features)
    rank_checkpoints(photos(), report=len)
    assert asked == [USELESS, GOOD]
    asked.clear()
    rank_checkpoints(photos(), downloads=1, report=len)
    pick = keras_augreg.checkpoints.resolve("R50_L_32", "augreg-in21k")
    assert asked == [pick, USELESS, GOOD]
    asked.clear()
    names = [AWAY, other, *here]
    found = rank_checkpoints(photos(), names, downloads=1, report=len)
    assert asked == [USELESS, AWAY, GOOD]
    assert found.left_out == {
        other: "not on this machine, and no download left"
    }
    found = rank_checkpoints(photos(), names, downloads=2, report=len)
    assert found.left_out == {other: "HTTP 404"}
    assert f"Left out: {other}: HTTP 404." in str(found)
    found = rank_checkpoints(photos(), names, minutes=0, report=len)
    assert found.rows == ()
    assert set(found.left_out.values()) == {"the 0 minutes were over"}
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", str(tmp_path))
    with pytest.raises(ValueError, match="No checkpoint to rank"):
        rank_checkpoints(photos())


@pytest.mark.once
def test_scores_of_no_some_and_all_information():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    noise = rng.normal(size=(120, 16))
    means = rng.normal(size=(4, 16))[labels]
    none, some, much = (
        transfer_scores(noise + share * means, labels)
        for share in (0.0, 0.4, 4.0)
    )
    for name in rank.SCORES:
        assert none[name] < some[name] < much[name]
    assert none["knn"] == pytest.approx(0.25, abs=0.1)
    assert much["knn"] == much["fewshot"] == 1


@pytest.mark.once
def test_logme_is_the_maximum_of_the_evidence():
    """Against the density of the labels, maximised by another method."""
    rng = np.random.default_rng(1)
    labels = np.array([0, 1] * 20)
    features = rng.normal(size=(40, 3)) + labels[:, None]
    inputs = np.pad(
        features, ((0, 0), (0, 1)),
        constant_values=rank.CONSTANT * np.abs(features).max(),
    )  # fmt: skip

    def evidence(logs, target):
        prior, noise = np.exp(logs)
        covariance = inputs @ inputs.T / prior + np.eye(40) / noise
        return -stats.multivariate_normal(cov=covariance).logpdf(target)

    expected = [
        -optimize.minimize(
            evidence, (5, 1), ((labels == c).astype(float),), "Nelder-Mead"
        ).fun
        for c in (0, 1)
    ]
    found = transfer_scores(features, labels)["logme"]
    assert found == pytest.approx(np.mean(expected) / 40, abs=1e-3)


@pytest.mark.once
def test_messages(mirror):
    with pytest.raises(ValueError, match=r"must not be negative.*downloads=-1"):
        rank_checkpoints(photos(), downloads=-1)
    with pytest.raises(ValueError, match="smallest with 1 images"):
        transfer_scores(np.eye(3), np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="1 classes"):
        transfer_scores(np.eye(3), np.array([0, 0, 0]))
    with pytest.raises(ValueError, match="`batches` is empty"):
        rank_checkpoints([], [GOOD])
    one_hot = [(batch[0], np.eye(8)[batch[1]]) for batch in photos()]
    with pytest.raises(ValueError, match=r"labels of shape \(8, 8\)"):
        rank_checkpoints(one_hot, [GOOD])
    with pytest.raises(ValueError, match="not the name of a released"):
        rank_checkpoints(photos(), ["nothing"])


@pytest.mark.once
def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.neighbors", None)
    with pytest.raises(ImportError, match=r"keras_augreg\[study\]"):
        transfer_scores(np.eye(4), np.array([0, 0, 1, 1]))


def test_a_budget_goes_to_those_that_the_paper_would_choose(mirror):
    """Accuracies of ImageNet-1k are higher, which says nothing."""
    of_i1k = GOOD.replace("i21k", "i1k")
    file = mirror / "augreg" / "index.csv"
    with open(file, "a", newline="") as lines:
        csv.DictWriter(lines, INDEX_HEADER, restval="").writerow(
            {"filename": of_i1k, "final_val": 0.8,
             "adapt_filename": f"{of_i1k}--cifar100-steps_2k-lr_0.01-res_224"}
        )  # fmt: skip
    pick = keras_augreg.checkpoints.resolve("S/16", "augreg-in21k")
    given = [of_i1k, GOOD, USELESS, pick]
    order = [name for name, *_ in rank._candidates(given, 0)]
    assert order == [pick, USELESS, GOOD, of_i1k]
    # Without the index, google-research's picks are known.
    file.unlink()
    for path in file.parent.glob("*.npz"):
        path.unlink()
    found = [name for name, *_ in rank._candidates(None, 9)]
    assert sorted(found) == sorted(
        keras_augreg.checkpoints.resolve(v, "augreg-in21k")
        for v in ("Ti/16", "S/32", "S/16", "B/32", "B/16", "L/16", "R_Ti_16",
                  "R26_S_32", "R50_L_32")
    )  # fmt: skip
