"""Demo people, partners and rewards, and the file with their credentials.

Runs on every `tanhui up --demo`; what exists already stays, credentials included.
"""

import base64
import hashlib
import json
from datetime import timedelta
from typing import Any

from accounting import accounts, clients, clock, storage, vault
from accounting.clients import Kind
from accounting.enterprise import authorisations, budget_plans, budgets, plants
from accounting.enterprise.budget import Plan
from accounting.ids import new_id
from api.config import Config, write_private
from api.demo import plant as demo_plant
from rewards import catalogue, merchants

CREDENTIALS = "demo-credentials.json"
RESIDENTS = 40
STOCK = 1_000
# No company: the letters and the check digit are right, the number was never given out.
PLANT_USCC = "91330802MA00DEM00E"


def seed(config: Config) -> None:
    """Write demo data into the store of `config` and `<data-dir>/demo-credentials.json` (0600)."""
    file = config.data_dir / CREDENTIALS
    vault.configure(config.secret)
    storage.connect(config.mongodb_uri)
    try:
        held = json.loads(file.read_text("utf-8")) if file.exists() else None
        if held is None or clients.authenticate(**_secret_of(held["operator"])) is None:
            write_private(file, {"base_url": config.public_url, **_create()})
        elif held["base_url"] != config.public_url:
            write_private(file, {**held, "base_url": config.public_url})
    finally:
        storage.disconnect()


def _secret_of(credentials: dict[str, str]) -> dict[str, str]:
    return {"client_id": credentials["client_id"], "secret": credentials["client_secret"]}


def _create() -> dict[str, Any]:
    partner_id, bank_id = new_id("ptn"), new_id("bnk")
    plant_id = _plant()
    merchant = merchants.add(
        {"zh": "共富商城（演示）", "en": "Common Prosperity Mall (demo)"},
        [
            {"name": "柯城店", "address": "衢州市柯城区"},
            {"name": "衢江店", "address": "衢州市衢江区"},
        ],
    )
    _rewards(merchant.id)
    bank, bank_credentials = _client(Kind.BANK, "柯城农商银行（演示）", bank_id)
    key_id, key = clients.new_hmac_key(bank)
    _authorise(plant_id, bank_id)
    # The demo partner may report every behaviour and carrier and needs no link code.
    policy = {
        "every_behaviour": True,
        "behaviours": [],
        "carriers": ["electricity", "gas", "water"],
        "id_namespace": "",
        "link_code_required": False,
    }
    _, partner = _client(Kind.DATA, "数据合作方（演示）", partner_id, policy)
    return {
        "operator": _client(Kind.OPERATOR, "城市运营方（演示）", None)[1],
        "data_partner": {**partner, "partner_id": partner_id},
        "merchant": {
            **_client(Kind.MERCHANT, merchant.name["zh"], merchant.id)[1],
            "merchant_id": merchant.id,
            "store_id": merchant.stores[0].store_id,
        },
        "bank": {
            **bank_credentials,
            "bank_id": bank_id,
            "key_id": key_id,
            "hmac_key_b64": base64.b64encode(key).decode(),
        },
        "plant": {**_client(Kind.PLANT, "示范工厂（演示）", plant_id)[1], "plant_id": plant_id},
        "residents": [_resident(number) for number in range(1, RESIDENTS + 1)],
    }


def _client(
    kind: Kind, name: str, subject_id: str | None, policy: dict[str, Any] | None = None
) -> tuple[clients.Client, dict[str, str]]:
    client, secret = clients.create_client(kind, name, subject_id=subject_id, policy=policy)
    return client, {"client_id": client.client_id, "client_secret": secret}


def _plant() -> str:
    """The demo plant; a seeding that was killed before it wrote the file left it."""
    there = plants.plant_by_uscc(PLANT_USCC)
    made = there or plants.add_plant("示范工厂（演示）", PLANT_USCC, "industry")
    demo_plant.seed(made.id)
    _plan(made.id)
    return made.id


def _plan(plant_id: str) -> None:
    """A budget a little above what the year will come to."""
    year = clock.city_day(clock.now()).year
    if budget_plans.plan_of(plant_id, year) is None:
        expected = budgets.standing(plant_id, year).lines
        yearly = {
            measure: line.forecast.amount * 102 // 100
            for measure, line in expected.items()
            if line.forecast.amount is not None
        }
        if yearly:
            budget_plans.tell(plant_id, Plan(year, yearly))


def _authorise(plant_id: str, bank_id: str) -> None:
    """The demo plant lets the demo bank read its report."""
    authorisations.grant(
        plant_id,
        bank_id,
        purpose="绿色信贷（演示）",
        signatory="示范工厂（演示）",
        letter_sha256=hashlib.sha256("示范工厂授权书（演示）".encode()).hexdigest(),
        expires_at=clock.now() + timedelta(days=365),
        by="demo",
        once=None,
    )


def _resident(number: int) -> dict[str, str]:
    phone = f"+86139000{number:05d}"
    return {"phone": phone, "resident_id": accounts.by_phone(phone)}


def _rewards(merchant_id: str) -> None:
    """Prices follow published schemes: docs/methodology.md, section rewards."""
    for title, category, price_points, face_value_fen in (
        ({"zh": "公交单程券", "en": "One bus ride"}, "transport", 500, 100),
        ({"zh": "共享单车骑行券", "en": "One shared-bike ride"}, "transport", 750, 150),
        ({"zh": "胡柚一箱", "en": "A box of pomelos"}, "food", 2_500, 500),
    ):
        catalogue.add_reward(
            merchant_id=merchant_id,
            title=title,
            description={},
            category=category,
            price_points=price_points,
            face_value_fen=face_value_fen,
            stock=STOCK,
            voucher_valid_days=30,
            funder="city",
        )
