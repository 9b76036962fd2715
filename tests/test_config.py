"""Settings are read once and refused clearly; the data directory has one owner at a time."""

import base64
import json
import stat
from ipaddress import ip_network
from pathlib import Path

import pytest

from api import config as settings
from api.config import Config, ConfigError
from integrations.servers import ServerError

SECRET = base64.b64encode(bytes(range(32))).decode()
COMPLETE = {
    "MONGODB_URI": "mongodb://someone:hidden-word@db.example:27017/tanhui?replicaSet=tanhui",
    "REDIS_URL": "redis://:hidden-word@127.0.0.1:6379/0",
    "TANHUI_SECRET": SECRET,
    "TANHUI_PUBLIC_URL": "https://carbon.example.cn/",
}


def test_a_complete_environment_is_understood(tmp_path: Path) -> None:
    config = Config.from_env(
        COMPLETE
        | {
            "TANHUI_DATA_DIR": str(tmp_path),
            "TANHUI_FCM_URL": "http://127.0.0.1:9199",
            "TANHUI_LOG_LEVEL": "warning",
            "TANHUI_INTERNAL_NETWORKS": "10.0.0.0/8, fd00::/8",
            "TANHUI_BANK_READS_PER_MINUTE": "30000",
        }
    )
    assert config.secret == bytes(range(32))
    assert config.public_url == "https://carbon.example.cn"
    assert config.data_dir == tmp_path
    assert config.demo is False
    assert config.log_level == "WARNING"
    assert config.internal_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert config.bank_reads_per_minute == 30_000


def test_a_child_reads_back_the_same_configuration(tmp_path: Path) -> None:
    key = tmp_path / "firebase.json"
    key.touch()
    config = Config.from_env(
        COMPLETE
        | {
            "TANHUI_PUBLIC_URL": "http://127.0.0.1:8000",
            "TANHUI_DEMO": "1",
            "TANHUI_FCM_URL": "http://localhost:9199",
            "TANHUI_SMS_URL": "https://sms.example/send",
            "TANHUI_PUSH_DRY_RUN": "1",
            "TANHUI_PUSH_FOLDER": str(tmp_path / "pushes"),
            "TANHUI_DROP_FOLDER": str(tmp_path / "drop"),
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "TANHUI_INTERNAL_NETWORKS": "10.0.0.0/8",
            "TANHUI_BANK_READS_PER_MINUTE": "500",
            "TANHUI_PROXIES": "2",
        }
    )
    assert Config.from_env(config.environment()) == config


def test_secrets_stay_out_of_the_repr() -> None:
    shown = repr(Config.from_env(COMPLETE))
    assert "hidden-word" not in shown
    assert SECRET not in shown
    assert "secret" not in shown


def test_everything_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        Config.from_env({})
    for name in ("MONGODB_URI", "REDIS_URL", "TANHUI_SECRET", "TANHUI_PUBLIC_URL"):
        assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("MONGODB_URI", "localhost:27017", "mongodb://"),
        ("REDIS_URL", "http://127.0.0.1:6379", "redis://"),
        ("TANHUI_SECRET", "secret", "32 random bytes in base64"),
        ("TANHUI_SECRET", base64.b64encode(bytes(31)).decode(), "32 random bytes in base64"),
        ("TANHUI_SECRET", "not base64 at all!", "32 random bytes in base64"),
        ("TANHUI_PUBLIC_URL", "carbon.example.cn", "http://"),
        ("TANHUI_PUBLIC_URL", "https://", "https://"),
        ("TANHUI_PUBLIC_URL", "https://host:99999", "https://"),
        ("TANHUI_PUBLIC_URL", "https://carbon.example.cn/api", "host and port only"),
        ("TANHUI_DEMO", "yes", "1 or 0"),
        ("TANHUI_DEMO", "1", "on loopback"),
        ("TANHUI_FCM_URL", "http://fcm.example", "on loopback"),
        ("TANHUI_FCM_URL", "http://127.0.0.1.example", "on loopback"),
        ("TANHUI_SMS_URL", "ftp://sms.example", "http://"),
        ("TANHUI_LOG_LEVEL", "loud", "DEBUG, INFO"),
        ("TANHUI_INTERNAL_NETWORKS", "10.0.0.0/8,inside", "10.0.0.0/8"),
        ("TANHUI_BANK_READS_PER_MINUTE", "499", "at least 500"),
        ("TANHUI_BANK_READS_PER_MINUTE", "1e6", "at least 500"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json", "/nowhere/key.json"),
    ],
)
def test_a_wrong_setting_is_named_and_explained(name: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Config.from_env(COMPLETE | {name: value})
    assert name in str(refusal.value)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("name", ["MONGODB_URI", "REDIS_URL", "TANHUI_SECRET"])
def test_a_refusal_never_repeats_a_secret_value(name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Config.from_env(COMPLETE | {name: "hidden-word"})
    assert "hidden-word" not in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("localhost.example", False),
        ("", False),
        (None, False),
    ],
)
def test_loopback_is_this_machine_and_nothing_else(host: str | None, is_ours: bool) -> None:
    assert settings.is_loopback(host) is is_ours


def test_the_embedded_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = settings.embedded_secret(tmp_path, {})
    file = tmp_path / "secrets.json"
    assert len(first) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    assert settings.embedded_secret(tmp_path, {}) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_old_data_never_gets_a_new_secret(tmp_path: Path) -> None:
    (tmp_path / "mongodb").mkdir()
    with pytest.raises(ConfigError, match=r"secrets\.json is gone"):
        settings.embedded_secret(tmp_path, {})
    assert settings.embedded_secret(tmp_path, {"TANHUI_SECRET": SECRET}) == bytes(range(32))


def test_a_second_secret_is_refused(tmp_path: Path) -> None:
    settings.embedded_secret(tmp_path, {})
    with pytest.raises(ConfigError, match="not the secret in"):
        settings.embedded_secret(tmp_path, {"TANHUI_SECRET": SECRET})


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"secret": "short"}'])
def test_a_damaged_secrets_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets.json").write_text(content)
    with pytest.raises(ConfigError, match=r"secrets\.json cannot be read"):
        settings.embedded_secret(tmp_path, {})


def test_a_database_of_your_own_needs_its_secret() -> None:
    with pytest.raises(ConfigError, match="set TANHUI_SECRET"):
        settings.given_secret({"MONGODB_URI": COMPLETE["MONGODB_URI"]})


def test_the_data_directory_is_private(tmp_path: Path) -> None:
    made = settings.prepare(tmp_path / "new" / "var")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert (made / "log").is_dir()


def test_an_unwritable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # Below a regular file, because root may write anywhere.
    with pytest.raises(ServerError, match=r"cannot write to .* --data-dir") as refusal:
        settings.prepare(tmp_path / "file" / "var")
    assert "\n" not in str(refusal.value)


def test_a_directory_has_one_command_at_a_time(tmp_path: Path) -> None:
    assert not settings.claimed(tmp_path)
    with settings.claim(tmp_path, "`tanhui up`"):
        assert settings.claimed(tmp_path)
        with (
            pytest.raises(ServerError, match="in use by `tanhui up`"),
            settings.claim(tmp_path, "x"),
        ):
            pytest.fail("it is taken")
    assert not settings.claimed(tmp_path)
    with settings.claim(tmp_path, "`tanhui up`"):
        assert settings.claimed(tmp_path)


def test_private_files_are_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    settings.write_private(file, {"a": 1})
    settings.write_private(file, {"b": 2})
    assert json.loads(file.read_text()) == {"b": 2}
    assert [each.name for each in tmp_path.iterdir()] == ["facts.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
