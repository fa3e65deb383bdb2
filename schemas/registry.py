"""Things that are made by name: built-in ones, those of installed packages, a user's own class.

A variant is one new file and one line in its registry. A package adds one without touching this
software, by an entry point of the registry's group::

    [project.entry-points."rrt_pipelines.extractors"]
    mine = "my_package.my_extractor:Mine"
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from schemas.errors import UserError


@dataclass(frozen=True)
class Registry:
    """The names of one kind of thing.

    kind      what it is called in sentences, such as "extractor"
    group     the entry points' group, such as "rrt_pipelines.extractors"
    built_in  name -> ``package.module:object``; modules are named, not imported
    """

    kind: str
    group: str
    built_in: Mapping[str, str]

    def names(self) -> list[str]:
        """All names, built-in ones first."""
        installed = {entry.name for entry in metadata.entry_points(group=self.group)}
        return [*self.built_in, *sorted(installed - self.built_in.keys())]

    def target(self, name: str) -> str | None:
        """``package.module:object`` of a name; None for one that nobody registered.

        An installed package cannot take the place of a built-in name.
        """
        if name in self.built_in:
            return self.built_in[name]

        for entry in metadata.entry_points(group=self.group):
            if entry.name == name:
                return entry.value

        return None

    def load(self, name: str, target: str = "") -> Any:
        """The object of a name, or of a `target` such as ``package.module:Class``.

        Raises UserError where the module cannot be imported, or does not hold it.
        """
        module, _, attribute = (target or self.target(name) or name).partition(":")

        try:
            holder = importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"The {self.kind} {name!r} cannot be imported ({error}): install what is missing, "
                "or correct the name."
            ) from error

        if not hasattr(holder, attribute):
            raise UserError(
                f"The {self.kind} {name!r} cannot be found: {module} holds no {attribute!r}."
            )
        return getattr(holder, attribute)

    def load_class(self, name: str, base: type, target: str = "") -> Any:
        """As `load`, of a class that can be made.

        Raises UserError where it is not derived from `base`, or lacks a method that `base` needs.
        """
        made = self.load(name, target)

        if not (isinstance(made, type) and issubclass(made, base)):
            raise UserError(
                f"The {self.kind} {target or name!r} is not a class derived from "
                f"{base.__module__}.{base.__qualname__}."
            )

        if missing := sorted(getattr(made, "__abstractmethods__", ())):
            raise UserError(f"The {self.kind} {name!r} does not define {' and '.join(missing)}.")

        return made

    def load_function(self, name: str) -> Callable[..., Any]:
        """As `load`, of a registered name. Raises UserError where it cannot be called."""
        made = self.load(name)

        if not callable(made):
            raise UserError(f"The {self.kind} {name!r} is not a function: {self.target(name)}.")

        return made

    def check_attributes(self, made: Any, attributes: Iterable[str]) -> None:
        """Raise UserError for attributes that a class's `__init__` should have set and did not."""
        if missing := [one for one in attributes if not hasattr(made, one)]:
            where = f"{type(made).__module__}.{type(made).__qualname__}"
            raise UserError(f"The {self.kind} {where} does not set {' and '.join(missing)}.")

    def check_options(
        self, name: str, made: Any, options: Collection[str], given: Collection[str] = ()
    ) -> None:
        """Raise UserError for options that a class does not have, or needs and does not get.

        given  parameters that do not come from the user
        """
        parameters = [
            one for one in inspect.signature(made).parameters.values() if one.name not in given
        ]
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
        known = {
            one.name: one
            for one in parameters
            if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
        }

        for option in options:
            if option not in known and not takes_any:
                raise UserError(
                    f"The {self.kind} {name!r} has no option {option!r}; it has: "
                    f"{', '.join(known) or 'none'}."
                )

        for parameter in known.values():
            if parameter.default is parameter.empty and parameter.name not in options:
                raise UserError(f"The {self.kind} {name!r} needs the option {parameter.name!r}.")
