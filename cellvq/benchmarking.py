"""The benchmark: every method with every seed through every task, with verdicts in words.

One entry and one task at a time, each kept as a file, so that an interrupted benchmark goes on
where it stopped. A method or a task that fails is a row with its reason, and the rest goes on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellvq import (
    InputError,
    annotation,
    baselines,
    benchreport,
    clustering,
    contenders,
    denoising,
    integration,
    properties,
)
from cellvq.benchreport import Benchmark
from cellvq.benchrun import Run, Task
from cellvq.contenders import Budget, Contender
from cellvq.entries import prepare

if TYPE_CHECKING:
    from anndata import AnnData

SEEDS = (0, 1, 2, 3, 4)
WORK = "work"
"""Folder within the output that holds what is kept for a resumed run."""
TASKS = {
    "clustering": Task(clustering.clustering, controlled=True),
    "annotation": Task(annotation.annotation, annotation.on_genes, controlled=True,
                       after="scVI"),
    "integration": Task(integration.integration),
    "properties": Task(properties.properties, properties.on_genes, needs_label=False,
                       controlled=True),
    "denoising": Task(rivals=denoising.denoising, needs_label=False),
}
"""Name and functions of each task."""


def benchmark(
    cells: AnnData | str | Path, label: str | None = None, batch: str | None = None,
    donor: str | None = None, study: str | None = None, *, methods: Sequence[str] | None = None,
    competitors: Mapping[str, Callable | np.ndarray] | Iterable[Callable] = (),
    obsm: Sequence[str] = (), properties: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None, seeds: int | Sequence[int] = SEEDS,
    minutes: float | None = None, steps: int | None = None, epochs: int = baselines.EPOCHS,
    init: str | Path = contenders.SMALL,
    name: str | None = None, output: str | Path | None = None, resume: bool = True,
    overwrite: bool = False, jobs: int = 1, progress: bool = True,
) -> Benchmark:
    """Compare CellVQ with established methods, and with your own, on your own cells.

    All methods see all counts and, where they take one, the batch; none sees a label that it is
    tested on. Labels shuffled over cells are the control of every task that reads them.

    Args:
        cells: cells with raw counts, a file or the name of a data set; they stay as they are.
        label: column of ``obs`` with what is known of the cells, such as the cell type.
        batch: column of ``obs`` with the technical batch; needed to judge integration.
        donor: column of ``obs`` with the donor; annotation is then tested on new donors.
        study: column of ``obs`` with the study; annotation is then tested on new studies.
        methods: names of ``contenders.CONTENDERS``; None for all.
        competitors: functions of your own that take cells and return vectors, [cells, dimensions],
            or such arrays, by name. A function with an argument ``seed`` is called with every seed.
        obsm: keys of ``obsm`` whose vectors take part.
        properties: columns of ``obs`` to predict; None for the usual ones that are there.
        tasks: names of ``TASKS``; None for all.
        seeds: seeds, or how many.
        minutes: training time of each CellVQ; None for ``steps``.
        steps: training steps of each CellVQ; None for those of the preset ``tiny``.
        epochs: epochs of scVI at the most; it stops early.
        init: trained model that is scored as it is and goes on with the cells, ``small`` or a
            folder.
        name: name of the data set.
        output: folder for the tables and the report; None keeps nothing.
        resume: go on with what is in ``output``; if not, everything is made anew.
        overwrite: replace a benchmark of other cells or columns that is in ``output``.
        jobs: processes that share the work, each with one thread; with fewer cores than that they
            slow each other down, and each takes about 2 GB of memory.
        progress: show a progress bar, and what is left out.

    Returns:
        Scores, verdicts with intervals, calls, costs, notes and words.

    Raises:
        InputError: no raw counts, or a method, task or column that does not exist.

    Example:
        >>> from cellvq.simulate import simulate_cells
        >>> found = benchmark(simulate_cells(cells=300), "cell_type", methods=["PCA"],
        ...     tasks=["clustering"], seeds=1, progress=False)
        >>> bool(found.scores.query("metric == 'ari' and method == 'PCA'")["value"].min() > 0.3)
        True
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not seeds:
        raise InputError("a benchmark needs a seed; give one or more")
    for asked in tasks or ():
        if asked not in TASKS:
            raise InputError(f"no task is called {asked!r}; there are: {', '.join(TASKS)}")
    if minutes is not None and steps is not None:
        raise InputError("both steps and minutes are given; choose one")
    entrants = [*contenders.named(methods), *map(contenders.of_key, obsm), *_own(competitors)]
    data = prepare(cells, label, batch=batch, donor=donor, study=study, properties=properties,
                   name=name)
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing if output is None else output).expanduser()
        benchreport.claim(folder, data, overwrite)
        networks = any(each.name == "scVI" for each in entrants)
        budget = Budget(minutes, steps, epochs, folder / WORK / "models", networks, str(init))
        if not resume and (folder / WORK).exists():
            shutil.rmtree(folder / WORK)
        asked = {each: TASKS[each] for each in tasks or TASKS}
        run = Run(data, entrants, asked, seeds, budget, folder / WORK)
        found = run.through(jobs, progress)
        if output is not None:
            benchreport.write(found, folder)
    return found


def _own(competitors) -> list[Contender]:
    """Competitors of the user's own, by name or by the name of the function."""
    if not isinstance(competitors, Mapping):
        competitors = {getattr(each, "__name__", f"competitor {number + 1}"): each
                       for number, each in enumerate(competitors)}
    return [contenders.of_function(str(name), each) for name, each in competitors.items()]
