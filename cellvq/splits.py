"""Which cells teach and which test: whole donors or studies held out wherever they are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedKFold

from cellvq import InputError
from cellvq.entries import LEAST_CELLS, Benchmarked

FOLDS = 5
FEWEST_DONORS = 3
"""With fewer donors none can be held out and the others still differ."""
PROTOCOLS = {
    "within_study": "Five folds of cells with equal shares of each class.",
    "new_donor": "Whole donors are held out, in at most five folds.",
    "new_study": "Each study is held out once; classes that another study has as well count.",
    "few_labels_10": "Ten labels a class from one half of the donors (of the cells where no donor "
                     "is known); the other half tests.",
    "few_labels_50": "Fifty labels a class, otherwise the same.",
    "unknown_class": "One class is hidden from training; is it told from the others by the largest "
                     "probability? The six largest classes in turn, on half of the cells.",
}
"""What each protocol does."""


@dataclass(frozen=True)
class Split:
    """Positions of the cells that teach and of those that test."""

    train: np.ndarray
    test: np.ndarray
    name: str = ""
    """What is held out."""


def within_study(labels: np.ndarray, seed: int = 0) -> list[Split]:
    """Split labelled cells into folds with equal shares of each class.

    Args:
        labels: class of each cell, empty where it is unknown, [cells].
        seed: seed of the folds.

    Raises:
        InputError: fewer than two classes have as many cells as there are folds.

    Example:
        >>> split = within_study(np.array(["B", "NK"] * 10))[0]
        >>> len(split.train), len(split.test)
        (16, 4)
    """
    usable = _frequent(labels)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return [Split(usable[train], usable[test], f"fold {number}") for number, (train, test)
            in enumerate(folds.split(usable, labels[usable].astype(str)))]


def new_donor(labels: np.ndarray, donors: np.ndarray, seed: int = 0) -> list[Split]:
    """Hold out whole donors; a class is tested where another donor has it as well.

    Args:
        labels: class of each cell, empty where it is unknown, [cells].
        donors: donor of each cell, empty where it is unknown, [cells].
        seed: seed of the folds.

    Raises:
        InputError: fewer than three donors, or no two classes that several donors have.
    """
    usable = _frequent(labels)
    usable = usable[donors[usable] != ""]
    known = np.unique(donors[usable].astype(str))
    if len(known) < FEWEST_DONORS:
        raise InputError(f"{len(known)} donors have labelled cells; {FEWEST_DONORS} are needed to "
                         "hold donors out")
    folds = GroupKFold(min(FOLDS, len(known)), shuffle=True, random_state=seed)
    found = [Split(usable[train], usable[test], f"fold {number}") for number, (train, test)
             in enumerate(folds.split(usable, groups=donors[usable].astype(str)))]
    found = _teachable(found, labels)
    if not found:
        raise InputError("no two classes are shared by donors; whoever is held out, nothing of "
                         "theirs can be taught by the others")
    return found


def new_study(labels: np.ndarray, studies: np.ndarray, seed: int = 0) -> list[Split]:
    """Hold out each study once; only classes that another study has are tested.

    Args:
        labels: class of each cell, empty where it is unknown, [cells].
        studies: study of each cell, empty where it is unknown, [cells].
        seed: not used: nothing is drawn.

    Raises:
        InputError: fewer than two studies, or none shares two classes with another.
    """
    usable = np.flatnonzero((labels != "") & (studies != ""))
    known = np.unique(studies[usable].astype(str))
    if len(known) < 2:
        raise InputError("labelled cells come from fewer than two studies; name a study column "
                         "with two values")
    found = []
    for study in known:
        held = studies[usable] == study
        found.append(Split(usable[~held], usable[held], f"study {study}"))
    found = _teachable(found, labels)
    if not found:
        raise InputError("no two studies share two classes; bring their labels to the same words")
    return found


def few_labels(
    labels: np.ndarray, donors: np.ndarray, number: int, seed: int = 0
) -> list[Split]:
    """Teach with a few labels of each class from one half of the donors, test on the other half.

    Args:
        labels: class of each cell, empty where it is unknown, [cells].
        donors: donor of each cell; where fewer than three are known, cells are halved instead.
        number: labels of each class.
        seed: seed of the halves and of the labels.

    Raises:
        InputError: fewer than two classes have that many cells to teach with.

    Example:
        >>> labels = np.array(["B", "NK"] * 40)
        >>> split = few_labels(labels, np.full(80, ""), 10)[0]
        >>> len(split.train), len(split.test)
        (20, 40)
    """
    rng = np.random.default_rng([seed, number])
    usable = np.flatnonzero(labels != "")
    known = np.unique(donors[usable].astype(str))
    known = known[known != ""]
    if len(known) >= FEWEST_DONORS:
        usable = usable[donors[usable] != ""]
        teachers = rng.permutation(known)[: len(known) // 2]
        teaches = np.isin(donors[usable].astype(str), teachers)
    else:
        teaches = np.zeros(len(usable), dtype=bool)
        for at in _of_classes(labels[usable]).values():
            teaches[rng.permutation(at)[: len(at) // 2]] = True
    pool, rest = usable[teaches], usable[~teaches]
    sizes = {name: len(at) for name, at in _of_classes(labels[rest]).items()}
    drawn = [pool[rng.permutation(at)[:number]] for name, at in _of_classes(labels[pool]).items()
             if len(at) >= number and sizes.get(name, 0) >= LEAST_CELLS]
    if len(drawn) < 2:
        raise InputError(f"fewer than two classes have {number} cells to teach with")
    train = np.sort(np.concatenate(drawn))
    return [Split(train, rest[np.isin(labels[rest], labels[train])], f"{number} labels")]


def unknown_class(labels: np.ndarray, seed: int = 0, most: int = 6) -> list[Split]:
    """Hide one class from training after another, the largest first.

    Args:
        labels: class of each cell, empty where it is unknown, [cells].
        seed: seed of the halves that teach and test.
        most: classes that are hidden in turn.

    Raises:
        InputError: fewer than three classes: of two, one is left to learn.
    """
    usable = _frequent(labels)
    classes = _of_classes(labels[usable])
    if len(classes) < 3:
        raise InputError("fewer than three classes; none can be hidden while two are left")
    rng = np.random.default_rng([seed, 11])
    teaches = rng.permutation(len(usable)) < len(usable) // 2
    largest = sorted(classes, key=lambda name: -len(classes[name]))[:most]
    found = []
    for name in largest:
        is_hidden = labels[usable] == name
        found.append(Split(usable[teaches & ~is_hidden], usable[~teaches], str(name)))
    return found


def protocols(data: Benchmarked, labels: np.ndarray, seed: int) -> Iterator[tuple[str, list]]:
    """Give the splits of each protocol that the data allow, with a sentence where they do not.

    Args:
        data: the data, whose donor and study columns are used.
        labels: class of each cell, empty where it is unknown, [cells].
        seed: seed of the splits.

    Yields:
        Name of the protocol, and its splits or the reason why there are none (str).
    """
    donors, studies = data.column(data.donor), data.column(data.study)
    asked = {"within_study": lambda: within_study(labels, seed)}
    if data.donor is not None:
        asked["new_donor"] = lambda: new_donor(labels, donors, seed)
    if data.study is not None:
        asked["new_study"] = lambda: new_study(labels, studies, seed)
    asked |= {f"few_labels_{n}": lambda n=n: few_labels(labels, donors, n, seed) for n in (10, 50)}
    for name, make in asked.items():
        try:
            yield name, make()
        except InputError as error:
            yield name, str(error)


def _frequent(labels: np.ndarray) -> np.ndarray:
    """Positions of the cells whose class is large enough to stand in every fold."""
    usable = np.flatnonzero(labels != "")
    sizes = {name: len(at) for name, at in _of_classes(labels[usable]).items()}
    large = [name for name, size in sizes.items() if size >= LEAST_CELLS]
    if len(large) < 2:
        raise InputError(f"fewer than two classes have {LEAST_CELLS} labelled cells; there is "
                         "nothing to tell apart")
    return usable[np.isin(labels[usable].astype(str), large)]


def _of_classes(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of the cells of each class."""
    names, index = np.unique(labels.astype(str), return_inverse=True)
    return {name: np.flatnonzero(index == number) for number, name in enumerate(names)}


def _teachable(found: list[Split], labels: np.ndarray) -> list[Split]:
    """Keep test cells whose class is taught, and splits that teach two classes."""
    kept = []
    for split in found:
        taught = np.unique(labels[split.train].astype(str))
        test = split.test[np.isin(labels[split.test].astype(str), taught)]
        if len(taught) > 1 and len(test):
            kept.append(Split(split.train, test, split.name))
    return kept
