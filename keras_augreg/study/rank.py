"""Ranks checkpoints on one's own images, without fine-tuning any.

The paper chooses by upstream validation accuracy (section 4.5). This adds what
a frozen model's features say about the images themselves: nearest neighbours,
few-shot ridge regression, and the evidence of a linear model (LogME, You et
al., arXiv 2102.11005).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_augreg import checkpoints as release
from keras_augreg.checkpoints import convert, files, index, names
from keras_augreg.output import markdown_table
from keras_augreg.study.advice import published_models
from keras_augreg.training.fewshot import CONSTANT, fewshot_accuracy
from keras_augreg.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    import pandas

NEIGHBOURS = 10
FOLDS = 5
SCORES = ("knn", "fewshot", "logme")
_UPSTREAM = (
    "Upstream scores are validation accuracies of the pre-training: compare "
    "them within one architecture and pre-training set only. The best one is "
    "as good as the best of all in most cases; 8 of 45 lost half a point or "
    "more, up to 3.6 (arXiv 2106.10270, section 4.5, Figure 5)."
)
_MINIVAL = (
    "If your images are from ImageNet-1k, do not trust knn, fewshot and logme "
    "for models of ImageNet-21k, which have seen its training images; nor "
    "minival, a part of them, to choose fine-tuned models. The paper takes "
    "ImageNetV2 for that (section 4.5)."
)
# The paper recommends more data in pre-training (section 7).
_PREFERRED = ("i21k", "i21k_30", "i1k")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A checkpoint and its scores.

    Args:
        name: The name or path that was given.
        place: Mean of the places by `knn`, `fewshot` and `logme`, from 1.
        knn: Accuracy of the nearest neighbours, cross-validated.
        fewshot: Accuracy of ridge regression on a few images of each class.
        logme: Log evidence of a linear model, for each image and class.
        upstream: Validation accuracy of the pre-training, 0 to 1; `None` if
            not known.
        seconds: Time that it took, with the download.
    """

    name: str
    place: float
    knn: float
    fewshot: float
    logme: float
    upstream: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Checkpoints, the best first; `print` it.

    Args:
        rows: The checkpoints that were scored.
        left_out: Name -> why a checkpoint was not scored.
        examples: Number of images.
        notes: What to keep in mind.
    """

    rows: tuple[Ranked, ...]
    left_out: dict[str, str]
    examples: int
    notes: tuple[str, ...]

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each checkpoint."""
        import pandas

        return pandas.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def __str__(self) -> str:
        head = [field.name for field in dataclasses.fields(Ranked)]
        lines = markdown_table(head, map(dataclasses.astuple, self.rows))
        left_out = [
            f"Left out: {name}: {why}." for name, why in self.left_out.items()
        ]
        notes = (f"- {note}\n" for note in (*self.notes, *left_out))
        return "\n".join((lines, "".join(notes)))


def rank_checkpoints(
    batches: Iterable[Any],
    checkpoints: Sequence[str | os.PathLike[str]] | None = None,
    *,
    downloads: int = 0,
    minutes: float | None = None,
    shots: int = 10,
    seed: int = 0,
    report: Callable[[str], object] = print,
) -> Ranking:
    """Ranks checkpoints by how well their features tell your images apart.

    A budget is spent on those that the paper would choose: first the best
    upstream of each architecture on ImageNet-21k (the architectures by the
    paper's Table 3), then the others of ImageNet-21k by upstream accuracy, and
    those of ImageNet-1k last.

    Args:
        batches: Batches of images in [0, 255] and integer labels, read once
            for each checkpoint, such as those of `data.load` with
            `training=False`. A thousand images are plenty.
        checkpoints: Names of the release, or `.npz` files, such as a sweep's
            `model.npz`. `None` for all pre-trained ones of the release in the
            cache or in a mirror directory.
        downloads: Most checkpoints to download; others that are not on this
            machine are left out. With `checkpoints=None`, those that come
            first in the order above are added. Upstream accuracies are those
            of the release's index, if `checkpoints.search` has downloaded it.
        minutes: After these no other checkpoint is begun; `None` for no
            limit.
        shots: Images of each class for few-shot regression, at most; fewer
            if a class has fewer.
        seed: Seed of the divisions.
        report: Called with a line for each checkpoint.

    Returns:
        The ranking, with the paper's caveats.

    Raises:
        ImportError: If scikit-learn (extra `study`) is not installed.
        ValueError: If there is no checkpoint, if a class has fewer than two
            images, or an argument is out of range.

    Example:
    ```python
    images, _ = keras_augreg.data.load(
        "photos", "train", image_size=224, batch_size=32, training=False
    )
    print(keras_augreg.study.rank_checkpoints(images, minutes=10))
    ```
    """
    if downloads < 0 or shots < 1 or (minutes is not None and minutes < 0):
        raise ValueError(
            "`downloads` and `minutes` must not be negative, and `shots` be at "
            f"least 1. Received: {downloads=}, {minutes=}, {shots=}"
        )
    start = time.monotonic()
    left_out: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    candidates = _candidates(checkpoints, downloads)
    examples = 0
    for name, upstream, here in candidates:
        began = time.monotonic()
        if minutes is not None and began - start >= 60 * minutes:
            left_out[name] = f"the {minutes:g} minutes were over"
            continue
        if not here and downloads < 1:
            left_out[name] = "not on this machine, and no download left"
            continue
        downloads -= not here
        try:
            features, labels = _features(name, batches)
        except OSError as error:
            left_out[name] = f"{error}".rstrip(".")
            continue
        examples = len(labels)
        scores = transfer_scores(features, labels, shots=shots, seed=seed)
        seconds = time.monotonic() - began
        found.append({"name": name, "upstream": upstream, "seconds": seconds,
                      **scores})  # fmt: skip
        text = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
        report(f"{name}: {text}, {seconds:.0f} s")
    places = _places(found)
    rows = [
        Ranked(place=place, **row)
        for place, row in zip(places, found, strict=True)
    ]
    rows.sort(key=lambda row: (row.place, -row.logme))
    return Ranking(tuple(rows), left_out, examples, _notes(rows, examples))


def transfer_scores(
    features: np.ndarray, labels: np.ndarray, *, shots: int = 10, seed: int = 0
) -> dict[str, float]:
    """Scores features for a classification, without training a model.

    Args:
        features: Float (N, D).
        labels: Integer (N,), at least two of each class.
        shots: Examples of each class for few-shot regression, at most.
        seed: Seed of the divisions.

    Returns:
        `knn`, the accuracy of the 10 nearest neighbours by cosine, and
        `fewshot`, that of `fewshot_accuracy`, both cross-validated in 5 parts
        (fewer if a class has fewer examples), and `logme`, the log evidence of
        a linear model for each example and class.

    Raises:
        ImportError: If scikit-learn (extra `study`) is not installed.
        ValueError: If a class has fewer than two examples.

    Example:
    >>> features = np.eye(3)[[0, 1, 2] * 4]
    >>> transfer_scores(features, np.array([0, 1, 2] * 4))["fewshot"]
    1.0
    """
    try:
        from sklearn.linear_model import BayesianRidge
        from sklearn.model_selection import StratifiedKFold
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError as error:
        raise ImportError(
            "Ranking needs scikit-learn, which is not installed: pip install "
            "'keras_augreg[study]'"
        ) from error
    features = np.asarray(features, "float64")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or len(classes) < 2:
        raise ValueError(
            "Ranking needs two classes or more, each with two images or more. "
            f"Received: {len(classes)} classes, the smallest with "
            f"{counts.min()} images"
        )
    folds = StratifiedKFold(
        min(FOLDS, counts.min()), shuffle=True, random_state=seed
    )
    neighbours, ridge = [], []
    for train, test in folds.split(features, labels):
        x, y = features[train], labels[train]
        nearest = KNeighborsClassifier(
            min(NEIGHBOURS, len(x)), metric="cosine", weights="distance"
        )
        neighbours.append(nearest.fit(x, y).score(features[test], labels[test]))
        fewest = int(np.unique(y, return_counts=True)[1].min())
        ridge.append(
            fewshot_accuracy(
                x, y, features[test], labels[test],
                shots=min(shots, fewest), seed=seed,
            )
        )  # fmt: skip
    # Flat priors of both precisions: type-II maximum likelihood, as in LogME.
    # The constant stands for an intercept that the prior hardly shrinks.
    flat = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
    scale = CONSTANT * np.abs(features).max()
    inputs = np.pad(features, ((0, 0), (0, 1)), constant_values=scale)
    evidence = [
        BayesianRidge(fit_intercept=False, compute_score=True, **flat)
        .fit(inputs, labels == c)
        .scores_[-1]
        for c in classes
    ]
    return {
        "knn": float(np.mean(neighbours)),
        "fewshot": float(np.mean(ridge)),
        "logme": float(np.mean(evidence) / len(labels)),
    }


def _candidates(
    checkpoints: Sequence[str | os.PathLike[str]] | None, downloads: int
) -> list[tuple[str, float | None, bool]]:
    """Name, upstream accuracy, whether it is on this machine, in order."""
    found: list[tuple[str, float | None, bool]] = []
    if checkpoints is None:
        wanted = list(map(str, names.pretrained_names()))
    else:
        wanted = [os.fspath(checkpoint) for checkpoint in checkpoints]
    for name in wanted:
        if pathlib.Path(name).is_file():
            found.append((name, None, True))
            continue
        known = index.lookup(name)  # Complains about unknown names.
        here = files.local(names.bucket_path(known.name)) is not None
        found.append((name, known.figures.get("final_val"), here))
    accuracy, _ = published_models()
    picks = {names.resolve(v, "augreg-in21k"): a for v, a in accuracy.items()}

    def order(row: tuple[str, float | None, bool]) -> tuple[float, int, float]:
        name, upstream, _ = row
        place = -1  # a file of one's own
        if not pathlib.Path(name).is_file():
            place = _PREFERRED.index(names.parse(name).dataset)
        return -picks.get(name, 0.0), place, -(upstream or 0.0)

    found.sort(key=order)
    if checkpoints is None:
        away = [row for row in found if not row[2]]
        taken = away[:downloads]
        found = [row for row in found if row[2] or row in taken]
    if not found:
        raise ValueError(
            "No checkpoint to rank: none of the release is in the cache or in "
            "a mirror directory. Pass their names as `checkpoints`, and how "
            "many may be downloaded as `downloads`."
        )
    return found


def _features(name: str, batches: Iterable[Any]) -> tuple[Any, Any]:
    """What a checkpoint's classifier would read, (N, D), and labels (N,)."""
    is_file = pathlib.Path(name).is_file()
    with _as_os_error():
        contents = convert.inspect(name if is_file else release.download(name))
    model: Any = None
    features, labels = [], []
    for batch in batches:
        images, truth, *weights = map(np.asarray, batch)
        if model is None:
            model = VisionTransformer(
                **dataclasses.asdict(contents.sizes),
                input_shape=images.shape[1:],
                class_token=contents.class_token,
                include_top=False,
                pooling="token" if contents.class_token else "avg",
            )
            with _as_os_error():
                release.load(model, contents)
        kept = weights[0] > 0 if weights else np.ones(len(truth), bool)
        if truth.ndim > 1:
            raise ValueError(
                "Ranking needs integer labels (B,). Received labels of shape "
                f"{truth.shape}"
            )
        features.append(np.asarray(model.predict_on_batch(images))[kept])
        labels.append(truth[kept])
    if not features:
        raise ValueError("`batches` is empty, or can be read only once.")
    return np.concatenate(features), np.concatenate(labels)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """A damaged file is left out, as one that cannot be downloaded is."""
    try:
        yield
    except ValueError as error:
        raise OSError(str(error)) from error


def _places(rows: list[dict[str, Any]]) -> list[float]:
    """The mean of each row's places by the scores, ties shared."""
    from scipy.stats import rankdata

    if not rows:
        return []
    scores = [[-row[key] for key in SCORES] for row in rows]
    return [float(place) for place in rankdata(scores, axis=0).mean(axis=1)]


def _notes(rows: list[Ranked], examples: int) -> tuple[str, ...]:
    notes = []
    if rows:
        share = rows[0].knn
        error = (share * (1 - share) / examples) ** 0.5
        notes.append(
            f"{examples} images: differences of knn and fewshot below "
            f"{2 * error:.1%} are noise."
        )
    for dataset in _PREFERRED:
        known = [
            row
            for row in rows
            if row.upstream is not None
            and names.parse(row.name).dataset == dataset
        ]
        if len(known) > 1:
            first = max(known, key=lambda row: row.upstream or 0.0)
            notes.append(
                f"Of those pre-trained on {dataset}, the best upstream, "
                f"{first.name}, is at place {known.index(first) + 1} of "
                f"{len(known)} on your images."
            )
    return (*notes, _UPSTREAM, _MINIVAL)
