"""The arithmetic of the comparison: pairs, medians, verdicts, the table, the guard."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.guard import Kept, kept, read_baseline, regressions, write_baseline
from benchmarks.ratios import COST, EXCESS, OURS, TOLD, Cell, beside, compare, pairwise, row_value
from benchmarks.report import BESIDE, Run, cell_lines, markdown, put_between, row_lines, show
from benchmarks.scenarios.watching import lost_percent
from benchmarks.targets import ROW


def cell(key: str, better: str = "higher", **sides: list[float]) -> Cell:
    values = {OURS if side == "ours" else f"etcd {side[1:]}": v for side, v in sides.items()}
    return Cell(key, "1/s", better, values=values)


def run_of(*cells: Cell) -> Run:
    return Run({"commit": "abc"}, {"rounds": 2, "seconds": 1.0, "quick": False}, list(cells), 5.0)


def test_pairs_are_made_round_by_round() -> None:
    # A machine that slowed down by half in the second round changes no ratio.
    assert pairwise([20, 10], [10, 5]) == [2, 2]
    assert pairwise([20, 10, 7], [10, 5]) == [2, 2]


def test_nothing_is_divided_by_zero() -> None:
    with pytest.raises(ValueError, match="not to be divided by"):
        pairwise([1.0], [0.0])


def test_the_better_peer_is_the_one_that_leaves_us_the_worse() -> None:
    rate = compare(cell("put/64", ours=[30, 30, 40], v3=[10, 20, 10], v4=[20, 20, 20]))
    assert rate is not None
    assert (rate.value, rate.low, rate.high, rate.against) == (1.5, 1.5, 2.0, "etcd 4")
    time = compare(cell("restart/1", "lower", ours=[30, 30, 40], v3=[10, 20, 10], v4=[20, 20, 20]))
    assert time is not None
    assert (time.value, time.against) == (3.0, "etcd 3")


def test_a_cell_with_one_side_only_says_nothing() -> None:
    assert compare(cell("put/64", ours=[1.0])) is None
    assert compare(cell("put/64", v3=[1.0])) is None


def test_who_answers_ahead_of_the_disk_stands_beside_the_comparison() -> None:
    measured = cell("put/64", ours=[30, 30], v3=[10, 10], v4=[20, 20])
    measured.ahead = ["etcd 4"]
    found = compare(measured)
    assert found is not None
    assert (found.value, found.against) == (3.0, "etcd 3")
    assert [(each.value, each.against) for each in beside(measured)] == [(1.5, "etcd 4")]
    text = markdown(run_of(measured))
    assert BESIDE in text
    assert "| put: 64 | etcd 4: 20.00 1/s | 1.50x | 1.50 to 1.50 |" in text
    assert Cell.from_dict(json.loads(json.dumps(measured.as_dict()))) == measured


def test_against_a_single_peer_that_answers_ahead_we_still_compare() -> None:
    measured = cell("put/64", ours=[30], v4=[20])
    measured.ahead = ["etcd 4"]
    found = compare(measured)
    assert found is not None and found.value == 1.5
    assert beside(measured) == []
    assert BESIDE not in markdown(run_of(measured))


def test_a_cost_and_an_excess_are_ours_alone() -> None:
    for kind in (COST, EXCESS, TOLD):
        told = Cell("failover/x", "s", "lower", kind, {OURS: [0.3], "etcd": [0.0]}, ahead=["etcd"])
        assert beside(told) == []
        found = compare(Cell("failover/x", "s", "lower", kind, {OURS: [0.3, 0.1], "etcd": [9.0]}))
        assert found is not None
        assert (found.value, found.against) == (pytest.approx(0.2), "")


@pytest.mark.parametrize(
    ("row", "value", "verdict"),
    [
        ("put", 2.0, "aim"),
        ("put", 1.996, "aim"),
        ("put", 1.99, "floor"),
        ("put", 1.3, "floor"),
        ("put", 1.29, "below"),
        ("alone", 1.0, "aim"),
        ("alone", 1.3, "floor"),
        ("alone", 1.31, "below"),
        ("watch_cost", 0.0, "aim"),
        ("watch_cost", 3.0, "floor"),
        ("watch_cost", 10.1, "below"),
        ("failover", -0.1, "aim"),
        ("failover", 0.6, "below"),
        ("clients", 0.1, "told"),
        ("put", None, "not measured"),
    ],
)
def test_verdicts(row: str, value: float | None, verdict: str) -> None:
    assert ROW[row].verdict(value) == verdict


def test_the_worst_cell_decides_its_row() -> None:
    cells = [
        cell("put/64", ours=[30], v3=[10]),
        cell("put/256", ours=[12], v3=[10]),
        cell("p99/put", "lower", ours=[5], v3=[10]),
        cell("p99/get", "lower", ours=[9], v3=[10]),
    ]
    assert row_value(cells, "put") == pytest.approx(1.2)
    assert row_value(cells, "p99") == pytest.approx(0.9)
    assert row_value(cells, "get") is None


def test_every_row_is_in_the_table_and_says_where_it_stands() -> None:
    lines = row_lines([cell("put/64", ours=[30], v3=[10]), cell("put/256", ours=[12], v3=[10])])
    assert len(lines) == len(ROW)
    assert lines[0] == (
        "1 member, gRPC put, 64 / 256 / 1,024 in flight", "2.00x", "1.30x", "3.00x / 1.20x",
        "1.20x to 3.00x", "BELOW THE FLOOR",
    )  # fmt: skip
    assert lines[1][3:] == ("-", "-", "not measured")


def test_a_row_of_many_cells_is_told_by_worst_and_median() -> None:
    cells = [cell(f"three/{n}", ours=[10 + n], v3=[10]) for n in range(5)]
    line = next(line for line in row_lines(cells) if line[0].startswith("3 members"))
    assert line[3] == "1.00x, median 1.20x of 5"


def test_each_measurement_is_told_with_what_servers_and_loader_used() -> None:
    one = cell("put/64", ours=[30_000], v3=[10_000])
    one.details = {
        OURS: [{"loader_cpu": 0.25, "server_us": 30.0}, {"server_us": 40.0}],
        "etcd 3": [{"loader_cpu": 0.5, "server_us": 1234.0}],
    }
    assert cell_lines([one]) == [(
        "put: 64", "30,000 1/s", "etcd 3: 10,000 1/s", "3.00x", "3.00 to 3.00", "35 / 1,234", "50%",
    )]  # fmt: skip


def test_a_run_comes_back_from_its_file(tmp_path: Path) -> None:
    run = run_of(cell("put/64", ours=[30, 20], v3=[10, 10]))
    path = tmp_path / "run.json"
    path.write_text(run.as_json())
    assert Run.read(path) == run
    told = json.loads(path.read_text())
    assert told["rows"][0]["verdict"] == "aim"
    assert told["cells"][0]["result"]["value"] == 2.5


def test_into_a_pipe_goes_markdown_and_onto_a_terminal_a_table() -> None:
    run = run_of(cell("put/64", ours=[30], v3=[10]))
    run.failures.append("put/256: too bad")
    plain, terminal = io.StringIO(), io.StringIO()
    show(run, Console(file=plain, force_terminal=False))
    assert plain.getvalue() == markdown(run)
    assert "- failed, so not counted: put/256: too bad" in plain.getvalue()
    show(run, Console(file=terminal, force_terminal=True, width=160))
    assert "at its aim" in terminal.getvalue() and "too bad" in terminal.getvalue()


def test_a_page_keeps_what_stands_around_its_marks() -> None:
    page = "a\n<!-- table -->\nold\n<!-- end of table -->\nb\n"
    new = "a\n<!-- table -->\nnew \\1\n<!-- end of table -->\nb\n"
    assert put_between(page, "table", "new \\1") == new
    with pytest.raises(ValueError, match="no marks"):
        put_between("a", "table", "new")


def test_what_watches_cost_is_held_against_both_sides_of_them() -> None:
    assert lost_percent(90, 90, 110) == pytest.approx(10)
    assert lost_percent(110, 100, 100) == 0


def test_the_guard_tells_a_ratio_that_became_worse() -> None:
    before = {"put/64": Kept(2.0, 1.9, 2.1, "higher"), "p99/put": Kept(0.8, 0.7, 0.9, "lower")}
    same = {"put/64": Kept(1.6, 1.5, 1.7, "higher"), "p99/put": Kept(1.0, 0.9, 1.1, "lower")}
    assert regressions(before, same) == []
    worse = {"put/64": Kept(1.4, 1.3, 1.5, "higher"), "p99/put": Kept(1.2, 1.1, 1.3, "lower")}
    assert [str(each) for each in regressions(before, worse)] == [
        "put/64: 2.00x before, 1.40x now",
        "p99/put: 0.80x before, 1.20x now",
    ]


def test_the_guard_does_not_take_noise_for_a_regression() -> None:
    before = {"put/64": Kept(2.0, 1.9, 2.1, "higher")}
    assert regressions(before, {"put/64": Kept(1.4, 0.9, 2.2, "higher")}) == []
    assert regressions(before, {"put/256": Kept(0.1, 0.1, 0.1, "higher")}) == []


def test_a_baseline_holds_ratios_only(tmp_path: Path) -> None:
    run = run_of(
        cell("put/64", ours=[3000], v3=[1000]),
        Cell("failover/x", "s", "lower", EXCESS, {OURS: [0.3]}),
    )
    path = tmp_path / "baseline.json"
    write_baseline(run, path)
    assert read_baseline(path) == kept(run) == {"put/64": Kept(3.0, 3.0, 3.0, "higher")}
    assert "3000" not in path.read_text()
