"""Operators by name: added where the servers run, each trusted with parts of the programme."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from callers import Caller, machine, said
from click.testing import CliRunner
from flask import Flask

from accounting import audit, clients
from accounting.clients import Kind
from api.operators import operator

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(app: Flask, tmp_path: Path) -> Run:
    """Runs `tanhui operator` on the servers of the test."""
    config = app.extensions["config"]
    servers = {
        "MONGODB_URI": config.mongodb_uri,
        "REDIS_URL": config.redis_url,
        "TANHUI_SECRET": base64.b64encode(config.secret).decode(),
    }

    def tanhui(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "api.cli", "operator", *words, "--data-dir", str(tmp_path)],
            env={**os.environ, **servers},
            capture_output=True,
            text=True,
            check=False,
        )

    return tanhui


def credentials(shown: str) -> tuple[str, str]:
    client_id, secret = (line.split()[1] for line in shown.splitlines())
    return client_id, secret


def sign_in(app: Flask, client_id: str, secret: str) -> Caller:
    http = app.test_client()
    answer = http.post(
        "/v1/oauth/token", data={"grant_type": "client_credentials"}, auth=(client_id, secret)
    )
    assert answer.status_code == 200, answer.get_json()
    return Caller(http, client_id, answer.get_json()["access_token"])


def test_the_first_operator_is_added_on_the_server_and_can_sign_in(app: Flask, run: Run) -> None:
    added = run("add", "王芳")
    assert added.returncode == 0, added.stderr
    client_id, secret = credentials(added.stdout)
    anna = sign_in(app, client_id, secret)
    assert anna.get("/v1/operator/audit").status_code == 200
    assert "王芳" in run("list").stdout
    row = audit.trail(subject=client_id, limit=1)[0]
    assert (row.actor, row.action, row.after) == (
        "command line", "operator added", {"scopes": ["operator"]},
    )  # fmt: skip


def test_an_operator_of_one_area_is_let_into_no_other(app: Flask, run: Run) -> None:
    support = sign_in(app, *credentials(run("add", "李娜", "--area", "support").stdout))
    assert support.get("/v1/operator/appeals").status_code == 200
    assert said(support.get("/v1/operator/rewards")) == (403, "forbidden")
    assert said(support.get("/v1/operator/audit")) == (403, "forbidden")
    assert said(support.get("/v1/operator/methodology")) == (403, "forbidden")


def test_a_disabled_operator_is_out_at_once(app: Flask, run: Run) -> None:
    anna = machine(app, Kind.OPERATOR)
    assert anna.get("/v1/operator/audit").status_code == 200
    for _ in range(2):
        assert run("disable", anna.id).returncode == 0
    assert said(anna.get("/v1/operator/audit")) == (401, "unauthenticated")
    assert [row.action for row in audit.trail(subject=anna.id, limit=10)] == ["operator disabled"]


@pytest.mark.parametrize("words", [["", "x"], ["x" * 201], ["x", "--area", "everything"]])
def test_a_name_or_area_that_cannot_be_adds_nobody(app: Flask, words: list[str]) -> None:
    refused = CliRunner().invoke(operator, ["add", *words])
    assert refused.exit_code == 2
    assert refused.output
    assert clients.operators() == []


def test_an_unknown_operator_cannot_be_disabled(run: Run) -> None:
    refused = run("disable", "cli_operator_x")
    assert refused.returncode == 1
    assert refused.stderr == (
        "tanhui: there is no operator cli_operator_x: see tanhui operator list\n"
    )
