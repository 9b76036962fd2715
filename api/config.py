"""What a process is given: its settings, read once and checked, and its data directory.

`Config.from_env` is the only reader of settings; nothing below `api/` looks at the environment. No
secret has a default. `tanhui up` makes one for its embedded servers and keeps it in `secrets.json`.
"""

import base64
import binascii
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from integrations.servers import ServerError, unwritable

SECRET_BYTES = 32
WHOLE_MAX = 10**9
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
DEFAULT_DATA_DIR = "./var"
BANK_READS_PER_MINUTE = 6_000
# References in one batch; with fewer reads a minute it could never be answered.
BANK_BATCH_MAX = 500
EARLIER_STACK_SECONDS = 60
POLL_SECONDS = 0.05

Network = IPv4Network | IPv6Network


class ConfigError(Exception):
    """Settings are missing or wrong. The message is one line that names each variable."""


@dataclass(frozen=True)
class Config:
    """Everything a process of the stack needs to know. Secrets stay out of its repr."""

    mongodb_uri: str = field(repr=False)
    redis_url: str = field(repr=False)
    secret: bytes = field(repr=False)
    """The master secret, 32 bytes: every key is derived from it."""
    public_url: str
    """The base of `@target-uri` in signed requests, without a slash at the end."""
    data_dir: Path
    demo: bool = False
    fcm_url: str | None = None
    google_credentials: str | None = None
    push_dry_run: bool = False
    """Whether Firebase only checks what it is sent."""
    push_folder: Path | None = None
    """Where pushes are written as files, for a gateway of the city's own."""
    drop_folder: Path | None = None
    """Where partners lay down files by SFTP; watched by the part `watcher`."""
    sms_url: str | None = field(default=None, repr=False)
    log_level: str = "INFO"
    internal_networks: tuple[Network, ...] = ()
    """Who may read `/metrics`, besides loopback."""
    bank_reads_per_minute: int = BANK_READS_PER_MINUTE
    """How many grades each bank may read a minute, one by one or in batches."""
    proxies: int = 0
    """How many proxies of ours a request comes through, each adding to `X-Forwarded-For`."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Config":
        """Read and check every setting; raises `ConfigError` that lists all that is wrong."""
        read = _Reader(env)
        config = cls(
            mongodb_uri=read.url("MONGODB_URI", ("mongodb", "mongodb+srv"), required=True),
            redis_url=read.url("REDIS_URL", ("redis", "rediss", "unix"), required=True),
            secret=read.secret("TANHUI_SECRET"),
            public_url=read.url("TANHUI_PUBLIC_URL", ("http", "https"), required=True).rstrip("/"),
            data_dir=Path(read.text("TANHUI_DATA_DIR") or DEFAULT_DATA_DIR).absolute(),
            demo=read.switch("TANHUI_DEMO"),
            fcm_url=read.url("TANHUI_FCM_URL", ("http", "https")).rstrip("/") or None,
            google_credentials=read.file("GOOGLE_APPLICATION_CREDENTIALS"),
            push_dry_run=read.switch("TANHUI_PUSH_DRY_RUN"),
            push_folder=read.folder("TANHUI_PUSH_FOLDER"),
            drop_folder=read.folder("TANHUI_DROP_FOLDER"),
            sms_url=read.url("TANHUI_SMS_URL", ("http", "https")) or None,
            log_level=read.choice("TANHUI_LOG_LEVEL", LOG_LEVELS, "INFO"),
            internal_networks=read.networks("TANHUI_INTERNAL_NETWORKS"),
            bank_reads_per_minute=read.whole(
                "TANHUI_BANK_READS_PER_MINUTE", BANK_BATCH_MAX, BANK_READS_PER_MINUTE
            ),
            proxies=read.whole("TANHUI_PROXIES", 0, 0),
        )
        if config.fcm_url and not is_loopback(urlsplit(config.fcm_url).hostname):
            read.wrong("TANHUI_FCM_URL must be on loopback, such as http://127.0.0.1:9199")
        public = urlsplit(config.public_url)
        if public.query or public.fragment or public.path:
            read.wrong("TANHUI_PUBLIC_URL is scheme, host and port only")
        if config.demo and not is_loopback(public.hostname):
            read.wrong("TANHUI_DEMO=1 needs a TANHUI_PUBLIC_URL on loopback")
        if read.problems:
            raise ConfigError("; ".join(read.problems))
        return config

    def environment(self) -> dict[str, str]:
        """The variables that make `from_env` give this configuration in a child process."""
        optional = {
            "TANHUI_DEMO": "1" if self.demo else None,
            "TANHUI_FCM_URL": self.fcm_url,
            "GOOGLE_APPLICATION_CREDENTIALS": self.google_credentials,
            "TANHUI_PUSH_DRY_RUN": "1" if self.push_dry_run else None,
            "TANHUI_PUSH_FOLDER": str(self.push_folder) if self.push_folder else None,
            "TANHUI_DROP_FOLDER": str(self.drop_folder) if self.drop_folder else None,
            "TANHUI_SMS_URL": self.sms_url,
            "TANHUI_INTERNAL_NETWORKS": ",".join(map(str, self.internal_networks)) or None,
            "TANHUI_PROXIES": str(self.proxies) if self.proxies else None,
        }
        return {
            "MONGODB_URI": self.mongodb_uri,
            "REDIS_URL": self.redis_url,
            "TANHUI_SECRET": base64.b64encode(self.secret).decode(),
            "TANHUI_PUBLIC_URL": self.public_url,
            "TANHUI_DATA_DIR": str(self.data_dir),
            "TANHUI_LOG_LEVEL": self.log_level,
            "TANHUI_BANK_READS_PER_MINUTE": str(self.bank_reads_per_minute),
        } | {name: value for name, value in optional.items() if value is not None}


class _Reader:
    """Reads variables one by one and collects what is wrong, so that one start shows it all."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.problems: list[str] = []

    def wrong(self, problem: str) -> None:
        self.problems.append(problem)

    def text(self, name: str) -> str:
        return self._env.get(name, "").strip()

    def url(self, name: str, schemes: tuple[str, ...], required: bool = False) -> str:
        # A value may hold a password, so no message repeats it.
        value = self.text(name)
        if not value:
            if required:
                self.wrong(f"set {name}")
            return ""
        try:
            parts = urlsplit(value)
            complete = parts.scheme in schemes and bool(parts.netloc or parts.path.strip("/"))
            if parts.scheme in ("http", "https"):
                complete = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            complete = False
        if not complete or not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            starts = " or ".join(f"{scheme}://" for scheme in schemes)
            self.wrong(f"{name} must be a complete URL that starts with {starts}")
            return ""
        return value

    def secret(self, name: str) -> bytes:
        value = self.text(name)
        if not value:
            self.wrong(f"set {name} to 32 random bytes in base64 (`openssl rand -base64 32`)")
            return b""
        try:
            found = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            found = b""
        if len(found) != SECRET_BYTES:
            self.wrong(f"{name} must be 32 random bytes in base64 (`openssl rand -base64 32`)")
        return found

    def switch(self, name: str) -> bool:
        value = self.text(name)
        if value not in ("", "0", "1"):
            self.wrong(f"{name} must be 1 or 0")
        return value == "1"

    def file(self, name: str) -> str | None:
        value = self.text(name)
        if not value:
            return None
        if not Path(value).is_file():
            self.wrong(f"{name} names a file that does not exist: {value}")
        return str(Path(value).absolute())

    def folder(self, name: str) -> Path | None:
        """A folder that can be written, made when it is not there."""
        value = self.text(name)
        if not value:
            return None
        path = Path(value).absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            self.wrong(f"{name} names no folder that can be made: {value} ({error.strerror})")
            return None
        if not os.access(path, os.W_OK | os.X_OK):
            self.wrong(f"{name} names a folder that cannot be written: {value}")
        return path

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self.text(name).upper() or default
        if value not in known:
            self.wrong(f"{name} must be one of {', '.join(known)}")
        return value

    def whole(self, name: str, least: int, default: int) -> int:
        value = self.text(name)
        if not value:
            return default
        if not (value.isascii() and value.isdigit() and least <= int(value) <= WHOLE_MAX):
            self.wrong(f"{name} must be a whole number of at least {least}")
            return default
        return int(value)

    def networks(self, name: str) -> tuple[Network, ...]:
        found: list[Network] = []
        for part in self.text(name).split(","):
            try:
                if part.strip():
                    found.append(ip_network(part.strip()))
            except ValueError:
                self.wrong(f"{name} must be networks such as 10.0.0.0/8, with commas between")
        return tuple(found)


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False


# --- the data directory ------------------------------------------------------------------------


def prepare(data_dir: Path) -> Path:
    """Create the data directory and its log folder, private to this user; the absolute path.

    Raises ServerError when that is not possible.
    """
    data_dir = data_dir.absolute()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "log").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ServerError(unwritable(data_dir, error)) from error
    return data_dir


@contextmanager
def claim(data_dir: Path, owner: str) -> Iterator[int]:
    """Hold a prepared data directory for one command; yields a descriptor every child must `keep`.

    Two locks, because they answer two questions. `command.lock` is ours alone: if it is taken,
    another command is at work. `children.lock` is inherited by all children and so is free only
    when the last of them is gone: after a `kill -9` the servers need a moment to close their files.
    """
    try:
        mine = os.open(data_dir / "command.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ServerError(unwritable(data_dir, error)) from error
    try:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(mine, 200, 0).decode("utf-8", "replace") or "another command"
            raise ServerError(
                f"{data_dir} is in use by {holder}: stop it first, or choose another --data-dir"
            ) from None
        os.ftruncate(mine, 0)
        os.pwrite(mine, f"{owner} (process {os.getpid()})".encode(), 0)
        children = os.open(data_dir / "children.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _wait_for_earlier_children(children, data_dir)
            yield children
        finally:
            os.close(children)
    finally:
        os.close(mine)


def claimed(data_dir: Path) -> bool:
    """Whether a command is at work on this data directory now."""
    try:
        lock = os.open(data_dir / "command.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ServerError(unwritable(data_dir, error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _wait_for_earlier_children(lock: int, data_dir: Path) -> None:
    deadline = time.monotonic() + EARLIER_STACK_SECONDS
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ServerError(
                    f"servers of an earlier run still hold {data_dir}: end them (they name this "
                    f"directory in `ps ax`), or choose another --data-dir"
                ) from None
        time.sleep(POLL_SECONDS)


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step and on disk, readable by this user alone (mode 0600)."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class StackFacts:
    """`stack.json`: what a running stack tells other commands. It means nothing without `claim`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._file = data_dir / "stack.json"

    def write(self, facts: Mapping[str, Any]) -> None:
        write_private(self._file, facts)

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)

    def read(self) -> dict[str, Any] | None:
        """The facts of the stack that runs now; None when there is none, or not yet."""
        if not claimed(self._data_dir):
            return None
        try:
            facts: dict[str, Any] = json.loads(self._file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        return facts


def embedded_secret(data_dir: Path, env: Mapping[str, str]) -> bytes:
    """The master secret of the embedded servers, made once and kept in `secrets.json` (0600).

    The caller holds `claim`. Raises `ConfigError` rather than make a second secret for old data:
    with another one no name or phone number could be read again.
    """
    file = data_dir / "secrets.json"
    given = env.get("TANHUI_SECRET", "").strip()
    try:
        kept = str(json.loads(file.read_text("utf-8"))["secret"])
        file.chmod(0o600)
        found = _decoded({"TANHUI_SECRET": kept})
    except FileNotFoundError:
        if given:
            return _decoded({"TANHUI_SECRET": given})
        if (data_dir / "mongodb").exists():
            raise ConfigError(
                f"{file} is gone but its data is not: put the file back from a backup, set "
                f"TANHUI_SECRET to its value, or choose another --data-dir"
            ) from None
        fresh = secrets.token_bytes(SECRET_BYTES)
        write_private(file, {"secret": base64.b64encode(fresh).decode()})
        return fresh
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise ConfigError(f"{file} cannot be read: put it back from a backup") from error
    if given and given != kept:
        raise ConfigError(f"TANHUI_SECRET is not the secret in {file}: unset it, or use its value")
    return found


def _decoded(env: Mapping[str, str]) -> bytes:
    read = _Reader(env)
    secret = read.secret("TANHUI_SECRET")
    if read.problems:
        raise ConfigError("; ".join(read.problems))
    return secret


def given_secret(env: Mapping[str, str]) -> bytes:
    """The secret that belongs to a database of the operator's own; raises `ConfigError`."""
    if not env.get("TANHUI_SECRET", "").strip():
        raise ConfigError(
            "set TANHUI_SECRET together with MONGODB_URI or REDIS_URL: 32 random bytes in base64 "
            "(`openssl rand -base64 32`), the same for every command on that database"
        )
    return _decoded(env)
