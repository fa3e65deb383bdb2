"""Our extractors under Beam's RunInference: the same descriptions as a store's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.engines.beam.model_handler import ExtractorModelHandler
from rrt_core.extractors import Description, Failure, create
from rrt_core.images import decode
from schemas.errors import UserError
from tests.support.watching import EXTRACTOR

ROOT = Path(__file__).resolve().parents[3]


def inferred(examples: list[tuple[str, bytes]], handler: Any, folder: Path) -> dict[str, Any]:
    """What the pipeline gives of each example."""
    folder.mkdir()

    def keep(one: tuple[str, Description | Failure]) -> None:
        name, answer = one
        if isinstance(answer, Failure):
            (folder / f"{name}.txt").write_text(answer.error_class)
        else:
            np.savez(folder / name, descriptor=answer.global_descriptor, locals=answer.descriptors)

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(examples) | RunInference(handler) | beam.Map(keep)
    return {
        path.stem: path.read_text() if path.suffix == ".txt" else dict(np.load(path))
        for path in folder.iterdir()
    }


def test_descriptions_are_those_of_the_extractor(photographs: Path, tmp_path: Path) -> None:
    files = sorted(photographs.iterdir())[:5]
    examples = [(path.stem, path.read_bytes()) for path in files]
    handler = ExtractorModelHandler(EXTRACTOR, {"max_locals": 4}, batch=2)
    answers = inferred([*examples, ("broken", b"no picture")], handler, tmp_path / "kept")
    assert answers.pop("broken") == "unreadable"

    extractor = create(EXTRACTOR, max_locals=4)
    for name, data in examples:
        (expected,) = extractor.describe([decode(data, name)])
        assert isinstance(expected, Description)
        assert np.array_equal(answers[name]["descriptor"], expected.global_descriptor)
        assert np.array_equal(answers[name]["locals"], expected.descriptors)
    assert len(answers) == 5


def test_globals_alone(photographs: Path, tmp_path: Path) -> None:
    path = next(photographs.iterdir())
    handler = ExtractorModelHandler(EXTRACTOR, with_locals=False)
    answers = inferred([(path.stem, path.read_bytes())], handler, tmp_path / "kept")
    assert answers[path.stem]["locals"].shape == (0, 128)
    assert handler.get_num_bytes([("a", b"123"), ("b", b"4")]) == 4
    assert handler.get_metrics_namespace() == "rrt_pipelines"


def test_what_is_no_extractor() -> None:
    with pytest.raises(UserError, match="There is no extractor 'no_such'"):
        ExtractorModelHandler("no_such").load_model()


def test_the_example_of_the_docs(photographs: Path, tmp_path: Path) -> None:
    """As it stands there, but for an extractor that starts at once."""
    text = (ROOT / "docs/engines.md").read_text()
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert example.count('"efficientnet"') == 1
    (tmp_path / "example.py").write_text(example.replace('"efficientnet"', repr(EXTRACTOR)))
    (tmp_path / "photos").symlink_to(photographs)
    run = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("(96,)") == 30
