"""An explanation worked out again from its JSON alone, with fractions and none of our rules."""

from fractions import Fraction
from math import floor
from typing import Any


def worked_out(explained: dict[str, Any]) -> tuple[int, int]:
    """Milligrams and points of the steps; fails where a step does not give the number it says."""
    factors = {
        factor["id"]: Fraction(factor["exact"]["mg_num"], factor["exact"]["mg_den"])
        for factor in explained["factors"]
    }
    number = Fraction(0)
    for step in explained["steps"]:
        value = Fraction(step["value"]) if "value" in step else None
        match step["op"], value:
            case "take", Fraction():
                number = value
            case "minus", Fraction():
                number = max(number - value, Fraction(0))
            case "at_most", Fraction():
                number = min(number, value)
            case "over", Fraction():
                number /= value
            case "times", None:
                number *= factors[step["factor"]]
            case "floor", None:
                number = Fraction(floor(number))
            case "nothing", None:
                number = Fraction(0)
            case _:
                raise AssertionError(step)
        assert number == Fraction(step["result"]), step
        if "cap" in step and step["op"] == "at_most":
            assert value == max(step["cap"] - step["used_before"], 0), step
    mg = int(number)
    assert number == mg, "milligrams are whole"
    return mg, paid(explained["points"]["parts"], mg, explained["points"]["above_mg"])


def paid(parts: list[dict[str, Any]], mg: int, above_mg: int) -> int:
    """What all parts pay: the running sum rounded down, less what a cap of a campaign held back.

    On top of something a part with a cap is rounded by itself, and no running sum of the others
    counts for more than a longer one.
    """

    def grown(rate: Fraction) -> int:
        return floor(rate * (above_mg + mg)) - floor(rate * above_mg)

    rates = [Fraction(part["exact"]["points_num"], part["exact"]["mg_den"]) for part in parts]
    alone = [bool(above_mg) and part["limit_points"] is not None for part in parts]
    running = [
        sum(rates[at] for at in range(end + 1) if not alone[at]) for end in range(len(parts))
    ]
    together = [at for at in range(len(parts)) if not alone[at]]
    told = points = 0
    for at, part in enumerate(parts):
        if alone[at]:
            worth = grown(rates[at])
        else:
            upto = min(grown(Fraction(running[later])) for later in together if later >= at)
            worth, told = upto - told, upto
        limit = part["limit_points"]
        assert part["points"] == (worth if limit is None else min(worth, limit))
        points += part["points"]
    return points


def check(explained: dict[str, Any]) -> None:
    """Everything an explanation says agrees with itself, and each sentence is there."""
    mg, points = worked_out(explained)
    assert (mg, points) == (explained["reduction_mg"], explained["points"]["points"])
    for change in explained["later"]:
        mg += change["reduction_mg"]
        points += change["points"]
    assert explained["stands"] == {"reduction_mg": mg, "points": points}
    sentences = [step["text"] for step in explained["steps"]]
    sentences += [change["text"] for change in explained["later"]]
    sentences += [explained["points"]["text"], explained["evidence"]["why"], explained["rounding"]]
    assert all(text and "{" not in text and "None" not in text for text in sentences), sentences
    for factor in explained["factors"]:
        assert factor["source"]
        assert factor["valid_from"] <= factor["review_by"]
        assert factor["version"] == explained["inputs"]["methodology_version"]
