"""Auth: what etcd answers while authentication is off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftkv.api.etcd import answers
from raftkv.api.etcd.messages import rpc_message
from raftkv.api.etcd.rpc import Rpcs, Service, Unary
from raftkv.api.etcd.wire import number_field

if TYPE_CHECKING:
    from raftkv.server.store import Store

AUTH_REVISION = 1


class AuthService(Service):
    """Service etcdserverpb.Auth."""

    def __init__(self, rpcs: Rpcs) -> None:
        super().__init__(rpcs)
        path = "/etcdserverpb.Auth/"
        rpcs.add(path + "AuthStatus", rpc_message("AuthStatusRequest"), self.status)
        rpcs.add(path + "Authenticate", rpc_message("AuthenticateRequest"), self.authenticate)

    def status(self, caller: Store, call: Unary, request: Any) -> None:
        """Answer AuthStatusResponse."""
        call.reply(self.headers.now() + number_field(3, AUTH_REVISION))

    def authenticate(self, caller: Store, call: Unary, request: Any) -> None:
        """Refuse: nobody has to."""
        raise answers.AUTH_NOT_ENABLED.fault()
