"""`gunicorn bench.bare_activity:app`: a view that writes what a reported activity leaves behind.

The same documents as `POST /v1/activities` wrote, with the same indexes and concerns: the fact, the
entry after the newest one of the account, the outcome beside the fact. Nobody is asked who they
are, nothing is checked, counted or decided: everything but ids and sequence comes ready made.
"""

import os
from functools import cache
from typing import Any

from flask import Flask, jsonify, request
from pymongo import MongoClient, WriteConcern
from pymongo.database import Database

from accounting import storage
from accounting.ids import new_id

app = Flask(__name__)
TEMPLATES = "bare_templates"
FACTS, ENTRIES = "bare_activities", "bare_entries"


@cache
def _base() -> "Database[Any]":
    return MongoClient[dict[str, Any]](os.environ["MONGODB_URI"], tz_aware=True)["tanhui"]


@cache
def _templates() -> dict[str, dict[str, Any]]:
    return {row["_id"]: row["document"] for row in _base()[TEMPLATES].find()}


@app.get("/readyz")
def ready() -> Any:
    return jsonify({})


@app.post("/bare/<resident>")
def report(resident: str) -> Any:
    wanted, base, made = request.get_json(), _base(), _templates()
    facts, entries = storage.strong(base[FACTS]), storage.strong(base[ENTRIES])
    activity = new_id("act")
    fact = {
        **made["fact"],
        "_id": activity,
        "resident": resident,
        "source": f"app:{resident}",
        "event_id": wanted["source_event_id"],
        "quantity": str(wanted["quantity"]),
    }
    facts.insert_one(fact)
    last = entries.find_one(
        {"account": resident},
        {"seq": 1, "after": 1, "recorded_at": 1, "hash": 1},
        sort=[("seq", -1)],
    )
    seq = last["seq"] + 1 if last else 1
    key = {"_id": f"{resident}/activity:{activity}", "account": resident, "seq": seq}
    entries.insert_one(made["entry"] | key)
    settled = facts.with_options(write_concern=WriteConcern(1)).find_one_and_update(
        {"_id": activity}, {"$set": made["outcome"]}, return_document=True
    )
    return jsonify(made["answer"] | {"id": settled["_id"]}), 201
