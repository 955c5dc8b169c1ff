"""Checkers of recorded histories: is what clients saw what one single copy could have answered?

Record what clients ask and learn as a `history.History`, then

    check_history(history.operations, final=records, final_revision=revision).check()

raises `report.HistoryRejected` with a story if it is not. Two checkers judge. They share nothing
but the history and what an answer means:

    witness     replays the writes in the order of their revisions on a plain model (`model.py`) and
                compares every answer; the whole API, any length, O(n log n)
    wgl         looks for an order of each key by values and real time alone; it is first offered
                the order that the witness check found, and searches if that is none

Watches, leases and locks have oracles of their own, which start from the report of the first:

    report = check_history(...).check()
    check_watch(log, report.truth)          the nine properties of etcd
    check_leases(history.operations, lease_ends(history.operations, report), late_us=...)
    check_locks(holdings, effects)

"Not decided" is a verdict of its own and never passes. It comes of many unknown outcomes with
little seen after them; `final_revision`, watch logs and reads near the end all help.

    history.py          the shape of a history, and NDJSON
    check.py            `check_history`
    witness.py          the replay and its guesses; book, facts, order, answers, tenures, naming
    wgl.py              the search; perkey.py splits a history by key
    *_oracle.py         watches, leases, locks
    report.py           violations and their stories
    simulated.py        correct histories, from the real state machine as a single copy
    faults.py           faults planted in them
    crosscheck.py       all of it against each other: `python -m tests.linearizability.crosscheck`
"""
