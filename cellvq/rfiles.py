"""R files (``.rda``) -> numbers, texts and data frames, without running anything that they hold.

The library ``rdata`` knows R's format and no R. A file becomes a tree of nodes; only the parts that
are asked for become Python objects, so that functions and environments beside them are passed over.

Example:
    counts = rfiles.sparse(rfiles.at(rfiles.parse("pbmc3k.rda"), "pbmc3k"))
"""

from collections.abc import Iterator
from pathlib import Path

import scipy.sparse


def parse(path: Path):
    """Parse an R file into a tree of nodes, which begins with its named objects.

    Raises:
        Exception: The file is not one that R has saved; of many kinds.
    """
    import rdata

    return rdata.parser.parse_file(path).object


def value(node):
    """Make a node of numbers, texts or a data frame a Python object."""
    import rdata

    return rdata.conversion.convert(node)


def at(node, *steps: str):
    """Follow names from a node: of a list, a slot, an attribute or a variable."""
    from rdata.parser import RObjectType

    for step in steps:
        if node.info.type == RObjectType.LIST:
            inside = dict(_pairs(node))
        elif node.info.type == RObjectType.ENV:
            chains = node.value.hash_table.value
            inside = {name: child for chain in chains for name, child in _pairs(chain)}
        else:
            inside = dict(_pairs(node.attributes))
            if "names" in inside and step not in inside:
                inside = dict(zip(value(inside["names"]), node.value, strict=True))
        node = _follow(inside[step])
    return node


def _follow(node):
    """Take the node that a reference stands for."""
    return node if node.referenced_object is None else node.referenced_object


def _pairs(node) -> Iterator[tuple[str, object]]:
    """Walk along R's linked list of named values."""
    from rdata.parser import RObjectType

    while node is not None and node.info.type == RObjectType.LIST:
        yield _follow(node.tag).value.value.decode(), node.value[0]
        node = node.value[1]


def dimnames(node) -> tuple:
    """Convert the names of rows and of columns, ``None`` where there are none."""
    rows, columns = (value(_follow(names)) for names in node.value)
    return rows, columns


def sparse(node) -> scipy.sparse.csr_matrix:
    """Turn R's sparse matrix [genes, cells], by columns or by triplets, into CSR [cells, genes]."""
    slots = {name: _follow(child) for name, child in _pairs(node.attributes)}
    shape = tuple(slots["Dim"].value)
    if "p" in slots:
        parts = (slots["x"].value, slots["i"].value, slots["p"].value)
        return scipy.sparse.csr_matrix(parts, shape=shape[::-1])
    where = (slots["j"].value, slots["i"].value)
    return scipy.sparse.csr_matrix((slots["x"].value, where), shape=shape[::-1])
