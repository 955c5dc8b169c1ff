"""``python -m raftkv.cli`` is the `raftkv` command."""

from raftkv.cli.main import main

main()
