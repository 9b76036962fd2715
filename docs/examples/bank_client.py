"""A bank's client on one page: sign requests, query grades, verify the answers, walk the changes.

    pip install requests http-message-signatures "pyjwt[crypto]"
    python bank_client.py demo-credentials.json "green loan" REFERENCE...

It reads the `bank` part of the file `tanhui up --demo` writes, and imports nothing of Tanhui.
"""

import argparse
import base64
import json
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import requests
from http_message_signatures import HTTPMessageSigner, HTTPSignatureKeyResolver, algorithms

TIMEOUT_S = 30
QUERY_MAX = 500


class OneKey(HTTPSignatureKeyResolver):
    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def resolve_private_key(self, key_id: str) -> bytes:
        return self.secret


class Bank:
    def __init__(self, base_url: str, bank: dict[str, str]) -> None:
        self.base_url, self.bank_id, self.key_id = base_url, bank["bank_id"], bank["key_id"]
        self.signer = HTTPMessageSigner(
            signature_algorithm=algorithms.HMAC_SHA256,
            key_resolver=OneKey(base64.b64decode(bank["hmac_key_b64"])),
        )
        self.http = requests.Session()
        token = self.http.post(
            f"{base_url}/v1/oauth/token",
            data={"grant_type": "client_credentials", "scope": "grades:read terms:write"},
            auth=(bank["client_id"], bank["client_secret"]),
            timeout=TIMEOUT_S,
        )
        token.raise_for_status()
        self.http.headers["Authorization"] = f"Bearer {token.json()['access_token']}"
        keys = self.http.get(f"{base_url}/.well-known/jwks.json", timeout=TIMEOUT_S).json()
        # Keep this set: with it every answer can be verified later without asking anybody.
        self.keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(keys).keys}

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """One signed request. A nonce works once: sign anew whatever is sent again."""
        request = self.http.prepare_request(
            requests.Request(method, f"{self.base_url}{path}", **options)
        )
        # With a body the signer adds `Content-Digest` and covers it.
        self.signer.sign(
            request,
            key_id=self.key_id,
            created=datetime.now(UTC),
            nonce=secrets.token_urlsafe(18),
            label="sig1",
            covered_component_ids=["@method", "@target-uri"],
            body=request.body,
        )
        return self.http.send(request, timeout=TIMEOUT_S)

    def grades(self, purpose: str, references: list[str]) -> Iterator[dict[str, Any] | None]:
        """The verified grade of each reference, in order; None where there is none to be had."""
        for start in range(0, len(references), QUERY_MAX):
            body = {"purpose": purpose, "references": references[start : start + QUERY_MAX]}
            answer = self.call("POST", "/v1/bank/grades/query", json=body)
            answer.raise_for_status()
            for result in answer.json()["results"]:
                yield self.verified(result["grade"]) if result["status_code"] == 200 else None

    def verified(self, grade: dict[str, Any]) -> dict[str, Any]:
        """What the city signed. Raises unless it is for this bank and says what the answer says."""
        token = grade["jws"]
        key = self.keys[jwt.get_unverified_header(token)["kid"]]
        said: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=self.bank_id,
            options={"require": ["iss", "iat", "aud"]},
            leeway=60,
        )
        for name in ("iss", "iat", "aud"):
            said.pop(name)
        if said != {name: value for name, value in grade.items() if name != "jws"}:
            raise jwt.InvalidTokenError("the answer is not what was signed")
        return said

    def changes(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """What changed on the green list beyond a sequence number; keep the last one you saw."""
        params: dict[str, Any] = {"after": after, "limit": 100}
        while True:
            answer = self.call("GET", "/v1/bank/green-list/changes", params=params)
            answer.raise_for_status()
            page = answer.json()
            for change in page["items"]:
                if change["sequence"] != after + 1:
                    raise LookupError(f"a gap after change {after}")
                after = change["sequence"]
                yield change
            if page["next_cursor"] is None:
                return
            params = {"limit": 100, "cursor": page["next_cursor"]}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("credentials", type=Path)
    parser.add_argument("purpose")
    parser.add_argument("references", nargs="*")
    wanted = parser.parse_args(arguments)
    known = json.loads(wanted.credentials.read_text("utf-8"))
    bank = Bank(known["base_url"], known["bank"])
    found = bank.grades(wanted.purpose, wanted.references)
    for reference, grade in zip(wanted.references, found, strict=True):
        print(reference, grade["grade"] if grade else "no grade available")  # noqa: T201
    for change in bank.changes():
        print(change["sequence"], change["change"], change["reference"])  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
