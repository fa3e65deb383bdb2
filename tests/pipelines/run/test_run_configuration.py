"""The configuration of `run`: no entry is ignored, alone or beside any other."""

from __future__ import annotations

import dataclasses
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.run.config import DECIDED, IMPORT, TEXTS, Stages, read_config, stages_of
from pipelines.stages import COMMANDS, STAGES_OF_RUN, load
from schemas.errors import UserError
from tests.pipelines.option_cases import options_of
from tests.support.command_line import command

BASES: dict[str, dict[str, Any]] = {
    "queries": {"out": "o", "images": "i", "queries": "q"},
    "truth": {"out": "o", "images": "i", "ground_truth": "g"},
    "sources": {"out": "o", "images": "i", "sources": "s", "ground_truth": "g"},
    "import": {"out": "o", IMPORT: {"format": "npy", "gallery": "g.npy", "queries": "q.npy"}},
}


def another(field: dataclasses.Field[Any], kind: Any) -> Any:
    """A good value of an option that is not its default."""
    if field.name == "ensemble":
        return ("0.25", "0.75")
    if field.metadata["choices"]:
        return next(one for one in field.metadata["choices"] if one not in ("", field.default))
    if kind is bool:
        return not field.default
    if kind is int:
        return 17
    if kind is float:
        return 9.5
    if "dict" in str(kind):
        return {"a-key": 1}
    return ("a-name",) if "tuple" in str(kind) else f"a-{field.name}"


ENTRIES = {name: f"a-{name}" for name in TEXTS} | {
    f"{stage}.{field.name}": another(field, kind)
    for stage in (*STAGES_OF_RUN, IMPORT)
    for field, kind in options_of(stage)
    if field.name in load(COMMANDS[stage].options).__dataclass_fields__
}


def with_entries(base: dict[str, Any], *names: str) -> dict[str, Any]:
    """A configuration with these entries set."""
    made = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for name in names:
        stage, _, option = name.partition(".")
        if option:
            made.setdefault(stage, {})[option] = ENTRIES[name]
        else:
            made[stage] = ENTRIES[name]
    return made


def unused(stages: Stages, name: str) -> bool:
    """Whether no option of any stage has an entry's value."""
    value = ENTRIES[name]
    values = [
        getattr(stage, field.name)
        for stage in vars(stages).values()
        if stage is not None
        for field in dataclasses.fields(stage)
    ]
    below = name == "out" and any(str(one).startswith(f"{value}/") for one in values)
    return value not in values and not below


def is_named(name: str, sentence: str) -> bool:
    """Whether a sentence names an entry, by itself or by its stage."""
    words = re.findall(r"\w+", sentence.replace("--", "").replace("-", "_"))
    return not set(name.split(".")).isdisjoint(words)


def refusal(config: dict[str, Any], *names: str) -> str:
    """Why a configuration is refused; "" where it is taken, and then every entry has an effect."""
    try:
        stages = stages_of(config, "c.yaml")
    except UserError as error:
        return str(error)
    assert not [name for name in names if unused(stages, name)], names
    return ""


@pytest.mark.parametrize("base", BASES)
def test_every_pair_of_entries_has_an_effect_or_is_refused_by_name(base: str) -> None:
    alone = {name: refusal(with_entries(BASES[base], name), name) for name in ENTRIES}
    for name, sentence in alone.items():
        assert not sentence or is_named(name, sentence), (name, sentence)

    for pair in combinations(ENTRIES, 2):
        sentence = refusal(with_entries(BASES[base], *pair), *pair)
        if sentence and not any(alone[name] for name in pair):
            assert all(is_named(name, sentence) for name in pair), (pair, sentence)


def test_most_entries_are_taken() -> None:
    taken = [name for name in ENTRIES if not refusal(with_entries(BASES["truth"], name), name)]
    assert len(taken) > len(ENTRIES) / 3
    assert set(DECIDED) == {*STAGES_OF_RUN, IMPORT}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"queries": "elsewhere"}, "'queries' and 'ground_truth' exclude each other"),
        ({"title": {"A": "b"}}, "title is {'A': 'b'}; it must be one text"),
        ({"extract.take": "queries"}, "extract.take has no effect beside 'ground_truth'"),
        ({"search.shortlist": 7}, "'search.shortlist' is 7 and 'rerank.shortlist' is 5"),
        ({"images.x": 1}, "--set images.x: images is "),
        ({"rerank": [1]}, "rerank must be a mapping"),
        ({"rerank.shortlist": True}, "shortlist is True; it must be a whole number"),
        ({"rerank.shortlist": None}, "shortlist is None; it must be a whole number"),
        ({"extract.image_seconds": float("inf")}, "--image-seconds is inf"),
        ({"extract.extractor": ["a"]}, "extractor is ['a']; it must be text"),
        ({"import.format": "npy"}, "'import' and 'extract' exclude each other"),
    ],
)
def test_a_change_that_contradicts_is_refused(
    changes: dict[str, Any], sentence: str, configuration: Path
) -> None:
    changes = {"out": "o", **changes}
    with pytest.raises(UserError) as refused:
        stages_of(read_config(str(configuration), changes), "c.yaml")
    assert sentence in str(refused.value)


def test_a_run_imports_its_stores(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    gallery = rng.standard_normal((30, 8)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", gallery)
    np.save(tmp_path / "queries.npy", gallery[:3])
    for side, count in (("gallery", 30), ("queries", 3)):
        names = [f"{side}/{number}.jpg" for number in range(count)]
        (tmp_path / f"{side}.txt").write_text("\n".join(names))
    (tmp_path / "run.yaml").write_text(
        f"out: {tmp_path}/out\n"
        "rerank: {reranker: mutual_nn}\n"
        "import:\n"
        "  format: npy\n"
        "  extractor_name: mine\n"
        f"  gallery: {{input: {tmp_path}/gallery.npy, list: {tmp_path}/gallery.txt}}\n"
        f"  queries: {{input: {tmp_path}/queries.npy, list: {tmp_path}/queries.txt}}\n"
    )
    ended = command("run", "--config", tmp_path / "run.yaml", "--workers", "1")
    assert (tmp_path / "out" / "gallery" / "manifest.json").exists(), ended
    assert (tmp_path / "out" / "run" / "shortlist" / "manifest.json").exists(), ended
