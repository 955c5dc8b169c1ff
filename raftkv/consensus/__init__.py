"""Raft as a pure machine: no I/O, no clock, no host randomness. See node.py for the façade."""
