"""A webhook leads to the open internet and nowhere else, whatever a name says and when."""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from receivers import Receiver, receiver

from accounting.errors import ValidationFailed
from integrations import webhook_targets

PUBLIC = "93.184.215.14"


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


def names(*answers: str) -> Any:
    """A resolver that gives each address in turn, the last for ever."""
    left = list(answers)

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        address = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in address.split(",")
        ]

    return resolve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "2001:0:a00:1::1",
        "2001:db8::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not webhook_targets.is_public(ipaddress.ip_address(address))
    with pytest.raises(ValidationFailed):
        webhook_targets.check("https://a.example/", loopback=False, resolve=names(address))


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_that_are(address: str) -> None:
    webhook_targets.check("https://a.example/x?y", loopback=False, resolve=names(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/",
        "ftp://a.example/",
        "file:///etc/passwd",
        "//a.example/",
        "https://",
        "https://user@a.example/",
        "https://user:secret@a.example/",
        "https://a.example:99999/",
        "https://a.example/#part",
        "https://a.example/a b",
        "https://a.example/\r\nHost: b",
        "https://碳.example/",
        "https://[::1/",
    ],
)
def test_urls_that_are_no_webhook(url: str) -> None:
    with pytest.raises(ValidationFailed):
        webhook_targets.check(url, loopback=False, resolve=names(PUBLIC))


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/", "https://0x7f.1/", "https://2130706433/", "https://localhost/"]
)
def test_other_ways_to_write_loopback(url: str) -> None:
    with pytest.raises(ValidationFailed):
        webhook_targets.check(url, loopback=False)


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(ValidationFailed):
        webhook_targets.check(
            "https://a.example/", loopback=False, resolve=names(f"{PUBLIC},10.0.0.1")
        )


def test_the_demo_opens_loopback_and_nothing_else() -> None:
    webhook_targets.check("http://127.0.0.1:9/", loopback=True)
    for url, address in (("https://a.example/", "10.0.0.1"), ("http://a.example/", PUBLIC)):
        with pytest.raises(ValidationFailed):
            webhook_targets.check(url, loopback=True, resolve=names(address))


def test_a_name_that_was_public_and_leads_inside_later_is_not_reached(there: Receiver) -> None:
    """DNS rebinding: the name is public when the webhook is added and 127.0.0.1 when it is used."""
    port = there.url.split(":")[2].split("/")[0]
    rebinding = names(PUBLIC, "127.0.0.1")
    url = f"https://a.example:{port}/hook"
    webhook_targets.check(url, loopback=False, resolve=rebinding)
    answer = webhook_targets.post(url, b"{}", {}, loopback=False, resolve=rebinding)
    assert (answer.ok, answer.status) == (False, None)
    assert answer.error == "refused: it leads into a private network"
    assert there.got == []


def test_a_try_asks_for_the_name_once_and_connects_to_what_was_checked(there: Receiver) -> None:
    """Between check and connect there is no second look that could answer otherwise."""
    port = there.url.split(":")[2].split("/")[0]
    asked: list[str] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    url = f"http://a.example:{port}/hook"
    answer = webhook_targets.post(url, b"{}", {}, loopback=True, resolve=resolve)
    assert (answer.status, asked) == (204, ["a.example"])
    assert there.got[0][0]["host"] == f"a.example:{port}"


def test_a_redirect_is_an_answer_and_not_followed(there: Receiver) -> None:
    there.answers, there.headers = lambda _: 307, {"Location": "http://127.0.0.1:1/inside"}
    answer = webhook_targets.post(there.url, b"{}", {}, loopback=True)
    assert (answer.ok, answer.status, answer.error) == (False, 307, "answered 307")
    assert len(there.got) == 1


def test_a_receiver_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte comes in time, the answer never does."""
    monkeypatch.setattr(webhook_targets, "TRY_S", 0.3)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65_536)
                while not over.wait(0.02):
                    try:
                        peer.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        answer = webhook_targets.post(url, b"{}", {}, loopback=True)
        over.set()
        thread.join()
    assert (answer.status, answer.error) == (None, "timed out")


def test_nobody_listening_is_an_answer_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = webhook_targets.post(f"http://127.0.0.1:{port}/", b"{}", {}, loopback=True)
    assert (answer.status, answer.error) == (None, "connection refused")
