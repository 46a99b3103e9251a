"""One run of a benchmark: entries and tasks one at a time, each kept as a file.

Several processes may share the work, since all of it passes through files: they make what is not
there yet, and the run then goes through all of it again and only has to read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import cellvq
from cellvq import InputError, baselines, benchreport, benchstore, contenders, evaluate, shipped
from cellvq.benchreport import Benchmark
from cellvq.contenders import Budget, Contender
from cellvq.entries import Benchmarked, Entry, Results
from cellvq.scores import KMEANS, MODEL, SHUFFLED


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with a fixed protocol; its functions take data, an entry and a seed."""

    judge: Callable[..., Results] | None = None
    """Judges one entry."""
    rivals: Callable[..., Results] | None = None
    """Judges methods of its own, which have no embedding; it is called without an entry."""
    needs_label: bool = True
    controlled: bool = False
    """Whether an entry is also judged with shuffled labels."""
    after: str = ""
    """Method whose process judges the rivals, too, since what it has made is of use to them."""


def shuffled(data: Benchmarked, seed: int) -> Benchmarked:
    """The same cells with labels and properties shuffled over those that have one."""
    cells, rng = data.cells.copy(), np.random.default_rng([seed, 7])
    for column in (data.label, *data.properties):
        if column is not None:
            values = data.column(column)
            known = values != ""
            values[known] = rng.permutation(values[known])
            cells.obs[column] = values
    return dataclasses.replace(data, cells=cells)


def rival_codes(data: Benchmarked, entry: Entry) -> Entry:
    """k-means on PCA with as many groups as an entry has codes in use: the simplest codebook."""
    start = time.perf_counter()
    vectors, settings = baselines.pca(data)
    in_use = len(np.unique(entry.codes.astype(str)))
    groups = evaluate.kmeans_codes(vectors, in_use, entry.seed).astype(str).astype(object)
    return Entry(KMEANS, entry.seed, codes=groups, seconds=time.perf_counter() - start,
                 settings=settings | {"codes": in_use, "as_many_as": entry.method},
                 parameters=settings["parameters"] + in_use * vectors.shape[1])


@dataclasses.dataclass
class Run:
    """One run through all entries and tasks."""

    data: Benchmarked
    entrants: list[Contender]
    tasks: dict[str, Task]
    seeds: list[int]
    budget: Budget
    folder: Path
    notes: list[str] = dataclasses.field(default_factory=list)
    entries: list[Entry] = dataclasses.field(default_factory=list)
    results: list[Results] = dataclasses.field(default_factory=list)
    failed: list[tuple[str, str, int, str]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.token = uuid.uuid4().hex  # within a run, what failed is not tried again

    def through(self, jobs: int = 1, progress: bool = True) -> Benchmark:
        """Make what is not there yet, in some processes, and judge all of it."""
        self._leave_out()
        for note in self.notes * progress:
            tqdm.write(f"note: {note}", file=sys.stderr)
        if jobs > 1:
            self._share(jobs, progress)
        steps = sum(1 + len(self._judges()) for _ in self.entrants) + len(self._rivals())
        with tqdm(total=len(self.seeds) * steps, desc=self.data.name, unit="step",
                  disable=not progress) as self.bar:
            for seed in self.seeds:
                self._seed(seed)
        tables = {name: _joined([getattr(each, name) for each in self.results])
                  for name in benchstore.TABLES}
        judged = [each.name for each in self.entrants if each.family in (MODEL, "yours")]
        if len(tables["losses"]):  # denoisers are made by their task
            judged += [name for name in tables["losses"]["method"].unique()
                       if name.startswith(MODEL) and name not in judged]
        return benchreport.judge(self.data, self.entries, tables, self.failed, judged, self.notes)

    def _judges(self) -> list[str]:
        return [name for name, task in self.tasks.items() if task.judge]

    def _rivals(self) -> list[str]:
        return [name for name, task in self.tasks.items() if task.rivals]

    def _leave_out(self) -> None:
        """Drop methods and tasks that the data do not allow."""
        self.notes = list(self.data.notes)
        batches = len(set(self.data.column(self.data.batch)) - {""})
        if batches < 2:
            out = [each.name for each in self.entrants if each.needs_batch]
            self.entrants = [each for each in self.entrants if not each.needs_batch]
            self.notes += [f"{name} is left out: it needs two batches, and there "
                           f"{'is one' if batches else 'is none'}." for name in out]
        if self.budget.init == contenders.SMALL and self.data.name in shipped.DATASETS:
            self.notes.append(f"The model small was trained on {self.data.name}: what it says "
                              "zero-shot is not of unseen cells.")
        if self.data.label is None:
            self.tasks = {name: task for name, task in self.tasks.items() if not task.needs_label}

    def _share(self, jobs: int, progress: bool) -> None:
        """Let processes of one thread each make entries and results; the longest pieces first."""
        from joblib import Parallel, delayed, parallel_config

        after = {name: self.tasks[name].after for name in self._rivals()}
        seeded = [each for each in self.entrants if each.seeded]
        seeded.sort(key=lambda each: ("neural", MODEL).index(each.family)
                    if each.family in ("neural", MODEL) else 2)
        alone = [name for name in after if after[name] not in [each.name for each in seeded]]
        pieces = [(each, [seed], [name for name in after if after[name] == each.name])
                  for each in seeded for seed in self.seeds]
        pieces = [(None, [seed], [name]) for name in alone for seed in self.seeds] + pieces
        pieces += [(each, self.seeds, []) for each in self.entrants if not each.seeded]
        with parallel_config("loky", inner_max_num_threads=1):
            # Arrays that processes share would be read-only.
            made = Parallel(jobs, return_as="generator_unordered", max_nbytes=None, batch_size=1)(
                delayed(_piece)(self, *piece) for piece in pieces)
            for _ in tqdm(made, total=len(pieces), desc=f"{self.data.name}, {jobs} processes",
                          unit="piece", disable=not progress):
                pass

    def _seed(self, seed: int) -> None:
        """Make and judge all entries of one seed, the controls, and the rivals of the tasks."""
        coded = controlled = False
        for contender in self.entrants:
            entry = self.judged(contender, seed)
            self.entries.append(entry)
            if entry.status:
                continue
            if not controlled:
                controlled, mixed = True, shuffled(self.data, seed)
                control = dataclasses.replace(entry, method=entry.method + SHUFFLED)
                for task in self._judges():
                    if self.tasks[task].controlled:
                        self.result(task, mixed, control, seed)
            if entry.codes is not None and not coded:
                coded, rival = True, rival_codes(self.data, entry)
                self.entries.append(rival)
                for task in self._judges():
                    self.result(task, self.data, rival, seed)
        for task in self._rivals():
            self.result(task, self.data, None, seed)
            self._step()

    def judged(self, contender: Contender, seed: int) -> Entry:
        """Make an entry, and judge it in all tasks; of both only what is not there yet."""
        self._step(f"seed {seed}, {contender.name}", 0)
        own = seed if contender.seeded else self.seeds[0]
        folder, key = self.folder / "entries", self._key(contender.identity(self.data))
        entry = (benchstore.read_entry(folder, contender.name, own, key)
                 or benchstore.read_entry(folder, contender.name, own, key + self.token))
        if entry is None:
            entry = contenders.enter(contender, self.data, own, self.budget)
            benchstore.write_entry(entry, folder, key + self.token * bool(entry.status))
        entry = dataclasses.replace(entry, seed=seed)
        self._step()
        for task in self._judges():
            if entry.status:
                self.failed.append((task, entry.method, seed, entry.status))
            else:
                self._step(f"seed {seed}, {contender.name}: {task}", 0)
                self.result(task, self.data, entry, seed)
            self._step()
        return entry

    def result(self, task: str, data: Benchmarked, entry: Entry | None, seed: int) -> None:
        """Read results that are there, or judge and keep them."""
        name, made = entry.method if entry else "rivals", hashlib.sha256()
        for values in (entry.vectors, entry.codes) if entry else ():
            made.update(b"" if values is None else np.ascontiguousarray(
                values if values.dtype.kind == "f" else values.astype(str)))
        key = self._key(made.hexdigest())
        path = self.folder / task / f"{benchstore.slug(name)}-{seed}.zip"
        results = (benchstore.read_results(path, key)
                   or benchstore.read_results(path, key + self.token))
        if results is None:
            judge = self.tasks[task].judge if entry else self.tasks[task].rivals
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of other packages, for each of many fits
                    results = (judge(data, entry, seed=seed) if entry
                               else judge(data, seed=seed, budget=self.budget))
            except InputError as error:  # the data do not allow it: that is no failure of a method
                results = Results(notes=[f"{task.capitalize()} is left out: {error}."])
            except Exception as error:
                results = Results(scores=pd.DataFrame([{
                    "task": task, "method": name, "seed": seed, "status": contenders.why(error)}]))
            is_final = not _bad(results).any() and any(
                len(getattr(results, table)) for table in benchstore.TABLES)
            benchstore.write_results(results, path, key + self.token * (not is_final))
        is_bad = _bad(results)
        if is_bad.any():
            bad = results.scores.loc[is_bad, ["task", "method", "seed", "status"]]
            self.failed += bad.itertuples(index=False, name=None)
            results = dataclasses.replace(results, scores=results.scores[~is_bad])
        self.results.append(dataclasses.replace(results, **{
            name: getattr(results, name).assign(dataset=data.name) for name in benchstore.TABLES}))
        self.notes += [note for note in results.notes if note not in self.notes]

    def _step(self, words: str = "", steps: int = 1) -> None:
        if (bar := getattr(self, "bar", None)) is not None:
            bar.update(steps)
            if words:
                bar.set_postfix_str(words)

    def _key(self, made: str) -> str:
        budget = dataclasses.replace(self.budget, folder=None)
        return json.dumps([cellvq.__version__, self.data.fingerprint, dataclasses.asdict(budget),
                           made])


def _piece(
    run: Run, contender: Contender | None, seeds: list[int], rivals: list[str]
) -> None:
    """What one process does of a run; all that it makes is in files."""
    for seed in seeds:
        if contender is not None:
            run.judged(contender, seed)
        for task in rivals:
            run.result(task, run.data, None, seed)


def _bad(results: Results) -> pd.Series:
    """Which rows of the scores are failures."""
    status = results.scores.get("status", pd.Series("", index=results.scores.index))
    return status.fillna("") != ""


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
