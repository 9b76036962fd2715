"""Behind proxies of ours limits count who sent the request, as the last of them names them."""

from dataclasses import replace

from flask import Flask

import api.app

FAMILY = "/v1/rewards"


def left(app: Flask, forwarded: str) -> int:
    answer = app.test_client().get(FAMILY, headers={"X-Forwarded-For": forwarded})
    return int(answer.headers["RateLimit-Remaining"])


def test_one_proxy_is_believed_and_what_a_sender_adds_is_not(app: Flask) -> None:
    behind = api.app.create_app(replace(app.extensions["config"], proxies=1))
    first = left(behind, "198.51.100.7")
    # The sender claims to be somebody else; our proxy adds who it was.
    assert left(behind, "203.0.113.9, 198.51.100.7") == first - 1
    assert left(behind, "198.51.100.8") == first


def test_without_a_proxy_nobody_is_believed(app: Flask) -> None:
    first = left(app, "198.51.100.17")
    assert left(app, "198.51.100.18") == first - 1
