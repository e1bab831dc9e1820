"""Goal: an etcd:// URL says exactly what it should, or is refused in words that help, and whatever
is wrong with it, no message and no repr shows a password.

Method: URLs by hand for what is right and wrong, hypothesis for what is encoded, and one secret in
every place where a secret may stand, with every mistake around it.
"""

from __future__ import annotations

import traceback
from dataclasses import FrozenInstanceError
from urllib.parse import quote

import pytest
from etcd_servers import Etcd
from hypothesis import given
from hypothesis import strategies as st

from ringhold.errors import InvalidInput
from ringhold.store.etcd.address import (
    NAME_BYTES_MAX,
    REQUEST_BYTES,
    TXN_OPERATIONS,
    EtcdAddress,
    parse_etcd_url,
)

SECRET = "sesame42"


def refused(url: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse_etcd_url(url)
    return str(caught.value)


def test_the_least_url_has_etcds_own_port_and_limits() -> None:
    assert parse_etcd_url("etcd://localhost/name") == EtcdAddress(
        endpoints=("localhost:2379",),
        name="name",
        max_txn_ops=TXN_OPERATIONS,
        max_request_bytes=REQUEST_BYTES,
    )


def test_everything_that_can_be_said() -> None:
    said = parse_etcd_url(
        "etcds://ada@a.example:1,10.0.0.2,[::1]:3/My.name-0_?ca=ca.pem&cert=c.pem&key=/k%20y.pem"
        "&password_file=pw&max_txn_ops=1000&max_request_bytes=8000000"
    )
    assert said == EtcdAddress(
        endpoints=("a.example:1", "10.0.0.2:2379", "[::1]:3"),
        name="My.name-0_",
        tls=True,
        ca="ca.pem",
        cert="c.pem",
        key="/k y.pem",
        user="ada",
        password_file="pw",
        max_txn_ops=1000,
        max_request_bytes=8_000_000,
    )


@pytest.mark.parametrize(
    ("hosts", "endpoints"),
    [
        ("h", ["h:2379"]),
        ("h:1", ["h:1"]),
        ("h:65535", ["h:65535"]),
        ("a:1,b:2,c:3", ["a:1", "b:2", "c:3"]),
        ("under_score.and-dash", ["under_score.and-dash:2379"]),
        ("192.0.2.1:5", ["192.0.2.1:5"]),
        ("[2001:db8::1]", ["[2001:db8::1]:2379"]),
        ("[::ffff:192.0.2.1]:9,[::1]", ["[::ffff:192.0.2.1]:9", "[::1]:2379"]),
    ],
)
def test_hosts(hosts: str, endpoints: list[str]) -> None:
    assert parse_etcd_url(f"etcd://{hosts}/n").endpoints == tuple(endpoints)


@pytest.mark.parametrize(
    "hosts",
    [
        *("", ",", "a,", ",a", "a,,b", "a b", "a;b", "a/b:c"),
        *("h:", "h:x", "h:0", "h:65536", "h:-1", "h:+1", "h:1.5", "h: 1", "h:1:2", "h:٣"),
        "h:" + "9" * 10_000,
        *("::1", "[::1", "::1]", "[]", "[]:1", "[h]:1", "[::1]x", "[::1]:", "h%20i", "hö"),
    ],
)
def test_what_is_no_host_is_refused(hosts: str) -> None:
    refused(f"etcd://{hosts}/n")


@pytest.mark.parametrize("name", ["n", "0", "-", "_", "a.b", "A-Z_9", "n" * NAME_BYTES_MAX])
def test_names(name: str) -> None:
    assert parse_etcd_url(f"etcd://h/{name}").name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "n/", "/n", "a/b", ".", ".n", "..", "a b", "a%20b", "a+b", "ä", "a:b", "a;b"),
        *("n\n", "n\t", "\nn", "a\rb", " n", "n ", "n#", "n#part", "#n", "[n", "n]", "n\0"),
        "n" * (NAME_BYTES_MAX + 1),
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    assert "name" in refused(f"etcd://h/{name}")


@pytest.mark.parametrize(
    "url", ["etcd://h", "etcd://h:1,b:2", "etcd://h?max_txn_ops=200", "etcd://"]
)
def test_a_url_without_a_name_is_refused(url: str) -> None:
    assert "name" in refused(url)


def test_other_schemes_are_refused() -> None:
    for scheme in ("http", "https", "etcd2", "ETCDX", ""):
        assert "etcd" in refused(f"{scheme}://h/n")
    refused("h/n")
    refused("")


# Options


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("nonsense=1", "nonsense"),
        ("Ca=x", "Ca"),
        ("max_txn_ops=200&max_txn_ops=200", "max_txn_ops"),
        ("user=a&password_file=b&user=a", "user"),
        ("ca=", "ca"),
        ("ca", "name=value"),
        ("&", "name=value"),
        ("max_txn_ops=200&", "name=value"),
        ("=1", "option"),
        ("max_txn_ops=127", "128"),
        ("max_txn_ops=-200", "number from"),
        ("max_txn_ops=2e3", "number from"),
        ("max_txn_ops=%D9%A3%D9%A3%D9%A3", "number from"),
        ("max_txn_ops=2147483648", "number from"),
        ("max_txn_ops=" + "9" * 10_000, "number from"),
        ("max_request_bytes=1572863", "1572864"),
        ("max_request_bytes=+2000000", "number from"),
    ],
)
def test_what_is_no_option_is_refused(query: str, word: str) -> None:
    assert word in refused(f"etcd://h/n?{query}")


def test_an_empty_query_is_none() -> None:
    assert parse_etcd_url("etcd://h/n?") == parse_etcd_url("etcd://h/n")


def test_limits_may_be_raised_alone() -> None:
    said = parse_etcd_url("etcd://h/n?max_txn_ops=128&max_request_bytes=2147483647")
    assert (said.max_txn_ops, said.max_request_bytes) == (128, 2_147_483_647)


def test_files_of_tls_are_for_tls() -> None:
    for query in ("ca=f", "cert=f&key=f"):
        assert parse_etcd_url(f"etcds://h/n?{query}").tls
        assert "etcds" in refused(f"etcd://h/n?{query}")
    for query in ("cert=f", "key=f", "ca=f&key=f"):
        assert "key" in refused(f"etcds://h/n?{query}")


# Users


@pytest.mark.parametrize(
    ("url", "user", "password", "file"),
    [
        ("etcd://u:p@h/n", "u", "p", None),
        ("etcd://u:@h/n", "u", "", None),
        ("etcd://u:p:q@h/n", "u", "p:q", None),
        ("etcd://u:p@q@h/n", "u", "p@q", None),
        ("etcd://a%3Ab:p%2F%3F%23%25@h/n", "a:b", "p/?#%", None),
        ("etcd://u@h/n?password_file=f", "u", None, "f"),
        ("etcd://h/n?user=u&password_file=f", "u", None, "f"),
        ("etcd://h/n?user=a%40b&password_file=f%26g", "a@b", None, "f&g"),
        ("etcd://h/n", None, None, None),
    ],
)
def test_users(url: str, user: str | None, password: str | None, file: str | None) -> None:
    said = parse_etcd_url(url)
    assert (said.user, said.password, said.password_file) == (user, password, file)
    assert said.endpoints == ("h:2379",)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("etcd://u@h/n", "password"),
        ("etcd://:p@h/n", "user"),
        ("etcd://h/n?user=u", "password"),
        ("etcd://h/n?password_file=f", "user"),
        ("etcd://u:p@h/n?password_file=f", "twice"),
        ("etcd://u:p@h/n?user=u", "twice"),
        ("etcd://u@h/n?user=v&password_file=f", "twice"),
        ("etcd://u:%FF@h/n", "UTF-8"),
        ("etcd://%FF:p@h/n", "UTF-8"),
    ],
)
def test_half_a_user_or_two_are_refused(url: str, word: str) -> None:
    assert word in refused(url)


@given(st.text(min_size=1), st.text())
def test_any_user_and_password_can_be_encoded(user: str, password: str) -> None:
    said = parse_etcd_url(f"etcd://{quote(user, safe='')}:{quote(password, safe='')}@h/n")
    assert (said.user, said.password) == (user, password)


@given(st.text(min_size=1), st.text(), st.text(min_size=1))
def test_the_urls_of_the_test_servers_are_read(user: str, password: str, file: str) -> None:
    server = Etcd([], version=(3, 5), certificates=None, url_options={"max_txn_ops": "500"})
    url = server.url("n", endpoints=["h:1", "i:2"], user=user, password=password)
    said = parse_etcd_url(url)
    assert (said.endpoints, said.user, said.password) == (("h:1", "i:2"), user, password)
    assert said.max_txn_ops == 500
    other = parse_etcd_url(server.url("n", endpoints=["h:1"], user=user, password_file=file))
    assert (other.user, other.password, other.password_file) == (user, None, file)


# Passwords


@pytest.mark.parametrize(
    "url",
    [
        # Right, and wrong in each other part.
        "etcd://u:{}@h/n",
        "etcd://u:{}@h:x/n",
        "etcd://u:{}@/n",
        "etcd://u:{}@h,,i/n",
        "etcd://u:{}@h",
        "etcd://u:{}@h?max_txn_ops=200",
        "etcd://u:{}@h/",
        "etcd://u:{}@h/a/b",
        "etcd://u:{}@h/n?x=1",
        "etcd://u:{}@h/n?user=u",
        "etcd://u:{}@h/n?password_file=f",
        "etcd://u:{}@h/n?ca=f",
        "etcd://u:{}@h/n?max_txn_ops=1",
        "etcd://:{}@h/n",
        "http://u:{}@h/n",
        "u:{}@h/n",
        # Passwords that should have been encoded.
        "etcd://u:{}/x@h/n",
        "etcd://u:x/{}@h/n",
        "etcd://u:{}?x@h/n",
        "etcd://u:x?{}@h/n",
        "etcd://u:x#{}@h/n",
        "etcd://u:x/{}",
        "etcd://u:x/y?{}@h/n",
        "etcd://u:x/y?a={}@h/n",
        "etcd://u:{}%FF@h/n",
        # A host was forgotten, or the @.
        "etcd://u:{}/n",
        "etcd://{}@/n",
        "etcd://u:{} h/n",
        # An option that there is not.
        "etcd://u@h/n?password={}",
        "etcd://h/n?user=u&{}",
        "etcd://h/n?user=u&password={}&max_txn_ops=1",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    said = said_or_refused(url.format(SECRET))
    if isinstance(said, EtcdAddress):
        assert SECRET in (said.password or "")
        shown = [repr(said), str(said), said.url, said.full_url(password=False)]
    else:
        shown = [*traceback.format_exception(said), repr(said.__cause__)]
    assert not any(SECRET in text for text in shown)


def said_or_refused(url: str) -> EtcdAddress | InvalidInput:
    try:
        return parse_etcd_url(url)
    except InvalidInput as error:
        return error


@pytest.mark.parametrize(
    "url",
    [
        "etcd://h:1/n",
        "etcds://a:1,[::1]:2/n?max_txn_ops=200&max_request_bytes=2000000",
        "etcds://u:@h:1/n?ca=%2Fa+b%26&cert=/c%23&key=/k%3F",
        "etcd://a%40b:p%3A%2F%3F%23@h:1/n",
        "etcd://u@h:1/n?password_file=%2Fa%20b",
    ],
)
def test_a_url_written_again_says_the_same(url: str) -> None:
    said = parse_etcd_url(url)
    assert parse_etcd_url(said.full_url(password=True)) == said
    bare = parse_etcd_url(said.url)
    assert (bare.endpoints, bare.name, bare.tls) == (said.endpoints, said.name, said.tls)
    assert not {"?", "@"} & set(said.url)


def test_an_address_stays_what_it_is() -> None:
    said = parse_etcd_url("etcd://h/n")
    with pytest.raises(FrozenInstanceError):
        said.name = "m"  # type: ignore[misc]
    assert hash(said) == hash(parse_etcd_url("etcd://h:2379/n"))
