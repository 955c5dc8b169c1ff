"""A few cycles of `tests.cluster.kills`; the long run is a command."""

from pathlib import Path

from tests.cluster.kills import kill_cycles

CYCLES = 4


async def test_members_killed_under_load_lose_and_repeat_nothing(tmp_path: Path) -> None:
    kills = await kill_cycles(tmp_path, CYCLES, seed=1)
    assert kills.cycles == CYCLES and kills.killed >= CYCLES
    assert kills.tally.acknowledged_writes > 0 and kills.tally.watch_events > 0
