"""What travels with a membership change, read back."""

from typing import Any

import msgpack
import pytest

from raftkv.errors import PeerError
from raftkv.server.membership import change_context, read_context

MEMBER: list[Any] = [9, "nine", ["http://nine:1"], [], True]


@pytest.mark.parametrize("attributes", [MEMBER, [9], []])
def test_a_context_comes_back(attributes: list[Any]) -> None:
    assert read_context(change_context(1, 2, 3, attributes)) == (1, 2, 3, attributes)


def test_consensus_own_changes_have_none() -> None:
    assert read_context(b"") == (0, 0, 0, [])


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [1, 2, 3],
        [1, 2, "3", []],
        [1, 2, 3, [9, "nine"]],
        [1, 2, 3, ["9", *MEMBER[1:]]],
        [1, 2, 3, [9, "nine", [5], [], True]],
        [1, 2, 3, [9, "nine", "http://nine:1", [], True]],
    ],
)
def test_anything_else_is_the_peers_error(fields: Any) -> None:
    """It is read before it goes into the log, where it would end every member."""
    with pytest.raises(PeerError):
        read_context(msgpack.packb(fields))
    with pytest.raises(PeerError):
        read_context(msgpack.packb([1, 2, 3, MEMBER])[:-1])
