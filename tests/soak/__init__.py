"""An hour of everything at once, at half of what the cluster can do: `python -m tests.soak`.

judge.py        what was acknowledged against what was seen; memory against its bound
load.py         clients of ours at a steady rate over several members
clients.py      those clients, renewed with members and certificates
catalog.py      a service whose instances are kept alive
registers.py    a few recorded registers, searched for a linearization
operations.py   what an operator does meanwhile: certificates, replacement, restore, quota
sampling.py     memory, files, threads and disk of each member every few seconds
report.py       the result as JSON, a table and a plot
"""
