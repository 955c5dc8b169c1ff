"""raftkv: a Raft-replicated key-value store with watches, transactions, leases and services."""

__version__ = "0.1.0.dev0"


def form() -> str:
    """How the hot path runs: "compiled" or "interpreted", see setup.py."""
    from raftkv import histogram

    return "interpreted" if histogram.__file__.endswith(".py") else "compiled"
