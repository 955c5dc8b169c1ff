"""Simulated machines: a whole cluster in one thread, with virtual time and one source of chance.

`SimDisk` (`raftkv.simulation.disk`) is the disk of one machine, with power cuts and faults.
"""
