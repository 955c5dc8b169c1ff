"""The text of ``--auth-token``, which is etcd's: ``simple``, or ``jwt`` with its keys.

jwt,sign-method=ES256,pub-key=/etc/raftkv/jwt.pub,priv-key=/etc/raftkv/jwt.key,ttl=10m
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from raftkv.limits import TOKEN_KEY_BYTES_MAX, TOKEN_TTL_SECONDS_MAX, TOKEN_TTL_SECONDS_MIN

METHODS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""Asymmetric ones only: with a shared secret, who can check tokens can make them."""

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_OPTIONS: Final = ("pub-key", "priv-key", "sign-method", "ttl")


class TokenSpec(NamedTuple):
    """Which tokens a member gives out and takes."""

    kind: str
    """``simple`` or ``jwt``."""
    sign_method: str = ""
    public_key: str = ""
    """A file in PEM form."""
    private_key: str = ""
    """A file in PEM form; empty: tokens are checked here and made elsewhere."""
    ttl_seconds: int = 0
    """0: as ``--auth-token-ttl`` says."""

    def read_keys(self) -> tuple[str, str | None]:
        """The texts of both keys. Raises ValueError naming a file that cannot be read."""
        private = _read(self.private_key) if self.private_key else None
        return _read(self.public_key), private


def parse_token_spec(text: str) -> TokenSpec:
    """Raises ValueError with what is wrong, as the end of a sentence."""
    kind, *parts = (part.strip() for part in text.split(","))
    if kind == "simple" and not parts:
        return TokenSpec("simple")
    if kind != "jwt":
        raise ValueError(f"must be simple, or jwt with its options, not {text!r}")
    given: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in _OPTIONS or not equals or not value or name in given:
            raise ValueError(f"of jwt takes {', '.join(_OPTIONS)}, each once; {part!r} is none")
        given[name] = value
    method = given.get("sign-method", "")
    if method not in METHODS:
        raise ValueError(f"needs a sign-method out of {', '.join(METHODS)}")
    if "pub-key" not in given:
        raise ValueError("needs pub-key=FILE, to check tokens with")
    ttl_seconds = _seconds(given["ttl"]) if "ttl" in given else 0
    return TokenSpec("jwt", method, given["pub-key"], given.get("priv-key", ""), ttl_seconds)


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})(s|m|h)", text)
    seconds = int(found[1]) * _UNIT_SECONDS[found[2]] if found else 0
    if not TOKEN_TTL_SECONDS_MIN <= seconds <= TOKEN_TTL_SECONDS_MAX:
        raise ValueError(f"has a ttl such as 30s, 10m or 1h, not {text!r}")
    return seconds


def _read(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            data = file.read(TOKEN_KEY_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"names {name}, which cannot be read: {error.strerror}") from None
    if len(data) > TOKEN_KEY_BYTES_MAX:
        raise ValueError(f"names {name}, which is too large for a key")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"names {name}, which is no key in PEM form") from None
