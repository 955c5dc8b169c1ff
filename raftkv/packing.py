"""msgpack from others: read without allocating for what is only announced.

An array's header says how many items follow, and the unpacker makes room for all of them before it
has seen one. Nested headers multiply that: 5,000 bytes of them cost 40 MB, and a peer frame of
32 MiB more than any machine has. So bytes are first walked through without making anything, which
fails unless every announced item is there. Of a batch that takes a quarter of the time it takes to
make the values.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

_BYTES_FREE: Final = 1024
"""Not walked: headers in so few bytes cannot ask for more than 2 MB. To walk them would take longer
than all else that is done with them."""


def unpack(data: bytes, start: int = 0, *, use_list: bool = True, maps: bool = True) -> Any:
    """The one msgpack value at `start` of `data`, with nothing behind it.

    Takes memory for a multiple of what is there: an empty list or map, one byte, takes 64. Where
    much may come from strangers, do without both. Raises ValueError for anything else.
    """
    body = memoryview(data)[start:] if start else data
    try:
        if len(body) > _BYTES_FREE:
            walker = msgpack.Unpacker(max_buffer_size=len(body))
            walker.feed(body)
            walker.skip()
        return msgpack.unpackb(
            body,
            use_list=use_list,
            raw=False,
            strict_map_key=True,
            object_hook=None if maps else _no_map,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ValueError(f"not msgpack: {error or type(error).__name__}") from None


def _no_map(_: object) -> Any:
    raise ValueError("a map where none belongs")
