"""The order of batches, and what follows the images of one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_augreg.data.decode import Cropping, ImageError
from keras_augreg.data.feed import Feed
from keras_augreg.data.options import Options
from keras_augreg.data.order import PADDING, Order, draws
from keras_augreg.data.report import Skipped
from keras_augreg.data.sources import Examples

if keras.backend.backend() != "jax":
    pytest.skip("the same on every backend", allow_module_level=True)

layouts = st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(0, 100))


@given(layouts, st.integers(0, 3))
def test_training_reads_every_example_once_an_epoch(layout, seed):
    shards, shard_batch, more = layout
    size = shards * shard_batch
    n = size + more
    orders = [
        Order(n, size, True, seed, shard=(i, shards)) for i in range(shards)
    ]
    steps = n // size
    assert {order.steps for order in orders} == {steps}
    for epoch in (0, 1):
        batches = [
            order.batch(epoch * steps + step)
            for step in range(steps)
            for order in orders
        ]
        assert {b.epoch for b in batches} == {epoch}
        numbers = np.concatenate([b.numbers for b in batches])
        assert len(set(numbers.tolist())) == len(numbers) == steps * size
        assert set(numbers.tolist()) <= set(range(n))
        places = [b.start + i for b in batches for i in range(shard_batch)]
        assert places == list(range(steps * size))


@given(layouts)
def test_evaluation_reads_every_example_once(layout):
    shards, shard_batch, n = layout
    size = shards * shard_batch
    orders = [
        Order(n, size, False, 0, pad=True, shard=(i, shards))
        for i in range(shards)
    ]
    steps = -(-n // size)
    assert {order.steps for order in orders} == {steps}
    batches = [o.batch(s) for s in range(steps) for o in orders]
    numbers = np.concatenate([b.numbers for b in batches] + [[]])
    assert numbers[numbers != PADDING].tolist() == list(range(n))
    assert all(len(b.numbers) == shard_batch for b in batches)


def test_the_last_batch_is_short_without_padding():
    order = Order(10, 4, False, 0)
    assert order.batch(2).numbers.tolist() == [8, 9]


def test_orders_differ_by_epoch_and_seed_and_are_pinned():
    def epoch(seed, number):
        return Order(8, 8, True, seed).batch(number).numbers.tolist()

    # Another order would break the restart of runs that are under way.
    assert epoch(0, 0) == PINNED[0]
    assert epoch(0, 1) == PINNED[1]
    assert epoch(1, 0) == PINNED[2]
    assert draws(0, 1, 2).random() == PINNED[3]


PINNED = (
    [3, 7, 4, 0, 2, 6, 5, 1],
    [0, 5, 6, 1, 3, 2, 4, 7],
    [6, 3, 7, 1, 4, 0, 2, 5],
    0.7209151272570041,
)


# --- labels and weights


def finish(training=False, class_weights=None, skipped=None, **options):
    examples = Examples(list("abcd"), LABELS, ["x", "y", "z"], {}.get)
    cropping = Cropping((8, 8), "resize", training, False, 8)
    options = Options(**options)
    feed = Feed(examples, cropping, 4, 0, options, class_weights, skipped)
    return feed.finish


LABELS = np.array([0, 1, 2, 1])
ONES = np.ones(4, np.float32)
NONE = np.zeros(4, bool)
BROKEN = ["", "b", "", "d"]


def test_labels_are_integers_or_vectors():
    take, labels, _ = finish()(LABELS, ONES, NONE, [""] * 4)
    assert take.tolist() == [0, 1, 2, 3]
    assert labels.dtype == np.int32
    assert labels.tolist() == LABELS.tolist()
    _, labels, _ = finish(one_hot=True)(LABELS, ONES, NONE, [""] * 4)
    assert labels.dtype == np.float32
    assert labels.tolist() == np.eye(3)[LABELS].tolist()


def test_class_weights_multiply_the_examples_own():
    done = finish(class_weights=np.array([1, 2, 3], np.float32))
    _, _, weights = done(LABELS, ONES * 0.5, NONE, [""] * 4)
    assert weights.tolist() == [0.5, 1.0, 1.5, 1.0]


def test_padding_weighs_nothing():
    padding = np.array([False, False, False, True])
    _, labels, weights = finish(pad=True)(LABELS, ONES, padding, [""] * 4)
    assert labels.tolist() == [0, 1, 2, 0]
    assert weights.tolist() == [1, 1, 1, 0]


def test_broken_images_are_left_out_of_an_evaluation():
    skipped = Skipped([])
    take, labels, _ = finish(skipped=skipped)(LABELS, ONES, NONE, BROKEN)
    assert take.tolist() == [0, 2]
    assert labels.tolist() == [0, 2]
    _, _, weights = finish(skipped=skipped, pad=True)(
        LABELS, ONES, NONE, BROKEN
    )
    assert weights.tolist() == [1, 0, 1, 0]
    skipped.end_epoch()
    assert skipped.names == ["b", "d"]


def test_broken_images_give_their_places_to_the_next_in_training():
    done = finish(skipped=Skipped([]), training=True)
    take, labels, _ = done(LABELS, ONES, NONE, BROKEN)
    assert take.tolist() == [0, 2, 2, 0]
    assert labels.tolist() == [0, 2, 2, 0]


def test_a_batch_of_broken_images_is_an_error():
    done = finish(skipped=Skipped([]), training=True)
    with pytest.raises(ImageError, match=r"No image of a batch.*'b'"):
        done(LABELS[:2], ONES[:2], NONE[:2], ["b", "c"])


def test_the_report_counts_each_name_once_an_epoch(monkeypatch):
    lines = []
    monkeypatch.setattr(
        "keras_augreg.data.report.logging.warning",
        lambda text, *arguments: lines.append(text % arguments),
    )
    skipped = Skipped(["always"])
    for _ in range(2):
        skipped.add(["b", "a"])
        skipped.add(["b"])
        skipped.end_epoch()
        assert skipped.names == ["a", "always", "b"]
    skipped.add(str(i) for i in range(9))
    skipped.end_epoch()
    assert len(lines) == 3
    assert lines[0].endswith("3 ('a', 'always', 'b')")
    assert lines[2].endswith("10 ('0', '1', '2', '3', '4', ...)")
    Skipped([]).end_epoch()
    assert len(lines) == 3
