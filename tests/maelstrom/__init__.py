"""raftkv as a node of Maelstrom's `lin-kv` workload, and a small driver in Maelstrom's place."""
