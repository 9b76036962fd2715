"""Every credited gram explained: inputs, formula, steps, factor, caps, evidence, what came later.

Read from the entries of the book, not judged again. The steps are complete for a machine (see
`footprint.working`) and each has a sentence for a person; what was not credited says what would
have been needed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from accounting import book, clock, factors
from accounting.book import Entry, Noted
from accounting.errors import Language
from accounting.quantities import MG_PER_G
from footprint import methodology, reasons, replay, reviews, rules, working
from footprint.activities import Activity
from footprint.bills import Bill
from footprint.methodology import Behaviour, Methodology, Window
from footprint.rules import Report
from footprint.working import Factor, Step

Answer = dict[str, Any]

ROUNDING: Final[dict[Language, str]] = {
    "zh": "减排量在计算末尾向下取整一次，精确到毫克；积分向下取整。",
    "en": "Rounded down once to whole milligrams; points rounded down to whole points.",
}
_EVIDENCE: Final[dict[str, dict[Language, str]]] = {
    "A": {
        "zh": "由合作方以其密钥上报的记录。",
        "en": "A record that a data partner sent under its own key.",
    },
    "B": {
        "zh": "经验证的 App 上报的传感器记录，非手动录入。",
        "en": "A sensor record of an attested app, not entered by hand.",
    },
    "C": {
        "zh": "运营人员审核并认可的照片。",
        "en": "Photos that an operator looked at and accepted.",
    },
    "D": {
        "zh": "仅有上报人自述：非传感器记录、手动录入，或 App 未通过验证。",
        "en": "The reporter's word: no sensor, entered by hand, or an app that was not attested.",
    },
    "appeal": {
        "zh": "运营人员在申诉中核实。",
        "en": "An operator looked at it in an appeal.",
    },
}
_LATER: Final[dict[str, dict[Language, str]]] = {
    "restate": {
        "zh": "按方法学 {methodology} 重述：减排量 {g} 克，积分 {points}，免予扣回 {waived} 分。",
        "en": "Restated by {methodology}: {g} g, {points} points; {waived} points that were due "
        "stay with the resident.",
    },
    "reverse": {
        "zh": "撤销（{reason}）：减排量 {g} 克，积分 {points}。",
        "en": "Taken back ({reason}): {g} g, {points} points.",
    },
    "replace": {
        "zh": "同一行程有更可靠的记录：减排量 {g} 克，积分 {points}。",
        "en": "A better record of the same came in: {g} g, {points} points.",
    },
}


def of(activity: Activity, entry: Entry | None, language: Language) -> Answer:
    """The explanation of one settled activity as plain values, all but how its points came about.

    `entry` is what `activities.entry` gives for it.
    """
    rules_then = methodology.version(activity.methodology)
    behaviour = rules_then.behaviours[activity.behaviour]
    refs: Mapping[str, Any] = entry.refs if entry is not None else {}
    by_trip = activity.attributes.get("trip") is True
    factor = working.factor_of(behaviour, by_trip=by_trip)
    if "steps" in refs:
        steps = working.of_activity(refs, rules_then, behaviour, by_trip=by_trip)
    else:
        refusal = refs.get("reasons") or activity.reasons
        steps = working.of_refusal(Fraction(activity.quantity), factor, refusal[0])
    facts = _facts(activity, rules_then, behaviour)
    return {
        "inputs": {
            "behaviour": activity.behaviour,
            "quantity": activity.amount,
            "unit": behaviour.unit,
            "occurred_at": clock.iso(activity.start),
            "ended_at": clock.iso(activity.end) if activity.end else None,
            "attributes": activity.attributes,
            "evidence_class": activity.evidence,
            "received_at": clock.iso(activity.received_at),
            "methodology_version": rules_then.version,
        },
        "outcome": _outcome(activity.status_at(clock.now()), activity.reasons, facts, language),
        "evidence": {
            "class": activity.evidence,
            "why": _why(activity.evidence, "appeal" in refs, language),
            "accepted": sorted(behaviour.accepts),
            "bank_grade": refs.get("bank_grade", False),
        },
        **_working(steps, [factor], rules_then, behaviour, language),
        "caps": _caps(rules_then, behaviour, refs),
        "reduction_mg": refs.get("mg", 0),
        "appeal": _appeal(reviews.APPEAL, activity.id, refs),
        "merged": {"into": activity.merged_into, "from": list(activity.merged_from)},
        **_later(activity.resident, entry, language),
    }


def of_share(bill: Bill, resident: str, entry: Entry | None, language: Language) -> Answer:
    """The explanation of a resident's share of a settled bill, in the shape of an activity's.

    `entry` is the one that credited it, None if nothing was.
    """
    assert bill.judgement is not None, f"{bill.id} is not judged"
    rules_then, behaviour = bill.rules
    refs: Mapping[str, Any] = entry.refs if entry is not None else {}
    outcome = bill.outcome(clock.now())
    steps = working.of_share(bill.judgement, bill.use.quantity, bill.shares, behaviour)
    facts = {"arrive_by": _shown(bill.over + rules_then.window.partner)}
    return {
        "inputs": {
            "behaviour": behaviour.code,
            "carrier": bill.carrier,
            "quantity": bill.use.quantity,
            "unit": working.factor_of(behaviour).per,
            "period_start": bill.period_start.isoformat(),
            "period_end": bill.period_end.isoformat(),
            "estimated": bill.estimated,
            "members": bill.shares,
            **(asdict(bill.pv) if bill.pv else {}),
            "baseline": bill.judgement.baseline,
            "evidence_class": "A",
            "received_at": clock.iso(bill.received_at),
            "methodology_version": rules_then.version,
        },
        "outcome": _outcome(outcome.status, outcome.reasons, facts, language),
        "evidence": {
            "class": "A",
            "why": _why("A", False, language),
            "accepted": ["A"],
            "bank_grade": refs.get("bank_grade", False),
        },
        **_working(steps, [working.factor_of(behaviour)], rules_then, behaviour, language),
        "caps": _caps(rules_then, behaviour, refs),
        "reduction_mg": refs.get("mg", 0),
        "appeal": _appeal(reviews.BILL_APPEAL, bill.id, refs),
        "merged": {"into": None, "from": []},
        **_later(resident, entry, language),
    }


def _working(
    steps: Iterable[Step],
    used: Iterable[Factor],
    rules_then: Methodology,
    behaviour: Behaviour,
    language: Language,
) -> Answer:
    return {
        "formula": behaviour.formula_text,
        "steps": [step.dumped(language) for step in steps],
        "factors": [
            {
                "id": factor.id,
                # Shown as a decimal; the fraction beside it is what is computed with.
                "value": round(Decimal(factor.mg_num) / factor.mg_den / MG_PER_G, 6),
                "unit": f"g CO2 per {factor.per}",
                "exact": {"mg_num": factor.mg_num, "mg_den": factor.mg_den},
                "derivation": dict(behaviour.derivation),
                "source": behaviour.source,
                "confidence": behaviour.confidence,
                "version": rules_then.version,
                "valid_from": rules_then.valid_from.isoformat(),
                "review_by": rules_then.review_by.isoformat(),
                "registry": _registered(factor.id),
            }
            for factor in used
        ],
        "rounding": ROUNDING[language],
    }


def _registered(factor_id: str) -> Answer | None:
    """What the factor registry says of a factor a methodology took from it; None for its own."""
    found = factors.shipped().find(factor_id)
    if found is None:
        return None
    return {
        "set": found.set,
        "region": found.region,
        "series": found.series.value,
        "data_year": found.data_year,
        "basis": found.basis,
        "confidence": found.confidence.value,
        "source": found.source,
        "valid_from": found.valid_from.isoformat(),
        "published": found.published.isoformat(),
        "review_by": found.review_by.isoformat(),
    }


def _caps(rules_then: Methodology, behaviour: Behaviour, refs: Mapping[str, Any]) -> Answer:
    """The caps of the behaviour, what was used of each before, and which of them bit."""
    before: Mapping[str, int] = refs.get("before", {})
    overall = behaviour.dimension in rules_then.overall_dimensions
    caps = {
        "day_mg": (behaviour.caps.day_mg, "mg"),
        "day_count": (behaviour.caps.day_count, "used"),
        "month_count": (behaviour.caps.month_count, "month_used"),
        "overall_day_mg": (rules_then.overall_day_mg if overall else None, "overall_mg"),
    }
    return {
        **{name: cap for name, (cap, _) in caps.items()},
        "used_before": {
            name: before.get(used, 0) for name, (cap, used) in caps.items() if cap is not None
        },
        "bit": list(refs.get("reasons", ())),
    }


def _outcome(
    status: str, codes: Iterable[str], facts: Mapping[str, Any], language: Language
) -> Answer:
    return {
        "status": status,
        "reasons": [
            {
                "code": code,
                "text": reasons.text(code, language),
                "needed": reasons.needed(code, language, facts),
            }
            for code in codes
        ],
    }


def _appeal(kind: str, subject: str, refs: Mapping[str, Any]) -> Answer | None:
    """The appeal about it with what was decided and why; None if nobody appealed."""
    review = reviews.of_subject(kind, subject)
    if review is None:
        return None
    return {
        "appeal_id": review.id,
        "status": reviews.APPEAL_WORDS[review.status],
        "due_on": review.due_on.isoformat(),
        "reason": review.reason,
        "overruled": list(refs.get("overruled", ())),
    }


def _why(evidence: str, appealed: bool, language: Language) -> str:
    return _EVIDENCE["appeal" if evidence == "C" and appealed else evidence][language]


def _facts(activity: Activity, rules_then: Methodology, behaviour: Behaviour) -> dict[str, Any]:
    """What the sentences of `reasons.NEEDED` speak of; times in the city's clock."""
    limits, caps = behaviour.plausible, behaviour.caps
    window: Window = rules_then.window
    age_max = window.partner if activity.evidence == "A" else window.app
    kmh = rules.speed_kmh(Report(activity.behaviour, activity.amount, activity.start, activity.end))
    return {
        "latest": _shown(activity.received_at + window.future),
        "arrive_by": _shown(activity.start + age_max),
        "evidence": " / ".join(sorted(behaviour.accepts)),
        "evidence_given": activity.evidence,
        "unit": behaviour.unit,
        "quantity": _range(limits.quantity_min, limits.quantity_max),
        "kmh": _range(limits.kmh_min, limits.kmh_max),
        "kmh_given": "∞" if kmh is None else working.shown(Fraction(kmh)),
        "hours": rules.TRIP_MAX // timedelta(hours=1),
        "amount_fen_min": behaviour.amount_fen_min,
        "gap_minutes_min": limits.gap_minutes_min,
        "day_count": caps.day_count,
        "month_count": caps.month_count,
        "same_count": behaviour.same.day_count if behaviour.same else None,
        "day_g": working.shown_g(caps.day_mg or 0),
        "overall_day_g": working.shown_g(rules_then.overall_day_mg),
    }


def _range(low: Decimal | None, high: Decimal | None) -> str:
    if low is None or high is None:
        return f"≤ {high}" if low is None else f"≥ {low}"
    return f"{low}–{high}"


def _shown(instant: datetime) -> str:
    return f"{instant.astimezone(clock.CITY):%Y-%m-%d %H:%M}"


def _later(resident: str, entry: Entry | None, language: Language) -> Answer:
    """What later entries changed about this one, and what stands after them."""
    if entry is None or entry.cap_day is None:
        return {"later": [], "stands": {"reduction_mg": 0, "points": 0}}
    day, last = date.fromisoformat(entry.cap_day), clock.last_day(entry.cap_day[:7])
    # A reversal and a better record are of the day itself, restatements of the end of its month.
    near = (*book.on_days(resident, day, day), *book.on_days(resident, last, last))
    found = {one.seq: one for one in near}
    mg, points = entry.refs["mg"], entry.refs["points"]
    later = []
    for seq in sorted(seq for seq in found if seq > entry.seq):
        changed = _change(found[seq], entry.seq, language)
        if changed is not None:
            later.append(changed)
            mg, points = mg + changed["reduction_mg"], points + changed["points"]
    return {"later": later, "stands": {"reduction_mg": mg, "points": points}}


def _change(entry: Noted, seq: int, language: Language) -> Answer | None:
    """What an entry changed about the one of that number; None if nothing."""
    moved = [
        change for change in replay.moved(entry.seq, entry.cap_day, entry.refs) if change.seq == seq
    ]
    if not moved:
        return None
    mg = sum(change.mg for change in moved)
    points = sum(change.points for change in moved)
    waived = sum(change.waived for change in moved)
    # A restatement undone by a reversal gives its waived points up again: nothing more to tell.
    facts = {
        "methodology": entry.refs.get("methodology"),
        "reason": entry.refs.get("reason"),
        "g": f"{Decimal(mg).scaleb(-3):+f}",
        "points": f"{points:+d}",
        "waived": waived,
    }
    return {
        "kind": entry.kind,
        "recorded_at": entry.recorded_at.isoformat(),
        "reduction_mg": mg,
        "points": points,
        "waived_points": max(waived, 0),
        "methodology_version": facts["methodology"],
        "reason": facts["reason"],
        "text": _LATER.get(entry.kind, _LATER["replace"])[language].format(**facts),
    }
