"""The `raftkv` command. Imported as `raftkv.cli`; talks to a store through raftkv.client."""
