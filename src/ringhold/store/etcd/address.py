"""Where an etcd cluster is and how it is entered: the parts of an etcd:// URL.

    etcd://[user:password@]host[:port][,host[:port]…]/name[?options]
    etcds://…                     the same over TLS

`name` is the Ringhold cluster within etcd: one to NAME_BYTES_MAX of A–Z a–z 0–9 . _ -, not
beginning with a dot. Options:

    ca=FILE               certificates of the authorities to trust, instead of the system's (PEM)
    cert=FILE&key=FILE    this client's certificate and private key (PEM)
    user=NAME             instead of what stands before the hosts
    password_file=FILE    the password is its first line, so that it stands in no URL
    max_txn_ops=N         what etcd was started with as --max-txn-ops, if not 128
    max_request_bytes=N   as --max-request-bytes, if not 1572864
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode

from ringhold.errors import InvalidInput

SCHEMES = ("etcd", "etcds")
PORT = 2379
NAME_BYTES_MAX = 200
TXN_OPERATIONS = 128
REQUEST_BYTES = 1_572_864
NUMBER_MAX = (1 << 31) - 1

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_NUMBER = re.compile(r"[0-9]{1,10}")
_FILES = ("ca", "cert", "key", "password_file")
_OPTIONS = (*_FILES, "user", "max_txn_ops", "max_request_bytes")


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """What an etcd:// URL says; paths are as given.

    endpoints: "host:port" each
    """

    endpoints: tuple[str, ...]
    name: str
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    max_txn_ops: int = TXN_OPERATIONS
    max_request_bytes: int = REQUEST_BYTES

    @property
    def url(self) -> str:
        """Without user, password and options, for messages."""
        return f"{'etcds' if self.tls else 'etcd'}://{','.join(self.endpoints)}/{self.name}"

    def full_url(self, *, password: bool) -> str:
        """With user and options, and the password if there is one and `password` says so: what
        `parse_etcd_url` makes the same of, in any working directory."""
        options: dict[str, str | int] = {
            key: os.path.abspath(getattr(self, key))
            for key in _FILES
            if getattr(self, key) is not None
        }
        user = self.user
        if user is not None and self.password_file is not None:
            options["user"], user = user, None
        if self.max_txn_ops != TXN_OPERATIONS:
            options["max_txn_ops"] = self.max_txn_ops
        if self.max_request_bytes != REQUEST_BYTES:
            options["max_request_bytes"] = self.max_request_bytes
        entry = "" if user is None else quote(user, safe="")
        if password and self.password is not None:
            entry += ":" + quote(self.password, safe="")
        bare = self.url if not entry else self.url.replace("://", f"://{entry}@", 1)
        return f"{bare}?{urlencode(options, safe='/')}" if options else bare


def parse_etcd_url(url: str) -> EtcdAddress:
    """InvalidInput, which never quotes a password."""
    scheme, separator, rest = url.partition("://")
    if scheme not in SCHEMES or not separator:
        raise InvalidInput("the URL of a cluster in etcd begins with etcd:// or etcds://")
    before, slash, path = rest.partition("/")
    if not slash or "?" in before:
        raise InvalidInput(f"a cluster in etcd needs a name: {scheme}://host:{PORT}/name")
    entry, at, hosts = before.rpartition("@")
    user, colon, password = entry.partition(":")
    name, _, query = path.partition("?")
    if "@" in name:
        # Most likely what stands before it is of a password, which no log may get.
        raise InvalidInput(
            "user and password are percent-encoded in a URL, as in %2F for / and %40 for @"
        )
    endpoints = tuple(_endpoint(host) for host in hosts.split(","))
    if "#" in path or not _NAME.fullmatch(name) or len(name) > NAME_BYTES_MAX:
        raise InvalidInput(
            f"the name of a cluster in etcd has 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - and "
            f"begins with no dot, as in {scheme}://host:{PORT}/name; not {name!r}"
        )
    options = _options(query)
    tls = scheme == "etcds"
    files = {key: options.get(key) for key in _FILES}
    _check_files(files, tls)
    if at and "user" in options:
        raise InvalidInput("a user is given twice, before the hosts and as an option")
    user = _unquoted(user) if at else options.get("user", "")
    if colon and files["password_file"] is not None:
        raise InvalidInput("a password is given twice, in the URL and by a file")
    if bool(user) != (bool(colon) or files["password_file"] is not None):
        raise InvalidInput("a user needs a password, and a password a user")
    return EtcdAddress(
        endpoints=endpoints,
        name=name,
        tls=tls,
        user=user or None,
        password=_unquoted(password) if colon else None,
        max_txn_ops=_number(options, "max_txn_ops", TXN_OPERATIONS),
        max_request_bytes=_number(options, "max_request_bytes", REQUEST_BYTES),
        **files,
    )


def _options(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict"
        )
    except ValueError:
        raise InvalidInput("the options of an etcd URL are name=value, joined by &") from None
    for key, value in pairs:
        if key not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise InvalidInput(f"unknown option {key!r} of an etcd URL; known are {known}")
        if key in found or not value:
            raise InvalidInput(f"option {key!r} of an etcd URL is given twice or empty")
        found[key] = value
    return found


def _check_files(files: dict[str, str | None], tls: bool) -> None:
    if not tls and any(files[key] is not None for key in ("ca", "cert", "key")):
        raise InvalidInput("ca, cert and key are for etcds://, which is etcd over TLS")
    if (files["cert"] is None) != (files["key"] is None):
        raise InvalidInput("a client's certificate needs its key: cert=FILE&key=FILE")


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInput("user and password of an etcd URL are percent-encoded UTF-8") from None


def _endpoint(text: str) -> str:
    found = _HOST.fullmatch(text)
    port = PORT if found is None or found["port"] is None else int(found["port"])
    if found is None or not 0 < port < 65536:
        # Where the @ is missing, a password follows the colon.
        raise InvalidInput(
            "a host of an etcd URL is a name or an address, [in brackets] for IPv6, and may have a "
            f"port, as in host:{PORT}; not what begins with {text.partition(':')[0]!r}"
        )
    return f"{found['host']}:{port}"


def _number(options: dict[str, str], key: str, default: int) -> int:
    text = options.get(key, str(default))
    if not _NUMBER.fullmatch(text) or not default <= int(text) <= NUMBER_MAX:
        raise InvalidInput(f"option {key} is a number from {default} to {NUMBER_MAX}")
    return int(text)
