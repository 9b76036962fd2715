"""Documentation that a test can hold to the code."""

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from api import cli
from api.config import Config, ConfigError
from footprint import methodology
from footprint.reasons import REASONS

ROOT = Path(__file__).parent.parent
METHODOLOGY = (ROOT / "docs" / "methodology.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_reason_is_in_the_methodology_document() -> None:
    table = METHODOLOGY.partition("## Reasons")[2].partition("## Sources")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", table, re.MULTILINE)
    assert {code: {"en": en, "zh": zh} for code, en, zh in rows} == REASONS


def test_every_behaviour_is_in_the_methodology_document() -> None:
    listed = set(
        re.findall(
            r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| [\d,/]+|^\| `(\w+)` .* off ", METHODOLOGY, re.M
        )
    )
    assert {first or second for first, second in listed} == set(methodology.shipped()[0].behaviours)


@pytest.mark.parametrize(
    "words",
    [
        *("up", "demo", "book verify", "grade explain", "factors check", "simulate", "city"),
        *("torture", "backup", "restore", "restart", "status", "indexes", "watch", "import"),
        *("jobs list", "jobs show", "jobs follow", "jobs cancel", "jobs resume"),
    ],
)
def test_every_command_takes_a_data_directory(words: str) -> None:
    command: click.Command = cli.tanhui
    for word in words.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
    assert "--data-dir" in {name for one in command.params for name in one.opts}


def test_the_factors_are_checked_where_no_data_is(tmp_path: Path) -> None:
    arguments = ["factors", "check", "--data-dir", str(tmp_path / "none")]
    assert CliRunner().invoke(cli.tanhui, arguments).exit_code == 0


def test_a_made_up_city_lies_in_the_data_directory_unless_told_otherwise(tmp_path: Path) -> None:
    options = ["city", "--residents", "1", "--bill-months", "0", "--plants", "0"]
    run = CliRunner().invoke(cli.tanhui, [*options, "--data-dir", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "city" / "manifest.json").is_file()


def test_the_readme_begins_with_the_two_commands() -> None:
    demo, tests = re.findall(r"^```sh\n(.+)\n```$", README, re.MULTILINE)[:2]
    assert demo.endswith(".venv/bin/tanhui demo")
    assert tests.endswith(".venv/bin/pytest")
    assert "\n" not in demo + tests


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_with_hashes_and_names_no_host(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = re.findall(r"^[A-Za-z0-9._-]+(?:\[[\w,]+\])?==", text, re.MULTILINE)
    unpinned = [
        line for line in text.splitlines() if line and line[0] not in " #" and "==" not in line
    ]
    assert len(pins) > 50
    assert unpinned == []
    assert "://" not in text
    assert text.count("--hash=sha256:") >= len(pins)


def test_no_committed_file_names_a_lock_or_a_download_address() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "uv.lock" not in listed


CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
FACTS = ("Type", "Default", "Example", "Who needs it", "When it is wrong", "To change it")


def _settings_read() -> set[str]:
    """Every name that reading a configuration asks its environment for."""
    asked: set[str] = set()

    class Asked(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return super().get(name, default)

    with pytest.raises(ConfigError):
        Config.from_env(Asked())
    return asked


def test_every_setting_is_in_the_configuration_document_and_no_other() -> None:
    parts = re.split(r"^## `(\w+)`$", CONFIGURATION, flags=re.M)[1:]
    settings = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(settings) == _settings_read()
    for name, text in settings.items():
        assert re.findall(r"^- \*\*(.+?)\*\*: \S", text, re.M) == list(FACTS), name


def test_every_example_in_the_configuration_document_is_accepted(tmp_path: Path) -> None:
    parts = re.split(r"^## `(\w+)`$", CONFIGURATION, flags=re.M)[1:]
    examples = {
        name: found[1]
        for name, text in zip(parts[::2], parts[1::2], strict=True)
        if (found := re.search(r"^- \*\*Example\*\*: `([^`]+)`$", text, re.M))
    }
    # A demo is on loopback, files and folders are where the example says: those are not here.
    for name in ("TANHUI_DEMO", "GOOGLE_APPLICATION_CREDENTIALS"):
        del examples[name]
    for name in ("TANHUI_PUSH_FOLDER", "TANHUI_DROP_FOLDER", "TANHUI_DATA_DIR"):
        examples[name] = str(tmp_path / name)
    examples["TANHUI_SECRET"] = base64.b64encode(bytes(32)).decode()
    config = Config.from_env(examples)
    assert config.proxies == 1
    assert examples.items() <= config.environment().items()
