"""Stores that were begun by an earlier version go on as they were begun.

A default that has changed since is not given to them: what is left out takes the store's own value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.extract.options import AUTO, Options
from pipelines.jobs.existing_output import recipe_at
from rrt_core.extractors import options_of_store


def as_begun(options: Options, overwrite: bool = False) -> Options:
    """The options with nothing left to a default that the store at `out` may have otherwise.

    overwrite  what stands at `out` does not count
    """
    recipe = {} if overwrite else recipe_at(options.out)
    dtype = options.global_dtype
    if dtype == AUTO:
        dtype = str(recipe.get("global_dtype", "float16"))
    extractor_option = options_as_begun(
        options.extractor, options.extractor_option, recipe.get("extractor")
    )
    return replace(options, global_dtype=dtype, extractor_option=extractor_option)


def options_as_begun(name: str, options: Mapping[str, Any], described_by: object) -> dict[str, Any]:
    """The extractor's options for more images of a store.

    described_by  what of its extractor the store's recipe has; of another extractor, or none, they
                  are as given
    """
    if isinstance(described_by, Mapping) and described_by.get("name") == name:
        return options_of_store(name, options, described_by.get("config") or {})
    return dict(options)
