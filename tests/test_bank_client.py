"""The example client of the documentation, against a stack that runs."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from stacks import Stack

CLIENT = Path(__file__).parent.parent / "docs" / "examples" / "bank_client.py"
TIMEOUT_S = 60
LINES_MAX = 150
TRIES_MAX, PAUSE_S = 20, 3


def ran(stack: Stack, *references: str) -> list[str]:
    """What the client prints."""
    credentials = str(stack.data_dir / "demo-credentials.json")
    command = [sys.executable, str(CLIENT), credentials, "example loan", *references]
    # For some seconds after a Redis was lost, as by the torture before, a bank's door stays shut.
    for _ in range(TRIES_MAX):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if "401" not in done.stderr:
            break
        time.sleep(PAUSE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_example_signs_queries_verifies_and_walks(demo_stack: Stack) -> None:
    known = json.loads((demo_stack.data_dir / "demo-credentials.json").read_text("utf-8"))

    def call(method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = requests.request(
            method, f"{known['base_url']}{path}", json=body, headers=headers, timeout=TIMEOUT_S
        )
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    phone = "+8613899990001"
    code = call("POST", "/v1/auth/otp", {"phone": phone})["debug_code"]
    token = call("POST", "/v1/auth/token", {"phone": phone, "code": code})["access_token"]
    me = {"Authorization": f"Bearer {token}"}
    consent = call(
        "POST",
        "/v1/me/consents",
        {
            "bank_id": known["bank"]["bank_id"],
            "purpose": "example loan",
            "fields": ["grade", "margin", "coverage"],
            "expires_at": (datetime.now(UTC) + timedelta(days=30)).isoformat(),
        },
        **me,
    )
    reference = consent["reference"]
    said = ran(demo_stack, reference, "ref_unknown")
    assert said[:2] == [f"{reference} unrated", "ref_unknown no grade available"]
    assert not any(reference in line for line in said[2:])
    call("DELETE", f"/v1/me/consents/{consent['id']}", **me)
    said = ran(demo_stack, reference)
    assert said[0] == f"{reference} no grade available"
    assert said[-1].split()[1:] == ["withdrawn", reference]


def test_the_example_is_one_page_and_knows_nothing_of_ours() -> None:
    text = CLIENT.read_text("utf-8")
    assert len(text.splitlines()) < LINES_MAX
    for room in ("accounting", "footprint", "integrations", "api"):
        assert f"from {room}" not in text
        assert f"import {room}" not in text
