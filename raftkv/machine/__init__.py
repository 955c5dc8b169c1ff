"""The deterministic state machine: (state, index, command) -> (results, events).

Commands are made by the functions in `raftkv.machine.commands`, joined by `encode_batch`, and
carried out by `Machine.apply`, which answers with values of `raftkv.machine.results` and
`raftkv.machine.events`.
"""

from raftkv.machine.catalog import Instance, ServiceSummary
from raftkv.machine.cluster import MemberChange, MemberInfo
from raftkv.machine.events import Event
from raftkv.machine.leases import Lease
from raftkv.machine.machine import Machine, View
from raftkv.machine.mvcc import RangeQuery
from raftkv.machine.records import Record
from raftkv.machine.results import Applied, Outcome, Result
from raftkv.machine.tables import Table, TableReader, Tables, TableWriter

__all__ = [
    "Applied",
    "Event",
    "Instance",
    "Lease",
    "Machine",
    "MemberChange",
    "MemberInfo",
    "Outcome",
    "RangeQuery",
    "Record",
    "Result",
    "ServiceSummary",
    "Table",
    "TableReader",
    "TableWriter",
    "Tables",
    "View",
]
