"""Plants and their nodes.

A plant is known by its unified social credit code (USCC). Its nodes (workshop, line, equipment) are
a tree, and so are its meters (`meters`): a parent meter measures what its children measure too, so
the two are never both summed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from stdnum.cn import uscc as uscc_number

from accounting import clock, storage
from accounting.enterprise import trees
from accounting.errors import AccountBusy, DomainError, NotFound, ValidationFailed
from accounting.ids import new_id

REGION = "CN-ZJ"
NODES_MAX = 1_000
DEPTH_MAX = 8
CHANGE_ATTEMPTS_MAX = 16
WALK = 100


class NodeKind(StrEnum):
    WORKSHOP = "workshop"
    LINE = "line"
    EQUIPMENT = "equipment"


class PlantExists(DomainError):
    code = "plant_exists"
    en = "A plant with this USCC is registered already."
    zh = "该统一社会信用代码的企业已登记。"


class NodeExists(DomainError):
    """Facts: node."""

    code = "node_exists"
    en = "The plant has a node {node} with other properties already."
    zh = "该企业已有节点 {node}，且属性不同。"


@storage.indexed
class PlantDocument(me.Document):
    id = me.StringField(primary_key=True)
    uscc = me.StringField(required=True)
    name = me.StringField(required=True)
    sector = me.StringField(required=True)
    region = me.StringField(required=True)
    created_at = me.DateTimeField(required=True)

    meta = {
        "collection": "plants",
        "auto_create_index": False,
        "indexes": [{"fields": ["uscc"], "unique": True}],
    }


@storage.indexed
class NodeDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)

    meta = {"collection": "plant_nodes", "auto_create_index": False, "indexes": ["plant"]}


@dataclass(frozen=True, slots=True)
class Plant:
    """A plant; `sector` is a profile's name or a GB/T 4754 code, `region` that of its factors."""

    id: str
    name: str
    uscc: str
    sector: str
    created_at: datetime
    region: str = REGION


@dataclass(frozen=True, slots=True)
class Node:
    """A workshop, line or piece of equipment, and what stopping it means.

    Once stopped it stands for `minimum_stop_minutes` at least. A node whose `value_fen_per_kwh` was
    not told has that of the nearest node above it; 0 is told.
    """

    plant: str
    node: str
    kind: NodeKind
    name: str = ""
    parent: str | None = None
    must_run: bool = False
    flexible: bool = False
    minimum_stop_minutes: int = 0
    restart_cost_fen: int = 0
    value_fen_per_kwh: int | None = None


# The fields of a node that say what stopping it means; the others never change.
STOPPING = (
    "must_run",
    "flexible",
    "minimum_stop_minutes",
    "restart_cost_fen",
    "value_fen_per_kwh",
)


@dataclass(frozen=True, slots=True)
class Changed:
    """A node after a change; `number` counts the changes of the node."""

    node: Node
    number: int
    before: dict[str, Any]
    after: dict[str, Any]


# --- plants -------------------------------------------------------------------------------------


def add_plant(
    name: str, uscc: str, sector: str, *, region: str = REGION, plant_id: str | None = None
) -> Plant:
    """Register a plant. Raises `ValidationFailed` for a bad USCC, `PlantExists`."""
    number = uscc_number.compact(uscc)
    if not uscc_number.is_valid(number):
        raise ValidationFailed(
            "/uscc",
            "Not a valid unified social credit code.",
            "统一社会信用代码无效。",
        )
    plant = Plant(plant_id or new_id("plt"), name, number, sector, clock.now(), region)
    row = asdict(plant)
    try:
        _plants().insert_one({"_id": row.pop("id"), **row})
    except DuplicateKeyError:
        raise PlantExists() from None
    return plant


def get_plant(plant_id: str) -> Plant:
    """Raises `NotFound`."""
    found = _plants().find_one({"_id": plant_id})
    if found is None:
        raise NotFound
    return _plant(found)


def region_of(plant_id: str) -> str:
    """The region whose factors a plant's purchases have."""
    found = _plants().find_one({"_id": plant_id}, {"region": 1})
    return found["region"] if found else REGION


def plant_by_uscc(uscc: str) -> Plant | None:
    found = _plants().find_one({"uscc": uscc_number.compact(uscc)})
    return _plant(found) if found else None


def everyone() -> Iterator[Plant]:
    """Every plant, in the order of their ids; read in pieces, so that a walk may take its time."""
    after = ""
    while rows := list(_plants().find({"_id": {"$gt": after}}).sort("_id", 1).limit(WALK)):
        yield from map(_plant, rows)
        after = rows[-1]["_id"]


# --- nodes --------------------------------------------------------------------------------------


def add_node(node: Node) -> Node:
    """Add a node below one that is there. The same again changes nothing; raises `NodeExists`."""
    there = {one.node: one for one in nodes(node.plant)}
    if node.node in there:
        if there[node.node] != node:
            raise NodeExists(node=node.node)
        return node
    if node.parent is not None and node.parent not in there:
        raise ValidationFailed("/parent", "There is no such node.", "没有该节点。")
    chain = trees.above(node.node, parents([*there.values(), node]))
    if len(there) >= NODES_MAX or len(chain) >= DEPTH_MAX:
        raise ValidationFailed("/node", "Too many or too deep nodes.", "节点过多或层级过深。")
    row = asdict(node) | {"kind": node.kind.value, "_id": f"{node.plant}/{node.node}"}
    if not storage.insert_new(_nodes(), [row]) and node not in nodes(node.plant):
        # Another came first, with something else.
        raise NodeExists(node=node.node)
    return node


def nodes(plant_id: str) -> list[Node]:
    """All nodes of a plant, ordered by name."""
    return [_node(row) for row in _nodes().find({"plant": plant_id}).sort("_id", 1)]


def parents(tree: Iterable[Node]) -> trees.Parents:
    return {one.node: one.parent for one in tree}


def change_stopping(
    plant_id: str, node: str, terms: Mapping[str, Any], *, once: str | None = None
) -> Changed:
    """Change what stopping a node means; `terms` are fields of `STOPPING`.

    The change lies in the node's own document beside what was there before, so a request that names
    itself in `once` and comes again finds its change and makes no second one, unless another came
    in between. Raises `NotFound`, `AccountBusy`.
    """
    assert terms.keys() <= {*STOPPING}, terms
    identity = f"{plant_id}/{node}"
    for _ in range(CHANGE_ATTEMPTS_MAX):
        held = _nodes().find_one({"_id": identity})
        if held is None:
            raise NotFound
        last = held.get("change")
        if last and once is not None and last["once"] == once:
            return Changed(_node(held), last["number"], last["before"], last["after"])
        before = {name: getattr(_node(held), name) for name in STOPPING}
        after = before | dict(terms)
        number = last["number"] + 1 if last else 1
        change = {"number": number, "once": once, "before": before, "after": after}
        written = _nodes().update_one(
            {"_id": identity, "change.number": last["number"] if last else None},
            {"$set": {**after, "change": change}},
        )
        if written.matched_count:
            return Changed(_node(held | after), number, before, after)
    raise AccountBusy(retry_after=1)


def _plant(row: storage.Doc) -> Plant:
    names = ("name", "uscc", "sector", "created_at", "region")
    return Plant(id=row["_id"], **{name: row[name] for name in names})


def _node(row: storage.Doc) -> Node:
    fields = {name: row[name] for name in Node.__slots__ if name in row}
    return Node(**fields | {"kind": NodeKind(row["kind"])})


def _plants() -> "Collection[storage.Doc]":
    return storage.strong(PlantDocument._get_collection())


def _nodes() -> "Collection[storage.Doc]":
    return storage.strong(NodeDocument._get_collection())
