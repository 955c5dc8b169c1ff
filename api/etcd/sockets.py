"""Streams of etcd's gateway over a WebSocket: each message of the client is one request, each of
the member's one answer, both JSON. A browser may send its token as a subprotocol after ``Bearer``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from raftkv.api.etcd import answers
from raftkv.api.etcd.jsoncalls import JsonStream, decoded, error_json
from raftkv.api.http import websocket
from raftkv.api.http.refusals import BadHttp
from raftkv.errors import InvalidRequest
from raftkv.limits import ETCD_KEEP_ALIVES_WAITING_MAX, HTTP_BODY_BYTES_MAX

if TYPE_CHECKING:
    from raftkv.api.http.exchange import Exchange

VERSION: Final = b"13"
_HEAD: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
)


def wants_socket(x: Exchange) -> bool:
    """Whether the request asks to go on as a WebSocket."""
    upgrade = x.header(b"upgrade")
    return upgrade is not None and upgrade.lower() == b"websocket"


class SocketStream(JsonStream):
    """A streaming RPC over a WebSocket. See `rpc.Streaming`."""

    __slots__ = ("_closing", "_reader", "_request", "_token")

    def __init__(self, x: Exchange, response: Any, request: Any) -> None:
        """Answers the handshake. Raises BadHttp when it is not one (section 4.2.1)."""
        super().__init__(x, response, deque())
        self._request = request
        self._reader = websocket.FrameReader(HTTP_BODY_BYTES_MAX)
        self._closing = False
        self._token: str | None = None
        if x.header(b"sec-websocket-version") != VERSION:
            raise BadHttp("This WebSocket version is not spoken here: send version 13")
        try:
            accept = websocket.accept_key(x.header(b"sec-websocket-key") or b"")
        except ValueError:
            raise BadHttp("Sec-WebSocket-Key is not 16 bytes in base64") from None
        chosen = b""
        offered = (x.header(b"sec-websocket-protocol") or b"").split(b",")
        if len(offered) == 2 and offered[0].strip() == b"Bearer":
            self._token = offered[1].strip().decode("latin-1")
            chosen = b"Sec-WebSocket-Protocol: Bearer\r\n"
        x.take_over(_HEAD % (accept, chosen), self._received)

    def meta(self, name: str) -> str | None:
        """See `AnyCall`."""
        if name == "token" and self._token is not None:
            return self._token
        return super().meta(name)

    def _received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            for opcode, content in self._reader.feed(data):
                self._take(opcode, content)
        except websocket.WebSocketFault as fault:
            self._end(fault.code)
            self._let_go()
        except InvalidRequest as error:
            self.fail(*answers.row_of(error))
            self._let_go()

    def _take(self, opcode: int, content: bytes) -> None:
        if opcode == websocket.CLOSE:
            self._end(websocket.NORMAL)
            self._let_go()
        elif opcode == websocket.PING:
            self._x.push(websocket.frame(websocket.PONG, content))
        elif opcode != websocket.PONG:
            self._inbox += decoded(content, self._request)
            if self._reading:
                self._give()
            if len(self._inbox) > ETCD_KEEP_ALIVES_WAITING_MAX:
                raise websocket.WebSocketFault(websocket.TOO_BIG, "too many requests wait")

    def _give(self) -> None:
        while self._inbox and self._reading and not self._x.ended:
            message = self._inbox.popleft()
            if self.on_message is not None:
                self.on_message(message)

    def resume(self) -> None:
        """See `Streaming`."""
        self._reading = True
        self._give()

    def send(self, message: bytes) -> bool:
        """See `Streaming`."""
        x = self._x
        if x.ended:
            return False
        line = b'{"result":%b}' % self._json(message)
        return x.push(websocket.frame(websocket.TEXT, line))

    def finish(self) -> None:
        """See `Streaming`."""
        self._end(websocket.NORMAL)

    def fail(self, code: int, text: str = "") -> None:
        """See `AnyCall`."""
        if not self._x.ended and not self._closing:
            self._x.push(websocket.frame(websocket.TEXT, error_json(code, text)))
            self._end(websocket.INTERNAL)

    def _end(self, code: int) -> None:
        if not self._x.ended and not self._closing:
            self._closing = True
            self._x.push(websocket.close_frame(code))
            self._x.end_stream()
