"""raftkv: a Raft-replicated key-value store with watches, transactions, leases and services."""

__version__ = "0.1.0.dev0"
