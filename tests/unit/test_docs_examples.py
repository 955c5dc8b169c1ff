"""What the documentation shows is what a store does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import doc_examples
from tests.support.doc_examples import ROOT, Shell, Step, matches, steps_of

PAGES = ("README.md", "docs/http.md", "docs/python.md", "docs/reliability.md", "docs/security.md")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_its_examples_print(page: str) -> None:
    steps = steps_of((ROOT / page).read_text())
    assert steps, f"{page} has no examples marked {doc_examples.MARK}"
    with doc_examples.shell() as shell:
        for step in steps:
            printed = shell.run(step)
            assert matches(step.expected, printed), (
                f"{page}:{step.line}: {step.source}\nprints\n" + "\n".join(printed)
                + "\nbut the page says\n" + "\n".join(step.expected)
                + f"\nIf that is right now: python -m tests.support.doc_examples {page}"
            )  # fmt: skip


@pytest.fixture(scope="module")
def store() -> Iterator[Shell]:
    with doc_examples.shell() as shell:
        yield shell


def only_step(page: str) -> Step:
    (step,) = steps_of(page)
    return step


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("color written at revision 9", "color written at revision 2"),
        ("", "color written at revision 3"),
    ],
)
def test_a_wrong_output_is_found(store: Shell, wrong: str, right: str) -> None:
    step = only_step(f"<!-- run -->\n```console\n$ raftkv put color red\n{wrong}\n```\n")
    printed = store.run(step)
    assert printed == [right]
    assert not matches(step.expected, printed)
    assert matches([right], printed)


def test_a_program_that_fails_is_found(store: Shell) -> None:
    step = only_step("<!-- run -->\n```python\nraise SystemExit('no')\n```\n")
    with pytest.raises(AssertionError, match="no"):
        store.run(step)


def test_what_differs_from_run_to_run_is_masked() -> None:
    assert matches(
        ['{"lease":"00aa00aa00aa00aa","expires_at":"2026-01-02T03:04:05.678Z","revision":7}'],
        ['{"lease":"11bb11bb11bb11bb","expires_at":"2027-01-02T03:04:05.111Z","revision":7}'],
    )
    assert matches(["a", "...", "d"], ["a", "b", "c", "d"])
    assert not matches(["a", "...", "d"], ["a", "b", "c"])


def test_an_example_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1"):
        steps_of("<!-- run -->\n```toml\na = 1\n```\n")
    with pytest.raises(ValueError, match="begins with"):
        steps_of("<!-- run -->\n```console\nraftkv get a\n```\n")
