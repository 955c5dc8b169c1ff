"""raftkv beside its peers on the same machine: the same work, the same durability, in turns.

    make bench                        the whole table
    make bench QUICK=1                within five minutes
    python -m benchmarks --only put   a part of it
    python -m benchmarks.growth       cost against size, and disturbance over time
    python -m benchmarks.guard        ratios of a run against those of a baseline

`load` makes the requests, in a process of its own; `peers` starts the servers; `scenarios` measure;
`report` prints, writes and draws.
"""
