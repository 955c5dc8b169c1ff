"""Whole clusters under virtual time: safety under faults, then liveness, over many seeds."""
