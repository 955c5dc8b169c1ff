"""The table of etcd's flags in the documentation, made from what the program does with them.

`python -m tests.support.etcd_flag_table` writes it anew.
"""

from __future__ import annotations

from itertools import groupby
from typing import Final

from raftkv.server import etcd_flags
from raftkv.server.config import SETTINGS
from tests.support.doc_examples import ROOT

PAGE: Final = ROOT / "docs" / "compatibility.md"
BEGIN: Final = "<!-- flags: python -m tests.support.etcd_flag_table -->\n"
END: Final = "<!-- end of flags -->\n"
ORDER: Final = ("supported", "no effect", "refused")


def table() -> str:
    """Flags that fare alike are in one row."""
    flags = list(etcd_flags.flags({setting.key for setting in SETTINGS}))
    flags.sort(key=lambda flag: (ORDER.index(flag.standing), flag.note, flag.name))
    lines = ["| Flag of etcd | | |", "|---|---|---|"]
    for (standing, note), alike in groupby(flags, lambda flag: (flag.standing, flag.note)):
        names = " ".join(f"`--{flag.name}`" for flag in alike)
        lines.append(f"| {names} | {standing} | {note} |")
    return "\n".join(lines) + "\n"


def on_page() -> str:
    """What the page has now."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip("\n") + "\n"


def main() -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
