"""What several test files share: the clone, and the smoke book, built once for the session."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def clone() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def smoke_book():
    """The whole book on simulated cells: every notebook executed, every page built strictly."""
    from cellvq.book import build_book

    return build_book("smoke", root=ROOT)
