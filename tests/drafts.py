"""Drafts of the methodology that tests publish, and an operator's ways with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from accounting import clock, storage
from footprint import methodology, versions
from footprint.methodology import Methodology

SHIPPED = "QZ-RES-2026.1"
BUS_26_9 = 'QZ-RES-2026.1/bus_km", mg_num = 26900'
BUS_30_0 = 'QZ-RES-2026.2/bus_km", mg_num = 30000'


def draft(version: str = "QZ-RES-2026.2") -> str:
    """The shipped text under another name."""
    return changed(
        methodology.shipped_text(SHIPPED), f'\nversion = "{SHIPPED}"', f'\nversion = "{version}"'
    )


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, (text.count(old), old)
    return text.replace(old, new)


def cleaner_bus(version: str = "QZ-RES-2026.2", mg: int = 30_000) -> str:
    """The shipped text with another bus factor, milligrams a kilometre."""
    return changed(draft(version), BUS_26_9, BUS_30_0.replace("30000", str(mg)))


def rules(text: str) -> Methodology:
    return methodology.load(text, "draft")


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Publish as you like: afterwards this process knows the shipped versions only."""
    versions.register.refresh()
    try:
        yield
    finally:
        storage.database()["methodology_versions"].delete_many({})
        versions.register.refresh()


def published(text: str, *, by: str = "anna", approved_by: str = "bo") -> Any:
    """A version two operators agreed on, in force from the day after tomorrow."""
    day = clock.city_day(clock.now()) + timedelta(days=2)
    drafted = versions.register.publish(text, day, by, alone=False)
    return versions.register.approve(drafted.version, approved_by, alone=False)
