"""Extractors and rerankers that do not keep the contract: each mistake has its sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rrt_core import extractors, rerankers
from rrt_core.extractors import Description, Extractor, Failure
from rrt_core.extractors.answers import checked
from rrt_core.images import Image
from rrt_core.rerankers import Locals, Reranker
from schemas.errors import UserError
from tests.support.pictures import picture
from tests.support.variants.chamfer import Chamfer
from tests.support.variants.colours import Colours


class NoMethod(Extractor):
    """Without `describe`."""


class NoAttributes(Extractor):
    """Without most of what `__init__` must set."""

    def __init__(self) -> None:
        self.name, self.revision = "none", 1
        self.global_dim, self.local_dim, self.scales = 3, 3, (1.0,)

    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """Never called."""
        return []


class Nameless(Reranker):
    """Without name and revision."""

    def __init__(self) -> None:
        self.weights_sha256, self.config = "", {}

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """Never called."""
        return np.zeros(len(pairs), np.float32)


class One(Chamfer):
    """One logit, however many pairs."""

    def score(self, pairs: Sequence[tuple[Locals, Locals]]) -> np.ndarray:
        """Wrong in number."""
        return np.zeros(1, np.float32)


@pytest.fixture
def good() -> Description:
    pixels = np.asarray(picture(1))
    [answer] = Colours().describe([Image("a/b.png", pixels, pixels.shape[1], pixels.shape[0])])
    assert isinstance(answer, Description)
    return answer


@pytest.mark.parametrize(
    ("package", "name", "sentence"),
    [
        (extractors, "NoMethod", r"NoMethod' does not define describe\."),
        (extractors, "NoAttributes", r"NoAttributes does not set weights_sha256 and config\."),
        (extractors, "Absent", r"cannot be found: .*test_answers holds no 'Absent'\."),
        (rerankers, "Nameless", r"Nameless does not set name and revision\."),
    ],
)
def test_a_class_that_lacks_something(package: Any, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        package.create(f"{__name__}:{name}")


def test_answers_that_keep_the_contract_are_given_back(good: Description) -> None:
    failure = Failure("too dark", "dark")
    assert checked(Colours(), [good, failure], 2) == [good, failure]
    nothing = extractors.global_only(good.global_descriptor, Colours().local_dim)
    assert checked(Colours(), [nothing], 1) == [nothing]


def test_answers_of_another_number_kind_or_shape_end_the_command(good: Description) -> None:
    wrong: list[tuple[list[Any], str]] = [
        ([], "gave 0 answers to 1 images"),
        ([good, good], "gave 2 answers to 1 images"),
        ([None], "answered with NoneType"),
        (
            [replace(good, global_descriptor=good.global_descriptor[:9])],
            r"global_descriptor of shape \(9,\); .* must be \(64,\)",
        ),
        (
            [replace(good, descriptors=good.descriptors[:, :9])],
            r"descriptors of shape \(16, 9\); .* must be \(16, 24\)",
        ),
        ([replace(good, strength=good.strength[:3])], r"strength of shape \(3,\)"),
        ([replace(good, xy=good.xy[:, :1])], r"xy of shape \(16, 1\)"),
    ]
    for answers, sentence in wrong:
        with pytest.raises(UserError, match=rf"'colours' .*{sentence}"):
            checked(Colours(), answers, 1)


def test_a_descriptor_that_is_not_of_length_1_fails_its_image(good: Description) -> None:
    for wrong, sentence in (
        (replace(good, global_descriptor=3 * good.global_descriptor), "a global .* length 3, not"),
        (replace(good, global_descriptor=good.global_descriptor * np.nan), "a global .* nan"),
        (replace(good, descriptors=good.descriptors * 0), "a local .* length 0, not 1"),
    ):
        [answer, other] = checked(Colours(), [wrong, good], 2)
        assert isinstance(answer, Failure) and answer.error_class == "bad_descriptor"
        assert other is good
        assert re.search(sentence, answer.reason)


def test_a_reranker_gives_each_pair_one_logit() -> None:
    rows = np.eye(4, dtype=np.float32)
    one = Locals(rows[0], rows, rows[:, :2], np.zeros(4, np.uint8), np.ones(4, np.float32), (1.0,))
    assert len(One().score_query(one, [one]).logit) == 1
    with pytest.raises(UserError, match=r"'chamfer' gave logits of shape \(1,\) to 3 pairs"):
        One().score_query(one, [one] * 3)
