"""Crash images: every moment of a real run at which a process or a machine may end."""
