"""What the documents tell a reader to do is done, and does what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.cli.app import cli
from tests.documentation import ROOT, Reader, blocks

DOCUMENTS = [
    path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if any(block.language in {"console", "python"} or block.comment for block in blocks(path))
]
_NOT_RUN = 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_document_run_and_print_what_they_show(document: Path, tmp_path: Path):
    reader = Reader(tmp_path)
    try:
        reader.follow(document)
    finally:
        reader.close()


def test_the_readme_is_run():
    assert ROOT / "README.md" in DOCUMENTS


def test_what_is_not_run_is_little_and_says_why():
    left = [
        block.comment
        for document in DOCUMENTS
        for block in blocks(document)
        if block.comment.startswith("not run")
    ]
    assert len(left) <= _NOT_RUN
    assert all(len(comment.removeprefix("not run: ").split()) > 2 for comment in left)


def test_a_wrong_document_would_be_noticed(tmp_path: Path):
    for number, text in enumerate(
        (
            "```console\n$ false\n```\n",
            "```console\n$ echo one\ntwo\n```\n",
            "```python\nassert 1 == 2\n```\n",
            "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        )
    ):
        document = tmp_path / f"{number}.md"
        document.write_text(text, encoding="utf-8")
        with pytest.raises(AssertionError):
            Reader(tmp_path / str(number)).follow(document)


def test_the_readme_shows_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in cli.commands if f"`{name}`" not in text] == []
