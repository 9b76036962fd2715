"""Trees of nodes or of meters, told by the name of each one's parent. Pure."""

from collections.abc import Mapping

Parents = Mapping[str, str | None]


def above(name: str, parents: Parents) -> list[str]:
    """What stands above something, nearest first; ends before it would meet itself."""
    chain: list[str] = []
    parent = parents.get(name)
    while parent is not None and parent != name and parent not in chain:
        chain.append(parent)
        parent = parents.get(parent)
    return chain


def below(name: str, parents: Parents) -> frozenset[str]:
    """Something and everything under it."""
    children: dict[str | None, list[str]] = {}
    for one, parent in parents.items():
        children.setdefault(parent, []).append(one)
    found, open_ = set[str](), [name]
    while open_:
        here = open_.pop()
        found.add(here)
        open_ += [child for child in children.get(here, ()) if child not in found]
    return frozenset(found)
