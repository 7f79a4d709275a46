"""Whether the paper's findings hold in one's own table.

Each finding (sections 4.1 to 4.6) is a mean of differences in test accuracy.
A side of a difference is a set of settings, of which validation chooses one.
The bootstrap draws seeds, chooses again, and draws test examples, too, where
a sweep has recorded which ones were classified correctly.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_augreg.study import select

if TYPE_CHECKING:
    import pandas

CORRECT = "correct.npy"
"""In the folder of a cell: which test examples were classified correctly."""

HOLDS, DOES_NOT, UNTOLD = "holds", "does not hold", "cannot be told"
# Models of 4.6 are compared if neither is faster by more than this factor.
LIKE_SPEED = 1.5
MOST_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a table says about a finding of the paper; `print` it.

    Args:
        section: Section of the paper.
        statement: The finding as it is tested.
        verdict: "holds", "does not hold" or "cannot be told".
        comparisons: Number of differences that were averaged.
        difference: Their mean in percentage points; `None` without any.
        interval: Its bootstrap interval; `None` with less than two seeds.
        margin: The finding holds if the difference is above this.
        seeds: Number of seeds that the settings of all differences share.
        left_out: Differences that were not averaged: their settings lack
            these seeds.
        examples: Whether test examples were drawn, too.
        seeds_needed: How many seeds would tell, by the spread between the
            seeds alone, if the difference stays; `None` if unknown or more
            than 1,000.
    """

    section: str
    statement: str
    verdict: str
    comparisons: int
    difference: float | None
    interval: tuple[float, float] | None
    margin: float
    seeds: int
    left_out: int
    examples: bool
    seeds_needed: int | None

    @property
    def numbers(self) -> str:
        """Difference, interval, comparisons and seeds, in words."""
        if not self.comparisons:
            return "the table has nothing to compare"
        if self.difference is None:
            return "no seed has all of the runs to compare"
        text = f"{self.difference:+.1f} points"
        if self.interval:
            text += " [{:+.1f}, {:+.1f}]".format(*self.interval)
        text += f", {_plural(self.comparisons, 'comparison')}"
        text += f", {_plural(self.seeds, 'seed')}"
        text += " and test examples" if self.examples else ""
        return text + (f"; {self.left_out} left out" if self.left_out else "")

    def __str__(self) -> str:
        text = f"{self.section} {self.statement}: {self.verdict}"
        text += f" ({self.numbers}"
        if self.verdict == UNTOLD and self.seeds_needed:
            text += f"; {self.seeds_needed} seeds would tell"
        return f"{text})"


class _Term(NamedTuple):
    sign: int
    settings: np.ndarray  # places in the frame of settings
    by: str  # "val" or "upstream"


Comparison = list[_Term]


def verdicts(
    table: pandas.DataFrame,
    workdir: str | os.PathLike[str] | None = None,
    *,
    confidence: float = 0.9,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[Verdict, ...]:
    """Tests each finding of the paper on a table of runs.

    Every difference is between test accuracies of settings that validation
    chose. The interval is Student's t around the difference, with the
    bootstrap's variance (times n / (n - 1) for n seeds, as drawing from so few
    understates it). The seeds' part of the variance has n - 1 degrees of
    freedom, that of test examples as good as infinitely many (Welch and
    Satterthwaite). A single seed gives no verdict.

    Args:
        table: From `read`.
        workdir: Directory of the sweep: where every run of a difference has
            its `correct.npy`, test examples are drawn, too.
        confidence: Probability that the intervals are meant to have.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        A verdict for each statement of `STATEMENTS`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
    >>> for verdict in verdicts(read("runs/sweep/results.csv"), "runs/sweep"):
    ...     print(verdict)
    """
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(
            "`confidence` must be between 0 and 1, and `draws` at least 1. "
            f"Received: {confidence=}, {draws=}"
        )
    runs = _Runs(table, workdir)
    return tuple(
        runs.judge(section, statement, margin, list(find(runs.settings)),
                   confidence, draws, seed)
        for section, statement, margin, find in STATEMENTS
    )  # fmt: skip


class _Runs:
    """The settings of a table, and their accuracies by seed, in percent."""

    def __init__(
        self, table: pandas.DataFrame, workdir: str | os.PathLike[str] | None
    ) -> None:
        import pandas

        done = select.done(table)
        done["seed"] = done["seed"].fillna(0)
        own = select.upstream(done).dropna(subset=["final_test"])
        own = own.assign(
            kind="own", target=select.canonical_names(own["ds"]),
            val=own["final_val"], upstream=own["final_val"],
            test=own["final_test"], file=own["filename"],
        )  # fmt: skip
        own[select.SETTINGS] = np.nan
        tuned = done.dropna(subset=["adapt_final_test"])
        tuned = tuned.assign(
            kind="tuned", target=tuned["adapt_ds"],
            val=tuned["adapt_final_val"].fillna(tuned["adapt_final_test"]),
            upstream=tuned["final_val"], test=tuned["adapt_final_test"],
            file=tuned["adapt_filename"],
        )  # fmt: skip
        tuned = tuned[select.canonical_names(tuned["ds"]) != tuned["target"]]
        runs = pandas.concat([own, tuned], ignore_index=True)
        runs["dataset"] = select.dataset(runs)
        keys = ["kind", "target", "dataset", "resolution", "lr",
                *select.RECIPE, *select.SEEN, *select.SETTINGS]  # fmt: skip
        groups = runs.groupby(keys, dropna=False, sort=False)
        means = groups[["params", select.SPEED, "upstream"]].mean()
        self.settings = means.reset_index()
        runs["setting"] = groups.ngroup()
        self.seeds = sorted(runs["seed"].unique())
        place = runs["seed"].map(self.seeds.index)
        shape = (len(self.settings), len(self.seeds))
        self.values = {
            name: np.full(shape, np.nan) for name in ("val", "upstream", "test")
        }
        for name, array in self.values.items():
            array[runs["setting"], place] = 100 * runs[name].astype(float)
        self.files = np.full(shape, "", object)
        self.files[runs["setting"], place] = runs["file"]
        self.folder = None
        if workdir is not None:
            self.folder = pathlib.Path(workdir) / "runs"

    def judge(
        self, section: str, statement: str, margin: float,
        comparisons: list[Comparison], confidence: float, draws: int, seed: int,
    ) -> Verdict:  # fmt: skip
        """Tests one statement."""
        given = len(comparisons)
        seeds, comparisons = self._with_shared_seeds(comparisons)
        count = len(seeds)
        result: dict[str, Any] = {
            "section": section, "statement": statement, "verdict": UNTOLD,
            "comparisons": len(comparisons), "difference": None,
            "interval": None, "margin": margin, "seeds": count,
            "left_out": given - len(comparisons), "examples": False,
            "seeds_needed": None,
        }  # fmt: skip
        if count:
            rng = np.random.default_rng(seed)
            even = np.full((1, count), 1 / count)
            each = np.eye(count)
            drawn = _shares(rng, count, draws)
            # Comparisons on one test set share its drawn examples.
            examples: dict[tuple[str, int], np.ndarray] = {}
            means, spread, sample = [], [], []
            for comparison in comparisons:
                means.append(self._differences(comparison, seeds, even))
                spread.append(self._differences(comparison, seeds, each))
                correct = self._correct(comparison, seeds)
                shares = None
                if correct:
                    result["examples"] = True
                    place, rows = next(iter(correct.items()))
                    test = self.settings["target"][place], rows.shape[1]
                    if (shares := examples.get(test)) is None:
                        shares = _shares(rng, rows.shape[1], draws)
                        examples[test] = shares
                sample.append(
                    self._differences(comparison, seeds, drawn, correct, shares)
                )
            difference = float(np.mean(means))
            result["difference"] = difference
            if count > 1:
                deviation = float(np.mean(spread, axis=0).std(ddof=1))
                variance = np.mean(sample, axis=0).var() * count / (count - 1)
                off = float(
                    _quantile(confidence, count, deviation, variance)
                    * np.sqrt(variance)
                )
                low, high = difference - off, difference + off
                result["interval"] = (low, high)
                result["verdict"] = _told(low, high, margin)
                result["seeds_needed"] = seeds_needed(
                    abs(difference - margin), deviation, confidence
                )
        return Verdict(**result)

    def _with_shared_seeds(
        self, comparisons: list[Comparison]
    ) -> tuple[np.ndarray, list[Comparison]]:
        """Seeds, and the comparisons whose settings have all of them.

        Of all sets of seeds that one or two comparisons have, the one with
        the most degrees of freedom times comparisons.
        """
        own = []
        for comparison in comparisons:
            has = np.ones(len(self.seeds), bool)
            for term in comparison:
                for name in {"val", "test", term.by}:
                    known = ~np.isnan(self.values[name][term.settings])
                    has &= known.all(axis=0)
            own.append(frozenset(np.flatnonzero(has).tolist()))
        sets = {a & b for a, b in itertools.product({*own}, repeat=2)}
        shared = max(
            sorted(map(sorted, sets)),
            key=lambda s: (
                (len(s) - 1) * sum(o.issuperset(s) for o in own),
                len(s),
            ),
            default=[],
        )
        if not shared:
            return np.array([], int), comparisons
        kept = [
            comparison
            for comparison, seeds in zip(comparisons, own, strict=True)
            if seeds.issuperset(shared)
        ]
        return np.array(shared), kept

    def _differences(
        self, comparison: Comparison, seeds: np.ndarray, weights: np.ndarray,
        correct: dict[int, np.ndarray] | None = None,
        shares: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The difference for each row of weights of seeds (and examples)."""
        total = np.zeros(len(weights))
        for sign, settings, by in comparison:
            score, val, test = (
                weights @ self.values[name][settings][:, seeds].T
                for name in (by, "val", "test")
            )
            # Fine-tunings of one model have one upstream accuracy.
            best = (score + 1e-6 * val).argmax(axis=1)
            if shares is None or correct is None:
                total += sign * test[np.arange(len(best)), best]
                continue
            for place in np.unique(best):
                rows = best == place
                right = correct[settings[place]].T.astype("float32")
                means = 100 * (shares[rows] @ right)
                total[rows] += sign * (means * weights[rows]).sum(axis=1)
        return total

    def _correct(
        self, comparison: Comparison, seeds: np.ndarray
    ) -> dict[int, np.ndarray] | None:
        """Setting -> (seeds, examples), if all of the runs have it."""
        if self.folder is None:
            return None
        found = {}
        for setting in {s for term in comparison for s in term.settings}:
            paths = [
                self.folder / str(file) / CORRECT
                for file in self.files[setting, seeds]
            ]
            if not all(path.is_file() for path in paths):
                return None
            try:
                rows = [np.load(path) for path in paths]
            except (OSError, ValueError, EOFError):
                return None  # cut off: the seeds alone must do
            if len({len(row) for row in rows}) > 1:
                return None
            found[setting] = np.array(rows)
        lengths = {rows.shape[1] for rows in found.values()}
        return found if len(lengths) == 1 else None


def seeds_needed(
    distance: float, deviation: float, confidence: float
) -> int | None:
    """Seeds whose t interval is narrower than a distance; `None` over 1,000.

    >>> seeds_needed(1.0, 1.0, 0.9)
    5
    """
    counts = np.arange(2, MOST_SEEDS + 1)
    quantile = _quantile(confidence, counts, deviation, deviation**2 / counts)
    width = quantile * deviation / np.sqrt(counts)
    enough = width < distance
    return int(counts[enough.argmax()]) if enough.any() else None


def _quantile(
    confidence: float, seeds: Any, deviation: float, variance: Any
) -> Any:
    """Half the width of an interval, in standard errors.

    The error's `variance` has a part, `deviation`**2 / `seeds`, that is known
    from the seeds alone.
    """
    from scipy import stats

    of_seeds = deviation**2 / seeds
    share = of_seeds / np.maximum(variance, of_seeds) if deviation else 0.0
    freedom = (seeds - 1) / np.maximum(np.square(share), 1e-12)
    return stats.t.ppf((1 + confidence) / 2, freedom)


def _shares(rng: Any, count: int, draws: int) -> np.ndarray:
    """Shares of each of `count` in bootstrap draws of them."""
    drawn = rng.multinomial(count, np.full(count, 1 / count), draws)
    return (drawn / count).astype("float32")


def _told(low: float, high: float, margin: float) -> str:
    if low > margin:
        return HOLDS
    return DOES_NOT if high < margin else UNTOLD


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


# The comparisons of each statement, of a frame of settings.

_TRAINING = ["kind", "target", "name", "dataset", "images", "epochs",
             "resolution"]  # fmt: skip


def _difference(
    better: pandas.DataFrame, than: pandas.DataFrame, by: str = "val"
) -> Iterator[Comparison]:
    if len(better) and len(than):
        yield [_Term(1, better.index.to_numpy(), by),
               _Term(-1, than.index.to_numpy(), by)]  # fmt: skip


def _groups(
    rows: pandas.DataFrame, keys: list[str]
) -> Iterator[pandas.DataFrame]:
    for _, group in rows.groupby(keys, dropna=False, sort=False):
        yield group


def _without_and_with(
    rows: pandas.DataFrame,
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Those with AugReg, and those without, which are known to be so."""
    plain = (rows["aug"] == "none") & (rows["do"] == 0)
    return rows[rows["aug"].notna() & ~plain], rows[plain]


def _more_images(
    rows: pandas.DataFrame, keys: list[str]
) -> Iterator[tuple[pandas.DataFrame, pandas.DataFrame]]:
    """Settings with fewer images, and with the next larger number.

    Within one data set, or from ImageNet-1k to ImageNet-21k.
    """
    names = select.canonical_names(rows["dataset"])
    both = names.str.startswith("imagenet") & (rows["kind"] == "tuned")
    rows = rows.assign(family=names.mask(both, "imagenet"))
    for group in _groups(rows, ["family", *keys]):
        sizes = sorted(group["images"].dropna().unique())
        for few, many in itertools.pairwise(sizes):
            yield group[group["images"] == few], group[group["images"] == many]


def _instead_of_data(settings: pandas.DataFrame) -> Iterator[Comparison]:
    own = settings["kind"] == "own"
    rows = settings[own | (settings["target"] == select.IMAGENET)]
    rows = rows.dropna(subset=["upstream"])
    keys = ["kind", "name", "resolution", "adapt_resolution"]
    for few, many in _more_images(rows, keys):
        yield from _difference(
            _without_and_with(few)[0], _without_and_with(many)[1], "upstream"
        )


def _transfer(settings: pandas.DataFrame) -> Iterator[Comparison]:
    for group in _groups(settings, ["target", "name"]):
        scratch = group[(group["kind"] == "own") & (group["fraction"] == 1)]
        yield from _difference(group[group["kind"] == "tuned"], scratch)


def _generic(settings: pandas.DataFrame) -> Iterator[Comparison]:
    tuned = settings[settings["kind"] == "tuned"].dropna(subset=["upstream"])
    for few, many in _more_images(tuned, ["target", "name"]):
        yield from _difference(many, few, "upstream")


def _own(settings: pandas.DataFrame) -> Iterator[pandas.DataFrame]:
    """Pre-trainings that differ in the recipe only."""
    yield from _groups(settings[settings["kind"] == "own"], _TRAINING)


def _augreg(settings: pandas.DataFrame) -> Iterator[Comparison]:
    for group in _own(settings):
        yield from _difference(*_without_and_with(group))


def _augreg_grows(settings: pandas.DataFrame, by: str) -> Iterator[Comparison]:
    """The gain at the greatest number `by`, minus that at the smallest."""
    keys = [key for key in _TRAINING if key != by]
    if by == "params":
        keys.remove("name")
    rows = settings[settings["kind"] == "own"]
    for group in _groups(rows, keys):
        ends = group[by].min(), group[by].max()
        if ends[0] < ends[1]:
            short, long = (
                list(_difference(*_without_and_with(group[group[by] == end])))
                for end in ends
            )
            for (a, b), (c, d) in zip(long, short, strict=False):
                yield [a, b, c._replace(sign=-1), d._replace(sign=1)]


def _augmentation(settings: pandas.DataFrame) -> Iterator[Comparison]:
    for group in _own(settings):
        plain, regularised = group["aug"] == "none", group["do"] > 0
        augmented = group["aug"].notna() & ~plain & ~regularised
        yield from _difference(group[augmented], group[plain & regularised])


def _cheap_choice(settings: pandas.DataFrame) -> Iterator[Comparison]:
    tuned = settings[settings["kind"] == "tuned"].dropna(subset=["upstream"])
    for group in _groups(tuned, ["name", "ds", "epochs", "target"]):
        if len(group[[*select.RECIPE, "images"]].drop_duplicates()) > 1:
            places = group.index.to_numpy()
            yield [_Term(1, places, "upstream"), _Term(-1, places, "val")]


def _patches(settings: pandas.DataFrame) -> Iterator[Comparison]:
    rows = settings.assign(
        patch=settings["name"].str.extract(r"/(\d+)$")[0].astype(float),
        speed=settings.groupby("name")[select.SPEED].transform("mean"),
    )
    own = rows["kind"] == "own"
    rows = rows[own | (rows["target"] == select.IMAGENET)]
    keys = [*_TRAINING, "adapt_resolution"]
    keys.remove("name")
    for group in _groups(rows, keys):
        models = [model for _, model in group.groupby("name")]
        for large, small in itertools.permutations(models, 2):
            patch, params, speed = (
                large[key].iloc[0] / small[key].iloc[0]
                for key in ("patch", "params", "speed")
            )
            if (patch > 1 and params > 1
                    and 1 / LIKE_SPEED <= speed <= LIKE_SPEED):  # fmt: skip
                yield from _difference(large, small)


STATEMENTS: tuple[
    tuple[
        str, str, float, Callable[[pandas.DataFrame], Iterator[Comparison]]
    ],
    ...,
] = (
    ("4.1", "AugReg on fewer images is at most a point worse than no AugReg "
     "on the next larger number of images", -1.0, _instead_of_data),
    ("4.2", "fine-tuning beats training from scratch on the same images", 0.0,
     _transfer),
    ("4.3", "pre-training on more images makes better models for other tasks",
     0.0, _generic),
    ("4.4", "AugReg helps", 0.0, _augreg),
    ("4.4", "AugReg helps more in the longest training than in the shortest",
     0.0, lambda settings: _augreg_grows(settings, "epochs")),
    ("4.4", "AugReg helps the largest model more than the smallest", 0.0,
     lambda settings: _augreg_grows(settings, "params")),
    ("4.4", "augmentation does more than dropout and stochastic depth", 0.0,
     _augmentation),
    ("4.5", "the best model upstream is at most half a point worse than the "
     "best of all after fine-tuning", -0.5, _cheap_choice),
    ("4.6", "larger patches beat a thinner model of similar speed", 0.0,
     _patches),
)  # fmt: skip
"""Section, statement, margin in points, and the differences that test it."""
