"""A plant with its gateway and the operator who registered it, and what tests ask of it."""

from dataclasses import dataclass
from typing import Any

from callers import Caller, machine
from flask import Flask

from accounting.clients import Kind

USCC = "91330802MA2DH0000Y"


@dataclass(frozen=True)
class Works:
    """A plant, its gateway, and the operator who registered it."""

    operator: Caller
    gateway: Caller

    @property
    def path(self) -> str:
        return f"/v1/plants/{self.gateway.id}"

    def meter(self, name: str = "m1", **changes: Any) -> None:
        wanted = {"meter": name, "carrier": "electricity", "kind": "interval", "unit": "kWh"}
        path = f"/v1/operator/plants/{self.gateway.id}/meters"
        answer = self.operator.post(path, wanted | changes)
        assert answer.status_code == 201, answer.text

    def send(self, *rows: dict[str, Any]) -> dict[str, Any]:
        answer = self.gateway.post(f"{self.path}/readings", {"readings": list(rows)})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.get_json()
        return told

    def intervals(self, begin: str, end: str, meter: str = "m1") -> list[dict[str, Any]]:
        answer = self.gateway.get(f"{self.path}/meters/{meter}/intervals?from={begin}&to={end}")
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.get_json()["items"]
        return items


def open_works(app: Flask) -> Works:
    operator = machine(app, Kind.OPERATOR)
    wanted = {"name": "示范钢厂", "uscc": USCC, "sector": "C3110"}
    made = operator.post("/v1/operator/plants", wanted).get_json()
    return Works(operator, machine(app, Kind.PLANT, made["plant_id"]))


def row(at: str, value: Any, kind: str = "interval", meter: str = "m1") -> dict[str, Any]:
    return {"meter": meter, "at": f"2026-05-{at}+08:00", "value": value, "kind": kind}


def layer(items: list[dict[str, Any]]) -> list[tuple[Any, Any, str, str | None]]:
    return [(one["raw"], one["validated"], one["quality"], one.get("rule")) for one in items]
