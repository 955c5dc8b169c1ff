"""The deterministic state machine: (state, index, command) -> (results, events)."""
