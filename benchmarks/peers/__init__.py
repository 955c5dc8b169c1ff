"""The servers that are measured, started alike: raftkv, two etcds, PySyncObj."""
