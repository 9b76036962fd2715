"""Which lines of a plant to stop, and the operator's word on what stopping one means."""

from decimal import Decimal
from math import ceil
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit
from accounting.enterprise import curtailment_loads, plants
from accounting.enterprise.curtailment import Load, Reason
from accounting.enterprise.curtailment_loads import WINDOW_MAX, Answer, Order
from accounting.enterprise.expecting import Basis
from accounting.errors import Language
from accounting.quantities import EXACT
from api.idempotency import business_key, idempotent
from api.numbers import DayOrInstant, Flag, Instant, Kilograms, Quantity, Schema, Whole
from api.openapi import Blueprint, refuses
from api.plants import NAME, own_plant, span_of
from api.problems import language
from api.security import OPERATOR, PLANT, caller, door
from api.views.plants import RESTART_FEN_MAX, STOP_MINUTES_MAX, VALUE_FEN_MAX

KW_MAX = 1_000_000
W_PER_KW = 1_000

blueprint = Blueprint("curtailment", __name__, description="Which lines to stop")

REASONS: dict[Reason, tuple[str, str]] = {
    Reason.STOPPED: ("停用", "stopped"),
    Reason.NOT_NEEDED: ("无需停用：其他选择损失更小", "not needed: the others lose less"),
    Reason.MUST_RUN: ("不可停用", "must run"),
    Reason.RUNS_BELOW: (
        "下级节点不可停用或用电不明",
        "something below must run, or what it draws is not known",
    ),
    Reason.NOT_RUNNING: ("该时段无用电", "draws nothing of its own in this window"),
    Reason.NO_READINGS: ("四周内无读数，用电不明", "no reading in four weeks tells what it draws"),
}


class CurtailmentRequest(Schema):
    """Draw `kw` less in a window of at most seven days. `keep_running` is for what-if questions."""

    kw = Quantity(required=True, above=0, maximum=KW_MAX)
    begin = DayOrInstant(required=True, data_key="from")
    end = DayOrInstant(required=True, data_key="to")
    keep_running = fields.List(
        fields.String(validate=NAME),
        load_default=list,
        validate=validate.Length(max=plants.NODES_MAX),
        metadata={"description": "Nodes that shall run this time, as if they had to."},
    )


class Kilowatts(Quantity):
    """Answers only: integer watts as kilowatts, exactly."""

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:
        watts = None if value is None else Decimal(value).scaleb(-3, EXACT)
        return super()._serialize(watts, attr, obj, **kwargs)


class NodeStop(ma.Schema):
    node = fields.String(required=True)
    kw = Kilowatts(required=True, metadata={"description": "Its mean draw in the window."})
    value_lost_fen = fields.Integer(required=True)
    co2e_kg_avoided = Kilograms(required=True)
    restart_at = Instant(required=True, metadata={"description": "When it may start again."})
    flexible = fields.Boolean(required=True)


class NodeReason(ma.Schema):
    """Why a node is stopped or not, and what that rests on."""

    node = fields.String(required=True)
    reason = fields.String(
        required=True, validate=validate.OneOf([reason.value for reason in Reason])
    )
    text = fields.String(required=True)
    kw = Kilowatts(required=True, allow_none=True)
    value_lost_fen = fields.Integer(required=True)
    basis = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf([basis.value for basis in Basis]),
        metadata={"description": "What its draw was read or expected from; null: nothing told."},
    )


class LowestQuarter(ma.Schema):
    at = Instant(required=True)
    kw = Kilowatts(required=True)


class ChoiceExplanation(ma.Schema):
    """`proven`: no choice loses less value. Else none loses less by more than `gap_fen`, in the
    time there was. `lowest` is the weakest quarter hour.
    """

    text = fields.String(required=True)
    proven = fields.Boolean(required=True)
    gap_fen = fields.Integer(required=True)
    pv_kw = Kilowatts(required=True)
    lowest = fields.Nested(LowestQuarter, required=True)
    nodes = fields.List(fields.Nested(NodeReason), required=True)


class CurtailmentAnswer(ma.Schema):
    covered_by_pv_kw = Kilowatts(required=True)
    stop = fields.List(fields.Nested(NodeStop), required=True)
    shortfall_kw = Kilowatts(required=True)
    explanation = fields.Nested(ChoiceExplanation, required=True)


class StoppingRequest(Schema):
    """What stopping a node means; what is left out stays as it is."""

    must_run = Flag()
    flexible = Flag()
    minimum_stop_minutes = Whole(validate=validate.Range(0, STOP_MINUTES_MAX))
    restart_cost_fen = Whole(validate=validate.Range(0, RESTART_FEN_MAX))
    value_fen_per_kwh = Whole(allow_none=True, validate=validate.Range(0, VALUE_FEN_MAX))
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class StoppingAnswer(ma.Schema):
    plant_id = fields.String(required=True, attribute="plant")
    node = fields.String(required=True)
    must_run = fields.Boolean(required=True)
    flexible = fields.Boolean(required=True)
    minimum_stop_minutes = fields.Integer(required=True)
    restart_cost_fen = fields.Integer(required=True)
    value_fen_per_kwh = fields.Integer(required=True, allow_none=True)


@blueprint.route("/v1/plants/<plant_id>/curtailment")
class Curtailment(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("account_busy", "missing_factor")
    @blueprint.arguments(CurtailmentRequest)
    @idempotent()
    @blueprint.response(200, CurtailmentAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Which lines to stop to draw so many kilowatts less, and why

        The plant's own generation and flexible loads come first. The choice loses the least value;
        of equals it stops fewer lines and avoids more CO2e. Asking changes nothing.
        """
        plant = own_plant(plant_id)
        begin, end = span_of(wanted["begin"], wanted["end"], WINDOW_MAX.days)
        # Rounded up, so that no part of a watt that was asked for is left out.
        watts = ceil(wanted["kw"] * W_PER_KW)
        keep = frozenset(wanted["keep_running"])
        found = curtailment_loads.answer(plant, Order(watts, begin, end, keep))
        return _shown(found, language())


@blueprint.route("/v1/operator/plants/<plant_id>/nodes/<node>")
class Stopping(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("account_busy")
    @blueprint.arguments(StoppingRequest)
    @idempotent()
    @blueprint.response(200, StoppingAnswer)
    def patch(self, wanted: dict[str, Any], plant_id: str, node: str) -> plants.Node:
        """Say what stopping a node means: whether it may, for how long, and what it costs"""
        reason = wanted.pop("reason")
        changed = plants.change_stopping(plant_id, node, wanted, once=business_key())
        audit.note(
            caller().id,
            "node changed",
            f"{plant_id}/{node}",
            reason=reason,
            before=changed.before,
            after=changed.after,
            once=f"node:{plant_id}/{node}:{changed.number}",
        )
        return changed.node


def _shown(found: Answer, to: Language) -> dict[str, Any]:
    choice = found.choice
    stopped = sorted(choice.stopped, key=_first)
    return {
        "covered_by_pv_kw": choice.covered_by_pv,
        "stop": [
            {
                "node": one.node,
                "kw": one.watts,
                "value_lost_fen": one.lost_fen,
                "co2e_kg_avoided": one.avoided_mg,
                "restart_at": found.until[one.node],
                "flexible": one.flexible,
            }
            for one in stopped
        ],
        "shortfall_kw": choice.shortfall,
        "explanation": {
            "text": _text(found, to),
            "proven": choice.gap_fen == 0,
            "gap_fen": choice.gap_fen,
            "pv_kw": found.generation,
            "lowest": dict(zip(("at", "kw"), found.lowest, strict=True)),
            "nodes": [
                {
                    "node": one.node,
                    "reason": choice.reasons[one.node].value,
                    "text": REASONS[choice.reasons[one.node]][to == "en"],
                    "kw": one.watts,
                    "value_lost_fen": one.lost_fen,
                    "basis": found.basis.get(one.node),
                }
                for one in found.loads
            ],
        },
    }


def _first(load: Load) -> tuple[bool, int, int, str]:
    """Flexible loads first, then what loses least, then what avoids most."""
    return not load.flexible, load.lost_fen, -load.avoided_mg, load.node


def _text(found: Answer, to: Language) -> str:
    choice = found.choice
    lost = sum(one.lost_fen for one in choice.stopped)
    figures = {
        "pv": f"{choice.covered_by_pv / W_PER_KW:,.3f}",
        "stop": f"{sum(one.watts or 0 for one in choice.stopped) / W_PER_KW:,.3f}",
        "count": len(choice.stopped),
        "yuan": f"{lost // 100:,}.{lost % 100:02d}",
        "short": f"{choice.shortfall / W_PER_KW:,.3f}",
    }
    zh = (
        "光伏抵减 {pv} 千瓦；停用 {count} 个节点，减少 {stop} 千瓦，损失产值 {yuan} 元；"
        "缺口 {short} 千瓦。"
    )
    en = (
        "PV covers {pv} kW; {count} nodes stop and draw {stop} kW less, losing {yuan} yuan of "
        "value; {short} kW are missing."
    )
    return (en if to == "en" else zh).format(**figures)
