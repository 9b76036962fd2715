"""Alerts of a plant: from readings to alerts, over HTTP, by several at once, through deaths."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from callers import Caller, machine, said
from faults.crew import KILLED, Crew, Death
from flask import Flask

from accounting import clock, events, subscriptions
from accounting.clients import Kind as ClientKind
from accounting.enterprise import (
    alert_days,
    alert_reviews,
    alerting,
    alerts,
    budget_plans,
    editing,
    inventory_days,
    meters,
    plants,
    readings,
    validating,
)
from accounting.enterprise.alert_rules import Rule, Severity
from accounting.enterprise.alerts import Alert, AlertClosed, Finding, State, Subject, Why
from accounting.enterprise.budget import Measure, Plan
from accounting.enterprise.editing import Edit
from accounting.enterprise.meters import Flow, Kind, Meter, Shift
from accounting.enterprise.plants import Node, NodeKind
from accounting.enterprise.readings import Reading
from accounting.enterprise.slots import SLOT, SLOTS

USCC = "91330802MA2DH0000Y"
# A Wednesday, and the five weeks before it.
TODAY = date(2026, 5, 20)
FIRST = TODAY - timedelta(days=35)
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
# An hour after the day, when all of it can have been sent.
NIGHT = datetime(2026, 5, 20, 17, tzinfo=UTC)
LINE = Subject(node="line", carrier="electricity")
WHOLE = Subject(carrier="electricity")
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _night() -> Iterator[None]:
    with clock.stand(NIGHT):
        yield


@pytest.fixture
def _noon(_night: None) -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def plant(app: Flask) -> str:
    """A plant with one line, one meter on it, and somebody who wants to hear of its alerts."""
    made = plants.add_plant("示范钢厂", USCC, "C3110").id
    plants.add_node(Node(made, "line", NodeKind.LINE))
    meters.add(Meter(made, "m", "electricity", Kind.INTERVAL, "kWh", node="line"))
    party = events.party(ClientKind.PLANT, made)
    wanted = [str(one) for one in events.TYPES_OF[ClientKind.PLANT]]
    subscriptions.add(party, "https://plant.example.org/hook", wanted, 0)
    return made


@pytest.fixture
def gateway(app: Flask, plant: str) -> Caller:
    return machine(app, ClientKind.PLANT, plant)


def rows(day: date, kwh: str, slots: range = range(SLOTS), meter: str = "m") -> list[Reading]:
    """One quantity in each of some slots of a day."""
    begin = clock.start_of(day)
    return [Reading(meter, begin + slot * SLOT, Decimal(kwh), Kind.INTERVAL) for slot in slots]


def send(plant: str, *parts: list[Reading]) -> None:
    """Hand over, validate, and look for alerts."""
    for part in parts:
        readings.take(plant, part)
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)
    alerting.sweep(clock.now() + 2 * readings.DEBOUNCE)


def usual(plant: str, until: date = TODAY, meter: str = "m") -> None:
    """A kilowatt-hour in every quarter hour of five weeks: 96 kWh a day, 20 of them at night."""
    days = [FIRST + number * DAY for number in range((until - FIRST).days)]
    send(plant, [row for day in days for row in rows(day, "1", meter=meter)])


def high(day: date, kwh: str = "1.3") -> list[Reading]:
    """A quiet night and a busy day: 20 + 76 x 1.3 = 118.8 kWh, 23.75 % more than usual."""
    return rows(day, "1", range(20)) + rows(day, kwh, range(20, SLOTS))


def found(plant: str, rule: Rule, subject: Subject = LINE) -> list[Alert]:
    """The alerts of a rule and subject, oldest first."""
    every = alerts.listed(plant, None, before=None, limit=100)[::-1]
    return [one for one in every if (one.rule, one.subject) == (rule, subject)]


def told(plant: str, alert_id: str | None = None) -> list[str]:
    party = events.party(ClientKind.PLANT, plant)
    events.number(party)
    every = events.after(party, 0, 100)
    return [one.type for one in every if alert_id in (None, one.data["alert_id"])]


# --- from readings to alerts --------------------------------------------------------------------


def test_a_day_that_took_more_opens_one_alert_for_the_line_and_one_for_the_plant(
    plant: str,
) -> None:
    usual(plant)
    assert alerts.listed(plant, None, before=None, limit=10) == []
    send(plant, high(TODAY))
    [alert] = found(plant, Rule.DAY_TOTAL)
    assert (alert.state, alert.severity) == (State.OPEN, Severity.WARNING)
    assert alert.facts == {"part": "day", "used": 118_800, "expected": 96_000, "like_days": 8}
    assert (alert.first_at, alert.last_at) == (clock.start_of(TODAY), clock.start_of(TODAY + DAY))
    assert [one.severity for one in found(plant, Rule.DAY_TOTAL, WHOLE)] == [Severity.WARNING]
    # One day is no drift, and the night was quiet.
    assert {one.rule for one in alerts.live(plant)} == {Rule.DAY_TOTAL}
    assert told(plant) == ["alert.opened"] * 2


def test_looking_again_changes_nothing_and_the_next_normal_day_closes(plant: str) -> None:
    usual(plant)
    send(plant, high(TODAY))
    before = alerts.live(plant)
    alerting.evaluate(plant, {TODAY})
    assert alerts.live(plant) == before
    with clock.travel(DAY):
        send(plant, rows(TODAY + DAY, "1"))
    assert alerts.live(plant) == []
    [alert] = found(plant, Rule.DAY_TOTAL)
    assert (alert.state, alert.why_closed) == (State.CLOSED, Why.NORMAL)
    assert told(plant, alert.id) == ["alert.opened", "alert.closed"]


def test_a_late_day_is_judged_where_it_belongs(plant: str) -> None:
    """The bad Tuesday comes last: it is closed at once by the Wednesday that is there."""
    usual(plant, TODAY - DAY)
    send(plant, rows(TODAY, "1"))
    send(plant, high(TODAY - DAY))
    [alert] = found(plant, Rule.DAY_TOTAL)
    assert (alert.state, alert.why_closed) == (State.CLOSED, Why.NORMAL)
    assert alert.last_at == clock.start_of(TODAY)
    # Looking at it once more does not open it again.
    alerting.evaluate(plant, {TODAY - DAY})
    assert found(plant, Rule.DAY_TOTAL) == [alert]


def test_nothing_is_raised_on_estimates(plant: str) -> None:
    """Half of the busy day is missing between its ends, and filled: nobody measured that."""
    usual(plant)
    send(plant, rows(TODAY, "2", range(30)) + rows(TODAY, "2", range(80, SLOTS)))
    assert alerts.live(plant) == []


def test_a_night_shift_that_nobody_planned(plant: str) -> None:
    """With a calendar of 8 to 20 o'clock: 48 kWh outside of it usually, 60 today."""
    shift = Shift((1, 2, 3, 4, 5, 6, 7), 480, 1_200)
    plants.add_node(Node(plant, "hall", NodeKind.WORKSHOP))
    meters.add(Meter(plant, "h", "electricity", Kind.INTERVAL, "kWh", node="hall", shifts=(shift,)))
    usual(plant, meter="h")
    night = rows(TODAY, "1.25", range(32), "h") + rows(TODAY, "1.25", range(80, SLOTS), "h")
    send(plant, night + rows(TODAY, "1", range(32, 80), "h"))
    hall = Subject(node="hall", carrier="electricity")
    [alert] = found(plant, Rule.STANDBY, hall)
    assert alert.facts == {"used": 60_000, "usual": 48_000, "nights": 30}


def test_a_slow_drift_is_seen_before_a_day_is(plant: str) -> None:
    """Two per cent more every day is no day's news: the charts see it."""
    usual(plant, TODAY - 9 * DAY)
    for number in range(9, -1, -1):
        send(plant, rows(TODAY - number * DAY, "1.025"))
    assert found(plant, Rule.DAY_TOTAL) == []
    # The deviation is floored at 1 %, so a day of 2.5 % is 2 beyond k: more than 5 with the third.
    [alert] = found(plant, Rule.CUSUM)
    assert alert.first_at == clock.start_of(TODAY - 7 * DAY)
    assert found(plant, Rule.EWMA) != []


def test_a_limit_opens_at_its_slot_and_closes_after_two_normal_hours(plant: str) -> None:
    # 10 kW are 2.5 kWh in a quarter of an hour.
    alert_days.set_limit(plant, "line", Decimal(10))
    send(plant, rows(TODAY, "2", range(8)) + rows(TODAY, "2.6", range(8, 10)))
    [alert] = found(plant, Rule.LIMIT)
    begin = clock.start_of(TODAY)
    assert (alert.state, alert.first_at, alert.last_at) == (
        State.OPEN,
        begin + 8 * SLOT,
        begin + 10 * SLOT,
    )
    send(plant, rows(TODAY, "2", range(10, 17)))
    assert found(plant, Rule.LIMIT)[0].state is State.OPEN
    send(plant, rows(TODAY, "2", range(17, 18)))
    assert found(plant, Rule.LIMIT)[0].state is State.CLOSED
    # Two hours later again: the same alert a second time, worse by nothing.
    send(plant, rows(TODAY, "2", range(18, 26)) + rows(TODAY, "2.6", range(26, 27)))
    [alert] = found(plant, Rule.LIMIT)
    assert (alert.state, alert.times, alert.last_at) == (State.OPEN, 2, begin + 27 * SLOT)
    assert told(plant, alert.id) == ["alert.opened", "alert.closed", "alert.opened"]


def test_a_limit_that_is_taken_away_takes_its_alert_along(plant: str) -> None:
    alert_days.set_limit(plant, "line", Decimal(10))
    send(plant, rows(TODAY, "2.6", range(8)))
    alert_days.set_limit(plant, "line", None)
    alerting.evaluate(plant, {TODAY})
    assert [one.state for one in found(plant, Rule.LIMIT)] == [State.CLOSED]


def test_demand_is_what_is_bought_and_grows_worse(plant: str) -> None:
    """Contracted 10 kW: 2.5 kWh a quarter. What the panels make does not count."""
    meters.add(Meter(plant, "pv", "electricity", Kind.INTERVAL, "kWh", flow=Flow.GENERATION))
    alert_days.set_limit(plant, None, Decimal(10))
    send(plant, rows(TODAY, "9", range(8), "pv"), rows(TODAY, "2.3", range(4)))
    [alert] = found(plant, Rule.DEMAND, WHOLE)
    assert (alert.severity, alert.facts) == (
        Severity.WARNING,
        {"peak": 2_300, "limit": 2_250},
    )
    alerts.acknowledge(plant, alert.id, "somebody")
    send(plant, rows(TODAY, "2.6", range(4, 8)))
    [alert] = found(plant, Rule.DEMAND, WHOLE)
    # What was seen as a warning and is critical now wants to be seen again.
    assert (alert.severity, alert.state) == (Severity.CRITICAL, State.OPEN)
    assert told(plant, alert.id) == ["alert.opened", "alert.escalated"]


def test_what_a_main_meter_measures_is_not_added_again_below_it(plant: str) -> None:
    meters.add(Meter(plant, "main", "electricity", Kind.INTERVAL, "kWh"))
    layout = alert_days.layout_of(plant)
    assert layout.bought == ("main",)
    summed = {one.node: one.meters for one in layout.series}
    assert (summed[None], summed["line"]) == (("main",), ("m",))


def put_right(plant: str) -> None:
    """The busy day was read wrongly: an operator sets it to what is usual."""
    edits = [Edit(clock.start_of(TODAY) + slot * SLOT, 1_000) for slot in range(20, SLOTS)]
    meter = meters.get(plant, "m")
    editing.edit(meter, edits, above=True, by="op", reason="wrong ratio")
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)


def test_an_edit_that_brings_the_day_back_withdraws_the_alert(plant: str) -> None:
    usual(plant)
    send(plant, high(TODAY))
    put_right(plant)
    alerting.sweep(clock.now() + 2 * readings.DEBOUNCE)
    assert [one.why_closed for one in found(plant, Rule.DAY_TOTAL)] == [Why.WITHDRAWN]


def test_a_look_at_an_older_layer_takes_back_what_it_raises(
    plant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between seeing and raising, the day is put right and another look finds nothing wrong."""
    usual(plant)
    readings.take(plant, high(TODAY))
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)
    real, looks = alerts.found, []

    def overtaken(plant_id: str, finding: Finding) -> Alert:
        if not looks:
            looks.append(finding)
            put_right(plant)
            alerting.evaluate(plant, {TODAY})
            assert alerts.live(plant) == []
        return real(plant_id, finding)

    monkeypatch.setattr(alerts, "found", overtaken)
    alerting.evaluate(plant, {TODAY})
    assert looks
    assert alerts.live(plant) == []
    assert [one.why_closed for one in found(plant, Rule.DAY_TOTAL)] == [Why.WITHDRAWN]


# --- silence and quality ------------------------------------------------------------------------


@pytest.mark.usefixtures("_noon")
def test_a_meter_that_falls_silent_and_speaks_again(plant: str) -> None:
    meters.add(Meter(plant, "n", "electricity", Kind.INTERVAL, "kWh", node="line"))
    meters.add(Meter(plant, "new", "electricity", Kind.INTERVAL, "kWh", node="line"))
    # It is noon: slot 48 has begun. Both were heard until 11:00, one goes on.
    send(plant, rows(TODAY, "1", range(44)), rows(TODAY, "1", range(48), "n"))
    alerting.listen_to(plant, clock.now())
    [alert] = alerts.live(plant)
    assert (alert.rule, alert.subject, alert.severity) == (
        Rule.SILENT,
        Subject(meter="m"),
        Severity.NOTICE,
    )
    with clock.travel(SLOT):
        send(plant, rows(TODAY, "1", range(48, 49), "n"))
        alerting.listen_to(plant, clock.now())
        [alert] = alerts.live(plant)
        assert alert.severity is Severity.WARNING
        send(plant, rows(TODAY, "1", range(44, 49)))
        alerting.listen_to(plant, clock.now())
    assert alerts.live(plant) == []
    assert told(plant, alert.id) == ["alert.opened", "alert.escalated", "alert.closed"]


@pytest.mark.usefixtures("_noon")
def test_a_whole_plant_that_falls_silent_is_one_alert(plant: str) -> None:
    meters.add(Meter(plant, "n", "electricity", Kind.INTERVAL, "kWh"))
    send(plant, rows(TODAY, "1", range(40)), rows(TODAY, "1", range(42), "n"))
    alerting.listen_to(plant, clock.now())
    [alert] = alerts.live(plant)
    assert (alert.subject, alert.facts) == (Subject(), {"meters": 2})
    assert alert.first_at == clock.start_of(TODAY) + 42 * SLOT
    # Ten days later it is critical, and still one.
    with clock.travel(timedelta(days=10)):
        alerting.listen_to(plant, clock.now())
    assert [one.severity for one in alerts.live(plant)] == [Severity.CRITICAL]


def test_old_data_handed_over_now_is_not_silence(plant: str) -> None:
    send(plant, rows(TODAY - 60 * DAY, "1"))
    alerting.listen_to(plant, clock.now())
    assert alerts.live(plant) == []


@pytest.mark.usefixtures("_noon")
def test_a_month_with_gaps(plant: str) -> None:
    """From the 10th to the 19th 10 days are 960 slots; 850 of them are 88.5 %."""
    days = [date(2026, 5, number) for number in range(10, 19)]
    send(plant, [row for day in days for row in rows(day, "1", range(94))])
    send(plant, rows(date(2026, 5, 19), "1", range(4)))
    alert_reviews.settle(
        plant, {Rule.QUALITY}, alert_reviews.quality(plants.get_plant(plant), clock.now())
    )
    [alert] = [one for one in alerts.live(plant) if one.rule is Rule.QUALITY]
    assert alert.subject == Subject(meter="m")
    assert (alert.facts["actual"], alert.facts["expected"]) == (9 * 94 + 4, 960)


def test_a_budget_that_will_not_do(plant: str) -> None:
    """35 days of 96 kWh are 3,360 of 4,000 kWh, 84 %; May alone 1,824 of 4,000 x 31/365 = 339."""
    usual(plant)
    inventory_days.sweep(clock.now() + DAY)
    rules = {Rule.BUDGET, Rule.FORECAST, Rule.SURPLUS}

    def review(plan_kwh: int) -> set[tuple[Rule, str | None, Severity]]:
        budget_plans.tell(plant, Plan(2026, {Measure.ENERGY: plan_kwh * 1_000}))
        judged = alert_reviews.budgeted(plants.get_plant(plant), clock.now())
        alert_reviews.settle(plant, rules, judged)
        return {(one.rule, one.subject.of, one.severity) for one in alerts.live(plant)}

    assert review(4_000) == {
        (Rule.BUDGET, "energy_wh", Severity.NOTICE),
        (Rule.BUDGET, "energy_wh month", Severity.CRITICAL),
        (Rule.FORECAST, "energy_wh", Severity.WARNING),
    }
    budgets = [one.facts for one in alerts.live(plant) if one.rule is Rule.BUDGET]
    assert {(one["measure"], one["period"]) for one in budgets} == {
        ("energy_wh", "2026"),
        ("energy_wh", "2026-05"),
    }
    assert review(4_000) == review(4_000)
    # A plan of 100,000 kWh has room for 365 x 96 = 35,040, and closes all three.
    assert review(100_000) == set()
    assert {one.why_closed for one in alerts.listed(plant, None, before=None, limit=10)} == {
        Why.NORMAL
    }
    # On the first of July it is known what the half-year left: over a tenth of 49,589 kWh.
    with clock.travel(datetime(2026, 6, 30, 17, tzinfo=UTC) - NIGHT):
        assert review(100_000) == {(Rule.SURPLUS, "energy_wh", Severity.INFORMATION)}


# --- one of many --------------------------------------------------------------------------------


def test_many_who_look_at_once_open_one_alert(plant: str) -> None:
    usual(plant)
    readings.take(plant, high(TODAY))
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: alerting.evaluate(plant, {TODAY}), range(8)))
    assert len(found(plant, Rule.DAY_TOTAL)) == 1
    assert told(plant) == ["alert.opened"] * 2


def finding(hour: int, severity: Severity = Severity.WARNING, hours: int = 1) -> Finding:
    first = clock.start_of(TODAY) + timedelta(hours=hour)
    return Finding(Rule.LIMIT, LINE, severity, first, first + timedelta(hours=hours), {"peak": 1})


def test_acknowledging_and_closing_at_once_end_closed_or_refused(plant: str) -> None:
    """Whoever wins, the alert is closed in the end, and nobody is told twice."""
    for number in range(8):
        opened = alerts.found(plant, replace(finding(0), subject=Subject(node=str(number))))

        def acknowledge(_: int, alert: Alert = opened) -> str:
            try:
                return alerts.acknowledge(plant, alert.id, "me").state
            except AlertClosed:
                return "refused"

        def close(_: int, alert: Alert = opened) -> None:
            while (now := alerts.get(plant, alert.id)).state is not State.CLOSED:
                alerts.close(now, Why.NORMAL)

        with ThreadPoolExecutor(4) as pool:
            seen = [pool.submit(acknowledge, one) for one in range(2)]
            ends = [pool.submit(close, one) for one in range(2)]
            assert all(one.result() is None for one in ends)
            assert {one.result() for one in seen} <= {"acknowledged", "refused"}
        assert alerts.get(plant, opened.id).state is State.CLOSED
        assert told(plant, opened.id) == ["alert.opened", "alert.closed"]


def test_what_comes_back_within_eight_hours_is_the_same(plant: str) -> None:
    first = alerts.found(plant, finding(0))
    alerts.close(alerts.get(plant, first.id), Why.NORMAL)
    again = alerts.found(plant, finding(9))
    assert (again.id, again.times, again.state) == (first.id, 2, State.OPEN)
    alerts.close(alerts.get(plant, first.id), Why.NORMAL)
    # It ended at 10; from 19 on it is another.
    later = alerts.found(plant, finding(19))
    assert (later.id != first.id, later.times) == (True, 1)
    # What is found out now of midnight was told at midnight.
    assert alerts.found(plant, finding(0)).id == first.id
    # And what nobody knew of the day before is written down as over.
    old = alerts.found(plant, finding(-24))
    assert (old.state, told(plant, old.id)) == (State.CLOSED, ["alert.opened", "alert.closed"])
    assert [one.id for one in alerts.live(plant)] == [later.id]


def test_severity_follows_and_only_worse_than_ever_is_told(plant: str) -> None:
    alert = alerts.found(plant, finding(0, Severity.CRITICAL))
    alert = alerts.found(plant, finding(1, Severity.NOTICE))
    assert (alert.severity, alert.worst) == (Severity.NOTICE, Severity.CRITICAL)
    alerts.acknowledge(plant, alert.id, "me")
    alert = alerts.found(plant, finding(2, Severity.CRITICAL))
    assert (alert.severity, alert.state) == (Severity.CRITICAL, State.ACKNOWLEDGED)
    assert told(plant, alert.id) == ["alert.opened"]


# --- deaths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.enterprise.alert_days:make", "after"),
        Death("accounting.enterprise.alerts:_open", "after"),
        Death("accounting.enterprise.alerts:_open", "after", 2),
        Death("accounting.events:leave", "after"),
        Death("accounting.enterprise.meterdays:let_go", "before"),
    ],
    ids=str,
)
def test_a_look_cut_off_at_any_step_is_finished_by_the_next(
    plant: str, crew: Crew, step: Death
) -> None:
    usual(plant)
    readings.take(plant, high(TODAY))
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)
    assert crew.run("look_for_alerts", step) == KILLED
    alerting.sweep(clock.now() + 2 * readings.DEBOUNCE)
    assert [one.state for one in found(plant, Rule.DAY_TOTAL)] == [State.OPEN]
    assert told(plant) == ["alert.opened"] * 2
    assert alerting.sweep(clock.now() + 2 * readings.DEBOUNCE) == 0


def test_what_was_closed_and_not_told_is_told_by_the_sweep(plant: str, crew: Crew) -> None:
    opened = alerts.found(plant, finding(0))
    death = Death("accounting.events:leave", "before")
    assert crew.run("close_alert", death, plant=plant, alert=opened.id) == KILLED
    assert told(plant, opened.id) == ["alert.opened"]
    assert alerts.tell_untold() == 1
    assert told(plant, opened.id) == ["alert.opened", "alert.closed"]
    assert alerts.tell_untold() == 0


# --- over HTTP ----------------------------------------------------------------------------------


def test_alerts_are_listed_by_state_and_acknowledged_once(plant: str, gateway: Caller) -> None:
    base = f"/v1/plants/{plant}/alerts"
    assert gateway.get(base).get_json() == {"items": [], "next_cursor": None}
    ids = [
        alerts.found(plant, replace(finding(0), subject=Subject(node=f"n{number}"))).id
        for number in range(3)
    ]
    page = gateway.get(f"{base}?limit=2").get_json()
    assert [one["id"] for one in page["items"]] == ids[:0:-1]
    rest = gateway.get(f"{base}?limit=2&cursor={page['next_cursor']}").get_json()
    assert ([one["id"] for one in rest["items"]], rest["next_cursor"]) == (ids[:1], None)
    first = gateway.post(f"{base}/{ids[0]}/acknowledge").get_json()
    assert (first["state"], first["text"]) == ("acknowledged", "功率超过该节点的限值。")
    again = gateway.post(f"{base}/{ids[0]}/acknowledge", headers={"Accept-Language": "en"})
    assert again.get_json()["acknowledged_at"] == first["acknowledged_at"]
    assert again.get_json()["text"] == "The power is above the limit of the node."
    alerts.close(alerts.get(plant, ids[1]), Why.NORMAL)
    assert said(gateway.post(f"{base}/{ids[1]}/acknowledge")) == (409, "alert_closed")
    states = {
        state: [one["id"] for one in gateway.get(f"{base}?state={state}").get_json()["items"]]
        for state in ("open", "acknowledged", "closed")
    }
    assert states == {"open": [ids[2]], "acknowledged": [ids[0]], "closed": [ids[1]]}
    assert said(gateway.get(f"{base}?state=over")) == (422, "validation_failed")


def test_doors_of_alerts(app: Flask, plant: str, gateway: Caller) -> None:
    alert = alerts.found(plant, finding(0))
    base = f"/v1/plants/{plant}/alerts"
    stranger = machine(app, ClientKind.PLANT, "plt_other")
    assert said(stranger.get(base)) == (403, "forbidden")
    assert said(stranger.post(f"{base}/{alert.id}/acknowledge")) == (403, "forbidden")
    # An alert of another plant is none of this one.
    plants.add_plant("二号厂", "91330802MA00DEM00E", "C3110", plant_id="plt_other")
    path = f"/v1/plants/plt_other/alerts/{alert.id}/acknowledge"
    assert said(stranger.post(path)) == (404, "not_found")
    assert said(gateway.post(f"{base}/alt_nothing/acknowledge")) == (404, "not_found")
    assert machine(app, ClientKind.OPERATOR).get(base).status_code == 200


def test_limits_are_set_by_the_operator_and_leave_a_trace(app: Flask, plant: str) -> None:
    operator = machine(app, ClientKind.OPERATOR)
    base = f"/v1/operator/plants/{plant}/limits"
    for kw in (10, 12.5):
        answer = operator.post(base, {"node": "line", "kw": kw, "reason": "new fuse"})
        assert answer.get_json() == {"plant_id": plant, "node": "line", "kw": kw}
    assert operator.post(base, {"kw": 500}).status_code == 200
    assert said(operator.post(base, {"node": "x", "kw": 1})) == (422, "validation_failed")
    assert said(operator.post(base, {"node": "line", "kw": 0})) == (422, "validation_failed")
    items = operator.get(base).get_json()["items"]
    assert {(one["node"], one["kw"]) for one in items} == {("line", 12.5), (None, 500)}
    trail = operator.get(f"/v1/operator/audit?subject={plant}/line").get_json()["items"]
    assert (trail[0]["before"], trail[0]["after"]) == ({"kw": "10"}, {"kw": "12.5"})
    assert operator.post(base, {"node": "line", "kw": None}).status_code == 200
    assert len(operator.get(base).get_json()["items"]) == 1
