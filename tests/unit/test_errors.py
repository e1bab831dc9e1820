"""Goal: one tree of errors, each catchable as the builtin it stands for, each picklable.

Method: the tree is compared with what the interface promises; every class is sent through
pickle and copy with its attributes.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from ringhold import errors
from ringhold.errors import RingholdError

TREE = {
    "RingholdError": "Exception",
    "InvalidInput": "RingholdError ValueError",
    "NotEnoughNodes": "RingholdError",
    "EmptyRing": "RingholdError LookupError",
    "Corrupt": "RingholdError",
    "ChecksumMismatch": "Corrupt",
    "Unavailable": "RingholdError ConnectionError",
    "StoreUnavailable": "Unavailable",
    "NoQuorum": "Unavailable",
    "NodeDown": "Unavailable",
    "OutcomeUnknown": "RingholdError",
    "Conflict": "RingholdError",
    "Compacted": "RingholdError",
    "LockError": "RingholdError",
    "LockTimeout": "LockError TimeoutError",
    "LockLost": "LockError",
    "NotOwned": "LockError RuntimeError",
    "DeadlockError": "LockError",
    "SessionExpired": "LockError",
    "StaleToken": "LockError",
    "TransactionAborted": "RingholdError",
    "Wounded": "TransactionAborted",
    "TransactionTooLarge": "TransactionAborted",
    "Closed": "RingholdError",
}

WITH_ATTRIBUTES: list[tuple[type[RingholdError], dict[str, Any]]] = [
    (errors.NotEnoughNodes, {"wanted": 3, "usable": 2}),
    (errors.Corrupt, {"what": "chunk 7"}),
    (errors.NoQuorum, {"wanted": 2, "reached": 1}),
    (errors.NodeDown, {"node": "n1"}),
    (errors.Conflict, {"index": 4, "compare": ("a", 1)}),
    (errors.Compacted, {"revision": 9}),
    (errors.LockTimeout, {"name": "l"}),
    (errors.LockLost, {"name": "l", "token": 5}),
    (errors.SessionExpired, {"session": b"\1" * 12}),
    (errors.StaleToken, {"token": 3, "admitted": 5}),
    (errors.TransactionAborted, {"reason": "conflict", "retryable": True}),
    (errors.Closed, {"pid": 12}),
]


def all_errors() -> dict[str, type[RingholdError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RingholdError)
    }


def test_the_tree() -> None:
    found = {
        name: " ".join(base.__name__ for base in value.__bases__)
        for name, value in all_errors().items()
    }
    assert found == TREE


def test_the_docstring_tells_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    for name in TREE:
        assert name in errors.__doc__


@pytest.mark.parametrize("name", TREE)
def test_every_error_pickles(name: str) -> None:
    kind = all_errors()[name]
    error = kind("what went wrong", retryable=True)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "what went wrong"
        assert again.retryable is True


@pytest.mark.parametrize(("kind", "attributes"), WITH_ATTRIBUTES)
def test_attributes_carry_the_data(kind: type[RingholdError], attributes: dict[str, Any]) -> None:
    error = kind("message", **attributes)
    again = pickle.loads(pickle.dumps(error))
    for name, value in attributes.items():
        assert getattr(error, name) == value
        assert getattr(again, name) == value


def test_unknown_attributes_are_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        errors.Closed("message", colour="red")


def test_what_can_be_repeated_says_so() -> None:
    for kind in (errors.Unavailable, errors.Conflict, errors.LockTimeout, errors.Wounded):
        assert kind("x").retryable
    for other in (errors.InvalidInput, errors.Closed, errors.LockLost, errors.TransactionAborted):
        assert not other("x").retryable
