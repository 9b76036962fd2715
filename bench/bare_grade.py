"""`gunicorn bench.bare_grade:app`: a view with one `find_one`, next to which a bank's query stands.

It answers what a bank gets, ready made, under the reference: nobody is asked who they are.
"""

import os
from typing import Any

from flask import Flask, jsonify
from pymongo import MongoClient

app = Flask(__name__)
_answers = MongoClient[dict[str, Any]](os.environ["MONGODB_URI"])["tanhui"]["bare_grades"]


@app.get("/bare/<reference>")
def bare(reference: str) -> Any:
    return jsonify(_answers.find_one({"_id": reference}))
