"""Every credited gram explained: inputs, formula, steps, factor, caps, rounding, points.

Read from the book entry, not computed again; recomputing from it gives the same milligrams.
"""

from decimal import Decimal
from typing import Any

from accounting.quantities import MG_PER_G
from footprint import activities, methodology
from footprint.activities import Activity

ROUNDING = "rounded down once to whole milligrams; points rounded down to whole points"


def of(activity: Activity) -> dict[str, Any]:
    """The explanation of one settled activity, as plain values."""
    rules = methodology.version(activity.methodology)
    behaviour = rules.behaviours[activity.behaviour]
    entry = activities.entry(activity)
    refs = entry.refs if entry is not None else {}
    return {
        "inputs": {
            "behaviour": activity.behaviour,
            "quantity": activity.amount,
            "unit": behaviour.unit,
            "occurred_at": activity.start.isoformat(),
            "ended_at": activity.end.isoformat() if activity.end else None,
            "attributes": activity.attributes,
            "evidence_class": activity.evidence,
            "received_at": activity.received_at.isoformat(),
            "methodology_version": rules.version,
        },
        "formula": behaviour.formula_text,
        "steps": [
            {"rule": rule, "mg": mg, "limit_mg": limit} for rule, mg, limit in refs.get("steps", ())
        ],
        "factors": [
            {
                "id": behaviour.factor_id,
                # Shown as a decimal; the fraction beside it is what is computed with.
                "value": round(Decimal(behaviour.mg_num) / behaviour.mg_den / MG_PER_G, 6),
                "unit": f"g CO2 per {behaviour.unit}",
                "exact_mg": {"num": behaviour.mg_num, "den": behaviour.mg_den},
                "derivation": dict(behaviour.derivation),
                "source": behaviour.source,
                "valid_from": rules.valid_from.isoformat(),
                "review_by": rules.review_by.isoformat(),
            }
        ],
        "caps": {
            "day_mg": behaviour.caps.day_mg,
            "day_count": behaviour.caps.day_count,
            "month_count": behaviour.caps.month_count,
            "bit": list(refs.get("reasons", ())),
        },
        "rounding": ROUNDING,
        "points": {
            "points": refs.get("points", 0),
            "rule": refs.get("rule"),
            "funder": refs.get("funder"),
        },
        "reduction_mg": refs.get("mg", 0),
        # The reasons an upheld appeal overruled; without one there is none.
        "appeal": {"appeal_id": refs["appeal"], "overruled": refs["overruled"]}
        if "appeal" in refs
        else None,
    }
