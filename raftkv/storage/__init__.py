"""Bytes that survive: write-ahead log, snapshots and the ordered tables under the machine."""
