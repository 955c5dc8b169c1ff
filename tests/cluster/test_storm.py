"""A breath of `tests.cluster.storm`; the long run is a command."""

import json
from pathlib import Path

from tests.cluster.storm import storm
from tests.support.workload import Mix

MIX = Mix(per_second=150)


async def test_faults_of_all_kinds_one_after_another(tmp_path: Path) -> None:
    done = await storm(tmp_path, minutes=0.12, seed=1, mix=MIX)
    assert done.rounds == 1 and sum(done.faults.values()) >= 1
    assert done.tally.acknowledged_writes > 0 and done.tally.watch_events > 0
    figures = json.loads(json.dumps(done.as_json()))
    assert figures["checked"]["operations"] == done.tally.operations
