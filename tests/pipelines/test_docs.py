"""What the docs say of Python: docs/python.md runs as a program, and each name can be imported."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import pipelines
from benchmarks.making import make_limits
from pipelines.stages import COMMANDS, load
from tests.support.pictures import picture

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DOTTED = re.compile(r"(?<![\w./:-])(?:pipelines|rrt_core|schemas)(?:\.\w+)+")


def find(name: str) -> Any:
    """What a dotted name means. Raises ImportError or AttributeError."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if error.name != ".".join(parts[:count]):
                raise
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise ImportError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_docs_can_be_imported(page: Path) -> None:
    for name in sorted(set(DOTTED.findall(page.read_text(encoding="utf-8")))):
        find(name)


def test_names_are_seen_in_pages() -> None:
    text = "`rrt_core.images.decode(...)`, `schemas.errors`; rrt_core/index.py; a/pipelines.b"
    assert DOTTED.findall(text) == ["rrt_core.images.decode", "schemas.errors"]
    with pytest.raises(AttributeError):
        find("rrt_core.images.no_such_name")


def test_the_page_of_limits_is_what_the_code_says() -> None:
    assert make_limits.PAGE.read_text(encoding="utf-8") == make_limits.page(), (
        "python benchmarks/making/make_limits.py makes it again"
    )


def test_the_public_names_are_there() -> None:
    assert all(getattr(pipelines, name) is not None for name in pipelines.__all__)
    for name, command in COMMANDS.items():
        package = getattr(pipelines, name, None) if name.isidentifier() else None
        if package is not None:
            assert package.Options is load(command.options)
            assert package.run is load(command.run)
    with pytest.raises(AttributeError, match="no attribute 'fish'"):
        pipelines.fish  # noqa: B018
    with pytest.raises(AttributeError, match=r"'pipelines.extract' has no attribute 'fish'"):
        pipelines.extract.fish  # noqa: B018


def test_the_program_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for scene in range(4):
        for shot in range(4):
            folder = tmp_path / "photos" / ("gallery" if shot else "queries")
            folder.mkdir(parents=True, exist_ok=True)
            view = picture(scene).crop((3 * shot, 2 * shot, 90 + shot, 60 + shot))
            view.save(folder / f"{scene}_{shot}.png")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert program.count('extractor="efficientnet"') == 1
    exec(program.replace('"efficientnet"', '"tests.tiny_extractor:TinyExtractor"'), {})

    printed = capsys.readouterr().out
    assert "gallery 12 described, 0 failed" in printed and "12 (12, 96) float16" in printed
    assert "search: --nprobe is 0; it must be at least 1" in printed
    assert len(re.findall(r"mAP \d", printed)) >= 2
    assert (tmp_path / "judged" / "report" / "report.html").exists()
