"""The trained model that comes with the package: its recipe, from which anyone can make it again.

``python -m cellvq.shipped --output DIR`` trains it from public data sets, about five minutes on two
CPU cores; ``--without STUDY`` leaves a study out, so that a benchmark on it is one on unseen cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cellvq import InputError, pretraining
from cellvq.runs import Pretrained

STUDIES = {
    "kang2018": ("kang_ifnb_sub",),
    "pbmc3k": ("pbmc3k",),
    "mimitou2019": ("eccite_citefuse",),
    "10x_pbmc_protein": ("pbmc_5k_protein_scvi200", "pbmc_10k_protein_scvi200"),
}
"""The data sets of each study that the model was trained on.

Data sets with 299 (Papalexi) and 1,287 genes (muscat's cells of Kang) are left out: with them the
model knew 36,000 cells and not 5,600, and did worse on a study that it had not seen; the page on
what each choice buys shows by how much.
"""
DATASETS = tuple(name for names in STUDIES.values() for name in names)
PRESET, SEED = "small", 0


def make(
    output: str | Path, *, without: Sequence[str] = (), steps: int | None = None,
    resume: bool = True, progress: bool = True,
) -> Pretrained:
    """Train the model by its recipe.

    Every data set counts as a batch, so that what differs between assays is left out of the
    vectors, and what differs within a data set, such as the answer to interferon, stays.

    Args:
        output: folder for the model.
        without: studies to leave out, of ``STUDIES``.
        steps: optimizer steps; by default those of the preset.
        resume: go on with a run that was interrupted.
        progress: show a progress bar.

    Raises:
        InputError: a study is unknown, or a data set is not on this machine; the message says how
            to fetch it.
    """
    if unknown := [study for study in without if study not in STUDIES]:
        raise InputError(f"no study is called {unknown[0]!r}; there are {', '.join(STUDIES)}")
    files = [name for study, names in STUDIES.items() if study not in without for name in names]
    return pretraining.pretrain(files, preset=PRESET, steps=steps, seed=SEED, output=output,
                                resume=resume, progress=progress)


def main() -> None:
    """Train the model from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, help="folder for the model")
    parser.add_argument("--without", action="append", default=[], choices=[*STUDIES],
                        help="leave a study out")
    options = parser.parse_args()
    make(options.output, without=options.without)
    print(f"The model is in {options.output}.")


if __name__ == "__main__":
    main()
