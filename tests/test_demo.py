"""The demo: its input is what the generator makes, and playing it works, twice, with one effect."""

import json
from pathlib import Path
from typing import Any

import pytest
from stacks import PATIENCE_S, Stack

from api.demo import generate, inputs, play, story

SEED, RESIDENTS = 2026, 40


@pytest.fixture
def data_dir(demo_stack: Stack) -> Path:
    return demo_stack.data_dir


@pytest.fixture
def base_url(demo_stack: Stack) -> str:
    return demo_stack.base_url


def test_the_committed_day_is_what_the_generator_makes() -> None:
    for name, text in generate.generate(SEED, RESIDENTS).items():
        assert (story.DAY / name).read_text("utf-8") == text, f"{name}: run api.demo.generate"


def test_the_same_seed_gives_the_same_day_and_another_seed_another() -> None:
    assert generate.generate(7, 16) == generate.generate(7, 16)
    assert generate.generate(7, 16) != generate.generate(8, 16)


def test_the_day_is_small_and_has_every_kind_of_row() -> None:
    assert sum(file.stat().st_size for file in story.DAY.iterdir()) < 1_000_000
    outcomes = {case.status for case in story.cases()} | {case.code for case in story.cases()}
    assert outcomes >= {"credited", "capped", "rejected", "recorded", "merged", "parked"}
    assert outcomes >= {200, 201, 409, 422}


def test_what_must_be_refused_is_told_from_the_input_alone() -> None:
    good = {"behaviour": "bus_km", "quantity": 1, "source_event_id": "a"}
    rows: list[Any] = [
        good,
        dict(good),
        None,
        {**good, "quantity": 2},
        {**good, "behaviour": "scooter_km", "source_event_id": "b"},
        {**good, "quantity": -1, "source_event_id": "c"},
        {**good, "quantity": None, "source_event_id": "d"},
    ]
    assert inputs.refused(rows, {"bus_km"}) == {
        "malformed_row": 1,
        "source_event_conflict": 1,
        "validation_failed": 3,
    }


@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_day_is_played(base_url: str, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = play.main(data_dir=data_dir, input_dir=None, base_url=base_url)
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    assert "pending then credited" in said.out
    assert "The book holds" in said.out
    assert len(_record(data_dir)["totals"]) == 4


@pytest.mark.timeout(3 * PATIENCE_S)
def test_played_again_it_changes_nothing(
    base_url: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _record(data_dir)
    assert "totals" in before, "the first run did not finish"
    code = play.main(data_dir=data_dir, input_dir=None, base_url=base_url)
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    assert " 0 new" in said.out
    assert "as in the first run" in said.out
    assert _record(data_dir) == {**before, "runs": 2}


def test_another_result_than_the_input_says_ends_it_with_one_line(
    base_url: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play.main(data_dir=data_dir, input_dir=data_dir / "log", base_url=base_url) == 1
    said = capsys.readouterr()
    assert said.err.startswith("✗")
    assert "expected" in said.err
    assert len(said.err.strip().splitlines()) == 1


def _record(data_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data_dir / "demo-day.json").read_text("utf-8"))
    return found
