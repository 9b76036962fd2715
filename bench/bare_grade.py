"""`gunicorn bench.bare_grade:app`: a view with one `find_one`, next to which a bank's query stands.

It answers what a bank gets, ready made, under the reference: nobody is asked who they are. The
second view also puts the read on record, on disk before it answers, as nobody may leave out.
"""

import os
from typing import Any

from flask import Flask, jsonify
from pymongo import MongoClient, WriteConcern

app = Flask(__name__)
_base = MongoClient[dict[str, Any]](os.environ["MONGODB_URI"])["tanhui"]
_answers = _base["bare_grades"]
_reads = _base.get_collection("bare_reads", write_concern=WriteConcern("majority", j=True))


@app.get("/bare/<reference>")
def bare(reference: str) -> Any:
    return jsonify(_answers.find_one({"_id": reference}))


@app.get("/recorded/<reference>")
def recorded(reference: str) -> Any:
    _reads.insert_one({"reference": reference, "allowed": True})
    return jsonify(_answers.find_one({"_id": reference}))
