"""Both backends keep the same promises: conformance, seams of long keys, and a model test."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from raftkv.errors import CorruptionError, FormatError, InvariantViolation
from raftkv.limits import KEY_BYTES_MAX, MIB
from raftkv.storage.backend import Backend, LmdbBackend, MemoryBackend

KINDS = ["lmdb", "memory"]
KEY_MAX = KEY_BYTES_MAX + 32
SEAMS = [1, 2, 7, 8, 9, 501, 502, 503, 509, 510, 511, 512, 1011, 1012, 1013, 1514, 1515, 4000]


def make(kind: str, path: Path) -> Backend:
    if kind == "memory":
        return MemoryBackend()
    return LmdbBackend(str(path), map_bytes=64 * MIB, allocate_bytes=MIB)


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = make(request.param, tmp_path / "tables")
    yield made
    made.close()


def rows(backend: Backend, table: int = 1) -> list[tuple[bytes, bytes]]:
    with backend.read() as view:
        return list(view.scan(table, b"", None))


def fill(backend: Backend, content: dict[bytes, bytes], table: int = 1) -> None:
    with backend.write() as change:
        for key, value in content.items():
            change.put(table, key, value)


def test_rows_are_put_replaced_and_deleted(backend: Backend) -> None:
    with backend.write() as change:
        change.put(1, b"a", b"1")
        change.put(1, b"b", b"")
        change.put(2, b"a", b"other table")
        assert change.get(1, b"a") == b"1"
        change.put(1, b"a", b"2")
        assert change.delete(1, b"missing") is False
    with backend.read() as view:
        assert view.get(1, b"a") == b"2"
        assert view.get(1, b"b") == b""
        assert view.get(1, b"c") is None
        assert view.get(2, b"a") == b"other table"
    with backend.write() as change:
        assert change.delete(1, b"a") is True
        assert change.delete(1, b"a") is False
        assert change.get(1, b"a") is None
    assert rows(backend) == [(b"b", b"")]


def test_an_exception_undoes_everything(backend: Backend) -> None:
    long = b"x" * 2000
    fill(backend, {b"a": b"1", b"b": b"2", long: b"3"})
    before = rows(backend)
    with pytest.raises(KeyError), backend.write() as change:
        change.put(1, b"a", b"changed")
        change.put(1, b"c", b"new")
        change.put(1, long + b"y", b"new")
        change.append(1, b"zz", b"new")
        assert change.delete(1, b"b")
        assert change.delete(1, long)
        raise KeyError
    assert rows(backend) == before
    fill(backend, {b"a": b"again"})


def test_append_has_the_effect_of_put(backend: Backend) -> None:
    with backend.write() as change:
        for index in range(100):
            change.append(2, index.to_bytes(8, "big"), b"%d" % index)
        change.append(2, (5).to_bytes(8, "big"), b"not greater")
        change.append(2, b"\xff" * 600, b"long")
    found = rows(backend, 2)
    assert len(found) == 101
    assert found[5][1] == b"not greater"
    assert found[-1] == (b"\xff" * 600, b"long")


@pytest.mark.parametrize("count", [0, 1, 3, 4, 500])
@pytest.mark.parametrize("tail", [b"", b"l" * 600], ids=["short", "long"])
def test_put_many_has_the_effect_of_put(backend: Backend, count: int, tail: bytes) -> None:
    with backend.write() as change:
        change.put(2, b"00001" + tail, b"old")
        keys = [b"%05d" % index + tail for index in range(count)]
        # In any order, over what is there, and one key twice: the last value stays.
        keys = keys[::-1] + keys[:1]
        values = [b"%d" % index for index in range(len(keys))]
        change.put_many(2, keys, values)
    expected = {b"00001" + tail: b"old", **dict(zip(keys, values, strict=True))}
    assert rows(backend, 2) == sorted(expected.items())


def test_scans(backend: Backend) -> None:
    keys = [b"%03d" % index for index in range(50)]
    fill(backend, dict.fromkeys(keys, b"v"))
    with backend.read() as view:

        def forth(start: bytes, end: bytes | None) -> list[bytes]:
            found = [key for key, _ in view.scan(1, start, end)]
            assert [key for key, _ in view.scan_reverse(1, start, end)] == found[::-1]
            return found

        assert forth(b"", None) == keys
        assert forth(b"010", b"020") == keys[10:20]
        assert forth(b"0105", b"0195") == keys[11:20]
        assert forth(b"", b"003") == keys[:3]
        assert forth(b"047", None) == keys[47:]
        assert forth(b"9", None) == []
        assert forth(b"", b"000") == []
        assert forth(b"", b"") == []
        assert forth(b"020", b"010") == []
        assert forth(b"020", b"020") == []
        assert list(view.scan(3, b"", None)) == []
        assert list(view.scan_reverse(3, b"", None)) == []
        assert next(view.scan(1, b"03", None))[0] == b"030"


@pytest.mark.parametrize("long_key", [False, True], ids=["short keys", "a long key among them"])
@pytest.mark.parametrize("value_bytes", [0, 300, 10_000])
def test_any_interval_of_many_rows(backend: Backend, value_bytes: int, long_key: bool) -> None:
    model = {b"%04d" % index: bytes(index % 7 * value_bytes) for index in range(0, 600, 2)}
    if long_key:
        model[b"0200" + bytes(600)] = b"long"
    fill(backend, model)
    chance = random.Random(value_bytes)
    names = sorted(model)
    with backend.read() as view:
        for _ in range(60):
            start = b"%04d" % chance.randrange(600)
            end = chance.choice([None, b"%04d" % chance.randrange(600)])
            expected = [name for name in names if start <= name and (end is None or name < end)]
            found = list(view.scan(1, start, end))
            assert [name for name, _ in found] == expected
            assert all(value == model[name] for name, value in found)
            assert list(view.scan_reverse(1, start, end)) == found[::-1]


def seam_keys(seed: int, count: int) -> list[bytes]:
    """Keys that share long beginnings and differ around the places where a layer ends."""
    chance = random.Random(seed)
    stems = [chance.choice([b"\0", b"a", b"\xff"]) * 4000 for _ in range(2)]
    stems.append(bytes(chance.randrange(2) * 255 for _ in range(4000)))
    found = []
    for _ in range(count):
        key = bytearray(chance.choice(stems)[: chance.choice(SEAMS)])
        if chance.random() < 0.5:
            key[-1] = chance.choice([0, 1, 97, 254, 255])
        found.append(bytes(key) + chance.choice([b"", b"", b"\0", b"\xff", b"\0\0"]))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_long_keys_keep_their_order_at_every_seam(backend: Backend, seed: int) -> None:
    chance = random.Random(seed)
    model = {key: b"%d" % at for at, key in enumerate(seam_keys(seed, 250))}
    fill(backend, model)
    assert rows(backend) == sorted(model.items())
    bounds = [*seam_keys(seed + 100, 40), *chance.sample(sorted(model), 20), b""]
    with backend.read() as view:
        for key in model:
            assert view.get(1, key) == model[key]
        for _ in range(150):
            start = chance.choice(bounds)
            end = chance.choice([None, *bounds])
            expected = [
                row
                for row in sorted(model.items())
                if start <= row[0] and (end is None or row[0] < end)
            ]
            assert list(view.scan(1, start, end)) == expected
            assert list(view.scan_reverse(1, start, end)) == expected[::-1]
        for key in seam_keys(seed + 200, 100):
            assert view.get(1, key) == model.get(key)
    going = chance.sample(sorted(model), len(model) // 2)
    with backend.write() as change:
        for key in [*going, *seam_keys(seed + 300, 50)]:
            assert change.delete(1, key) is (key in model)
            model.pop(key, None)
    assert rows(backend) == sorted(model.items())
    with backend.write() as change:
        for key in model:
            assert change.delete(1, key)
    assert rows(backend) == []


def test_the_longest_key(backend: Backend) -> None:
    key = random.Random(1).randbytes(KEY_MAX)
    neighbours = [key[:-1], key[:-1] + bytes([key[-1] ^ 1]), key[:510], key[:511], key[:1012]]
    fill(backend, dict.fromkeys([key, *neighbours], b"v"))
    assert [found for found, _ in rows(backend)] == sorted([key, *neighbours])
    with backend.write() as change:
        assert change.delete(1, key)
        assert change.get(1, key) is None
        assert all(change.get(1, other) == b"v" for other in neighbours)


def test_large_values(backend: Backend) -> None:
    content = {b"%d" % size: b"x" * size for size in (0, 1, 2000, 4096, 100_000, 3 * MIB)}
    fill(backend, content)
    assert dict(rows(backend)) == content


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_carries_the_whole_state(kind: str, tmp_path: Path) -> None:
    one, two = make(kind, tmp_path / "one"), make(kind, tmp_path / "two")
    content = {b"k%d" % index * (index % 200 + 1): b"v%d" % index for index in range(500)}
    fill(one, content)
    fill(one, {b"other": b"table"}, table=9)
    fill(two, {b"old": b"state"})
    image = tmp_path / "image"
    image.write_bytes(b"header")
    one.pin().copy_to(str(image), 4096)
    size = image.stat().st_size - 4096
    with image.open("ab") as file:
        file.write(b"footer")
    fill(one, {b"later": b"not in the image"})
    two.stage(str(image), 4096, size)
    two.install()
    assert rows(two) == sorted(content.items())
    assert rows(two, 9) == [(b"other", b"table")]
    assert image.read_bytes()[:6] == b"header"
    fill(two, {b"goes": b"on"})
    assert dict(rows(two))[b"goes"] == b"on"
    one.close()
    two.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_changes_nothing(kind: str, tmp_path: Path) -> None:
    backend = make(kind, tmp_path / "tables")
    fill(backend, {b"a": b"1"})
    (tmp_path / "image").write_bytes(bytes(10_000))
    with pytest.raises(FormatError, match="no image"):
        backend.stage(str(tmp_path / "image"), 0, 10_000)
    assert rows(backend) == [(b"a", b"1")]
    backend.close()


def test_use_is_measured(backend: Backend) -> None:
    empty = backend.used_bytes()
    fill(backend, {b"%05d" % index: b"v" * 500 for index in range(2000)})
    full = backend.used_bytes()
    assert full - empty > 1_000_000
    assert backend.file_bytes() >= full
    with backend.write() as change:
        for index in range(2000):
            change.delete(1, b"%05d" % index)
    assert backend.used_bytes() < empty + 100_000
    backend.sync()


def test_a_point_read_in_one_call(backend: Backend) -> None:
    fill(backend, {b"a": b"1", b"b" * 600: b"2"})
    assert isinstance(backend, (LmdbBackend, MemoryBackend))
    assert backend.get(1, b"a") == b"1"
    assert backend.get(1, b"b" * 600) == b"2"
    assert backend.get(1, b"c") is None


# Only the twin


def test_the_twin_notices_misuse() -> None:
    backend = MemoryBackend()
    fill(backend, {b"a": b"1", b"b": b"2"})
    with backend.read(), pytest.raises(InvariantViolation, match="views are closed"):
        backend.write().__enter__()
    with pytest.raises(InvariantViolation, match="under its iterator"), backend.write() as change:
        for key, _ in change.scan(1, b"", None):
            change.put(1, key, b"x")
    with pytest.raises(InvariantViolation, match="length"), backend.write() as change:
        change.put(1, b"", b"x")
    with pytest.raises(InvariantViolation, match="length"), backend.write() as change:
        change.put(1, b"x" * (KEY_MAX + 1), b"x")
    assert rows(backend) == [(b"a", b"1"), (b"b", b"2")]


def test_the_twin_refuses_damaged_images(tmp_path: Path) -> None:
    backend = MemoryBackend()
    fill(backend, {b"key": b"value"})
    image = tmp_path / "image"
    backend.pin().copy_to(str(image))
    good = image.read_bytes()
    for data in (good[:-1], good[:12], good[:8] + b"\xff" + good[9:]):
        image.write_bytes(data)
        with pytest.raises(CorruptionError):
            backend.stage(str(image), 0, len(good))
    assert rows(backend) == [(b"key", b"value")]


def test_the_twin_writes_large_images_in_pieces(tmp_path: Path) -> None:
    one, two = MemoryBackend(), MemoryBackend()
    fill(one, {b"%d" % index: bytes(300_000) for index in range(12)})
    one.pin().copy_to(str(tmp_path / "image"), 100)
    two.stage(str(tmp_path / "image"), 100, (tmp_path / "image").stat().st_size - 100)
    two.install()
    assert rows(one) == rows(two)


# Against a model

short = st.binary(min_size=1, max_size=3)
seam = st.builds(
    lambda stem, length, tail: (stem * 2000)[:length] + tail,
    st.sampled_from([b"\0", b"a", b"\xff"]),
    st.sampled_from(SEAMS[:15]),
    st.sampled_from([b"", b"\0", b"b", b"\xff"]),
)
keys = st.one_of(short, seam)
tables = st.integers(0, 2)


@given(content=st.sets(seam, max_size=12), start=keys, end=st.none() | keys)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_any_interval(kind: str, content: set[bytes], start: bytes, end: bytes | None) -> None:
    path = Path(tempfile.mkdtemp())
    backend = make(kind, path)
    try:
        fill(backend, dict.fromkeys(content, b"v"))
        expected = sorted(key for key in content if start <= key and (end is None or key < end))
        with backend.read() as view:
            assert [key for key, _ in view.scan(1, start, end)] == expected
            assert [key for key, _ in view.scan_reverse(1, start, end)] == expected[::-1]
    finally:
        backend.close()
        shutil.rmtree(path)


class BackendModel(RuleBasedStateMachine):
    """Transactions, aborts, restarts and images against plain dictionaries."""

    kind = "memory"

    @initialize()
    def begin(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.backend = make(self.kind, self.path / "tables")
        self.model: list[dict[bytes, bytes]] = [{}, {}, {}]

    @rule(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["put", "append", "delete"]), tables, keys, st.binary(max_size=40)
            ),
            max_size=12,
        ),
        keep=st.booleans(),
    )
    def transaction(self, steps: list[tuple[str, int, bytes, bytes]], keep: bool) -> None:
        model = [dict(table) for table in self.model]
        try:
            with self.backend.write() as change:
                for operation, table, key, value in steps:
                    if operation == "delete":
                        assert change.delete(table, key) is (key in model[table])
                        model[table].pop(key, None)
                    else:
                        getattr(change, operation)(table, key, value)
                        model[table][key] = value
                    assert change.get(table, key) == model[table].get(key)
                for table in range(3):
                    assert list(change.scan(table, b"", None)) == sorted(model[table].items())
                if not keep:
                    raise KeyError
            self.model = model
        except KeyError:
            pass

    @rule()
    def image(self) -> None:
        path = str(self.path / "image")
        self.backend.pin().copy_to(path, 0)
        fresh = make(self.kind, self.path / "other")
        fresh.stage(path, 0, Path(path).stat().st_size)
        fresh.install()
        for table in range(3):
            assert rows(fresh, table) == sorted(self.model[table].items())
        fresh.close()
        Path(path).unlink()

    @rule()
    def reopen(self) -> None:
        if self.kind == "lmdb":
            self.backend.close()
            self.backend = make(self.kind, self.path / "tables")

    @invariant()
    def same(self) -> None:
        model: list[dict[bytes, bytes]] = getattr(self, "model", [])
        for table, content in enumerate(model):
            assert rows(self.backend, table) == sorted(content.items())
            with self.backend.read() as view:
                assert list(view.scan_reverse(table, b"", None)) == sorted(content.items())[::-1]

    def teardown(self) -> None:
        if hasattr(self, "backend"):
            self.backend.close()
            shutil.rmtree(self.path)


@pytest.mark.parametrize("kind", KINDS)
def test_model(kind: str) -> None:
    model: Any = type("Model", (BackendModel,), {"kind": kind})
    run_state_machine_as_test(
        model, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )


def test_a_twin_goes_its_own_way_until_it_is_adopted(backend: Backend) -> None:
    with backend.write() as change:
        for number in range(2_000):
            change.put(1, b"%06d" % number, bytes(500))
    with backend.write() as change:
        for number in range(1_900):
            change.delete(1, b"%06d" % number)
    before = backend.file_bytes()
    twin = backend.pin().twin()
    with backend.write() as change:
        change.put(1, b"meanwhile", b"here")
    with twin.tables.write() as change:
        change.put(1, b"meanwhile", b"there")
        change.put(1, b"k" * 1_000, b"long")
    with backend.read() as reader:
        assert reader.get(1, b"meanwhile") == b"here"
    twin.adopt()
    with backend.read() as reader:
        assert reader.get(1, b"meanwhile") == b"there" and reader.get(1, b"k" * 1_000) == b"long"
        assert sum(1 for _ in reader.scan(1, b"", None)) == 102
    assert backend.file_bytes() <= before + 2_000
    with backend.write() as change:
        change.put(1, b"after", b"wards")
    with backend.read() as reader:
        assert reader.get(1, b"after") == b"wards"


def test_a_twin_that_is_discarded_leaves_the_tables_alone(backend: Backend, tmp_path: Path) -> None:
    with backend.write() as change:
        change.put(1, b"k", b"v")
    twin = backend.pin().twin()
    with twin.tables.write() as change:
        change.put(1, b"k", b"other")
    twin.discard()
    with backend.read() as reader:
        assert reader.get(1, b"k") == b"v"
    assert not any("twin" in path.name for path in tmp_path.rglob("*"))
    backend.pin().twin().adopt()
