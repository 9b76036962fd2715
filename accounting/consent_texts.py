"""The texts residents consent to, by kind and version. Apart from the app's own terms.

A version once in force stays readable for ever: somebody may have agreed to it. A new one is added
here with the day from which it is shown.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final

BANK, LOCATION, HEALTH, PARTNER = "bank", "location", "health", "partner"
KINDS: Final = (BANK, LOCATION, HEALTH, PARTNER)


@dataclass(frozen=True, slots=True)
class ConsentText:
    kind: str
    version: str
    valid_from: date
    zh: str
    en: str


_FIRST = date(2024, 1, 1)
TEXTS: Final = (
    ConsentText(
        BANK,
        "2026-01",
        _FIRST,
        "您同意将所选字段（如碳账户等级）提供给所选银行，仅用于所列用途，至所列日期为止。"
        "您可随时撤回，撤回后银行下一次查询即不可见。银行的每次查询都会向您展示。",
        "You agree that the chosen fields (such as your carbon grade) are given to the chosen "
        "bank, for the stated purpose only, until the stated date. You can withdraw at any "
        "time; the bank's next read then gets nothing. Every read is shown to you.",
    ),
    ConsentText(
        BANK,
        "2026-07",
        date(2026, 7, 1),
        "您同意将所选字段（如碳账户等级）提供给所选银行，仅用于所列用途，至所列日期为止。"
        "同意包含等级时，达到该行门槛的您会以仅对该行有效的编号列入其绿色名单。"
        "到期前七日会提醒您续期。您可随时撤回，撤回会通知银行，银行下一次查询即不可见。"
        "银行的每次查询都会向您展示。健康数据不用于等级。",
        "You agree that the chosen fields (such as your carbon grade) are given to the chosen "
        "bank, for the stated purpose only, until the stated date. If the grade is among them "
        "and reaches the bank's threshold, you are on its green list, under a reference that "
        "means nothing to others. You are reminded seven days before the end. You can withdraw "
        "at any time: the bank is told, and its next read gets nothing. Every read is shown to "
        "you. Health data is never part of a grade.",
    ),
    ConsentText(
        LOCATION,
        "2026-01",
        _FIRST,
        "您同意应用在记录骑行与步行时使用位置轨迹核验行程。轨迹不提供给银行，您可随时撤回。",
        "You agree that the app uses location traces to check rides and walks while it records "
        "them. Traces are never given to a bank. You can withdraw at any time.",
    ),
    ConsentText(
        HEALTH,
        "2026-01",
        _FIRST,
        "您同意从健康平台读取步数，用于记录步行减排。健康数据不用于等级，不提供给银行，您可随时撤回。",
        "You agree that step counts are read from the health platform to record walking. Health "
        "data is never part of a grade and never given to a bank. You can withdraw at any time.",
    ),
    ConsentText(
        PARTNER,
        "2026-01",
        _FIRST,
        "您同意所选数据方将其已为您保存的记录交来计入您的碳账户。您可随时撤回。",
        "You agree that the chosen partner's records held for you are credited to your carbon "
        "account. You can withdraw at any time.",
    ),
)


def shown_by(day: date, kind: str | None = None) -> list[ConsentText]:
    """Every text in force on a day or before it: those for banks first, the newest first."""
    found = [text for text in TEXTS if text.valid_from <= day and kind in (None, text.kind)]
    newest = sorted(found, key=lambda text: text.valid_from, reverse=True)
    return sorted(newest, key=lambda text: KINDS.index(text.kind))


def in_force(kind: str, day: date) -> ConsentText:
    return shown_by(day, kind)[0]
