"""How two concepts stand to each other in a composite: named relations, and relations that a user describes."""

from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.fields import Invalid, nearest, shown

Layout = Literal["row", "front", "attached"]
KEYS = {"name", "weight", "both_ways", "attached", "at", "size", "over"}


@dataclass(frozen=True)
class Relation:
    """A relation "A name B" and where its two concepts go.

    layout: "row", side by side; "front", A overlaps B from the front; "attached", one concept is put on the other, its
    anchor. weight: how often it comes, among the relations of a composition. both_ways: "B name A" comes as often.

    Of an attached concept: attached, whether it is the "first" (A) or the "second" (B); at, where the middle of its
    lower edge is, as shares of the anchor's box from the left and from the top; size, its height as a share of the
    anchor's; over, whether it covers the anchor, or the anchor covers it.
    """

    name: str
    layout: Layout = "attached"
    weight: float = 1.0
    both_ways: bool = False
    attached: Literal["first", "second"] = "second"
    at: tuple[float, float] = (0.5, 1.0)
    size: float = 0.4
    over: bool = True


RELATIONS = {
    relation.name: relation
    for relation in (
        Relation("next to", "row", weight=3, both_ways=True),
        Relation("in front of", "front", both_ways=True),
        Relation("behind", "front", both_ways=True),
        Relation("holding", weight=2, at=(0.5, 0.94), size=0.34),
        Relation("wearing", weight=2, at=(0.5, 0.28), size=0.3),
        Relation("on top of", attached="first", at=(0.5, 0.08), size=0.8),
        Relation("riding", attached="first", at=(0.5, 0.45), size=0.9),
    )
}
USUAL = (RELATIONS["next to"], RELATIONS["in front of"])


def parse_relations(value: Any) -> tuple[Relation, ...]:
    """The relations that the TOML key `relations` lists.

    value: a list of names of `RELATIONS`, and of tables that change one of them or describe a new one. Raises
    `Invalid` if it is anything else.
    """
    if not isinstance(value, list) or not value:
        raise Invalid(f"is {shown(value)}", 'it must be a list such as ["next to", "holding"]')
    relations = tuple(_parse(each) for each in value)
    names = [relation.name for relation in relations]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise Invalid(f"names {shown(repeated[0])} twice", "raise its weight instead")
    return relations


def _parse(value: Any) -> Relation:
    if isinstance(value, str):
        if value in RELATIONS:
            return RELATIONS[value]
        near = nearest(value, RELATIONS)
        hint = (
            near
            or f"known are {', '.join(RELATIONS)}; {{ name = {shown(value)}, at = [0.5, 0.9], size = 0.4 }} adds it"
        )
        raise Invalid(f"has {shown(value)}, which is not a known relation", hint)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"].strip():
        raise Invalid(f"has {shown(value)}", 'write a relation as a name, or as { name = "riding", at = [0.5, 0.5] }')
    return _described(value)


def _described(table: dict[str, Any]) -> Relation:
    name = table["name"].strip()
    known = RELATIONS.get(name)
    if unknown := sorted(table.keys() - KEYS):
        raise Invalid(
            f"has {unknown[0]} for {shown(name)}", nearest(unknown[0], KEYS) or f"known are {', '.join(sorted(KEYS))}"
        )
    if known is None and "at" not in table:
        raise Invalid(
            f"says nothing of where {shown(name)} is", "add at = [x, y], shares of the anchor's box, and size"
        )
    settled = {
        "weight": _number(table, "weight", 0.01, 100, known.weight if known else 1.0),
        "size": _number(table, "size", 0.05, 3, known.size if known else 0.4),
        "both_ways": _truth(table, "both_ways", known.both_ways if known else False),
        "over": _truth(table, "over", known.over if known else True),
        "at": _point(table, known.at if known else (0.5, 1.0)),
        "attached": _attached(table, known.attached if known else "second"),
    }
    places = {"at", "size", "over", "attached"} & table.keys()
    layout: Layout = known.layout if known and not places else "attached"
    return Relation(name, layout, **settled)


def _number(table: dict[str, Any], key: str, low: float, high: float, usual: float) -> float:
    value = table.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Invalid(f"has {key} = {shown(value)}", f"it must be a number from {low:g} to {high:g}")
    return float(value)


def _truth(table: dict[str, Any], key: str, usual: bool) -> bool:
    value = table.get(key, usual)
    if not isinstance(value, bool):
        raise Invalid(f"has {key} = {shown(value)}", "it must be true or false")
    return value


def _attached(table: dict[str, Any], usual: Literal["first", "second"]) -> Literal["first", "second"]:
    value = table.get("attached", usual)
    if value not in ("first", "second"):
        raise Invalid(f"has attached = {shown(value)}", 'it must be "first" or "second"')
    return value


def _point(table: dict[str, Any], usual: tuple[float, float]) -> tuple[float, float]:
    value = table.get("at", list(usual))
    numbers = value if isinstance(value, list) else []
    good = [float(x) for x in numbers if isinstance(x, int | float) and not isinstance(x, bool) and -1 <= x <= 2]
    if len(good) != 2 or len(numbers) != 2:
        raise Invalid(f"has at = {shown(value)}", "it must be [x, y], shares of the anchor's box")
    return good[0], good[1]
