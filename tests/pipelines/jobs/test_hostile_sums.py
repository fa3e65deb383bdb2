"""Whatever units count, and whatever numbers they hold: what does not add up, or is not finite, is
never written as a finished output.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jobs.attempt import refuse_not_finite
from pipelines.jobs.manifests import read_manifest, write_manifest
from pipelines.storage.place import open_place
from rrt_core.checkpoints import save_checkpoint
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from schemas.errors import Damaged, JobFailed
from schemas.manifest import Counts, Marker, summed_notes
from schemas.ranking import RANKING
from schemas.scores import SCORES
from tests.support.faulty_worker import faulty_job
from tests.support.hostile import assert_one_sentence, inputs

COUNTS = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda pair: Counts(sum(pair), *pair))


@inputs(40)
@given(st.lists(COUNTS, max_size=4))
def test_only_what_adds_up_is_finished(counts: list[Counts]) -> None:
    """Units of faulty_job have three inputs each."""
    place = open_place("memory://finished")
    place.remove("manifest.json")
    job = faulty_job(place.url, *["ok"] * len(counts))
    markers = [
        Marker(unit.name, job.recipe_hash, unit.slice, (), count)
        for unit, count in zip(job.units, counts, strict=True)
    ]
    if counts and all(count.inputs == 3 for count in counts):
        made = write_manifest(place, job, markers, 0.0).counts
        assert made == sum(counts, Counts(0, 0))
        return

    with pytest.raises(JobFailed) as refused:
        write_manifest(place, job, markers, 0.0)
    assert_one_sentence(str(refused.value))
    assert read_manifest(place) is None


@inputs(60)
@given(st.lists(st.floats(width=32), min_size=1, max_size=6), st.booleans())
def test_scores_are_finite(logits: list[float], ranked: bool) -> None:
    """A ranking has NaN for what was not reranked; scores have a value for each pair."""
    count = len(logits)
    columns = {"query_id": ["q"] * count, "record_id": [f"r{row}" for row in range(count)]}
    columns |= {"global_score": [0.5] * count, "logit": logits}
    columns |= {"rank": range(count), "reranked": [True] * count} if ranked else {}
    table = pa.table(
        {name: columns[name] for name in (RANKING if ranked else SCORES).names},
        schema=RANKING if ranked else SCORES,
    )
    undefined = ("logit",) if ranked else ()
    if ranked or all(map(math.isfinite, logits)):
        refuse_not_finite(table, "rerank", undefined)
        return

    with pytest.raises(Damaged) as refused:
        refuse_not_finite(table, "rerank")
    first = next(row for row, value in enumerate(logits) if not math.isfinite(value))
    assert f"logit of q and r{first} is" in str(refused.value)
    assert_one_sentence(str(refused.value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_not_written(value: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RerankingTransformer(ModelConfig())
    name, weight = list(model.named_parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[0] = value
    with pytest.raises(JobFailed, match=f"the weights {name} are not finite"):
        save_checkpoint(str(tmp_path / "weights.safetensors"), model)
    assert list(tmp_path.iterdir()) == []


@inputs(40)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["least_candidates", "short_lists", "why"]),
            st.one_of(st.integers(0, 9), st.text(max_size=3)),
        )
    )
)
def test_notes_are_summed(noted: list[dict[str, int | str]]) -> None:
    total = summed_notes(noted)
    assert total.keys() == {name for notes in noted for name in notes}
    for name, note in total.items():
        numbers = [notes[name] for notes in noted if name in notes]
        if all(isinstance(number, int) for number in numbers):
            assert note == (np.min if name.startswith("least_") else np.sum)(numbers)
