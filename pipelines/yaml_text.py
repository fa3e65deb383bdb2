"""YAML of a user: text, numbers, lists and mappings, and nothing that a small file can blow up.

PyYAML's safe loader is safe from code, not from size: aliases may stand for gigabytes, brackets
may nest beyond the stack, a key may stand twice or be a list, and a wrong number raises whatever
`int` raises.
"""

from __future__ import annotations

from typing import Any

import yaml

from schemas.errors import UserError

MOST_BYTES = 1_000_000
MOST_DEPTH = 30
MOST_VALUES = 100_000  # with each alias counted as what it stands for
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}
_MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`
_DATE = "tag:yaml.org,2002:timestamp"
_COLLECTIONS = {f"tag:yaml.org,2002:{kind}" for kind in ("seq", "map")}


class _Refused(Exception):
    """What this reader does not take: a clause."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which looks at each node before anything is made of it.

    A date is the text that it is written as.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  of PyYAML's class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[yaml.Node, int] = {}  # values that a node stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        line = self.peek_event().start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            node: yaml.Node | None = super().compose_node(parent, index)
            if node not in self.sizes:
                raise _Refused(f"the alias of line {line} stands within what it stands for")
            return node

        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise _Refused(f"line {line} nests deeper than {MOST_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None:
            self.sizes[node] = self._size(node, line)
        return node

    def _size(self, node: yaml.Node, line: int) -> int:
        """Values in a node. Raises _Refused where they are too many, or of no plain kind."""
        scalar = isinstance(node, yaml.ScalarNode)
        if node.tag not in (_PLAIN | {_MERGE} if scalar else _COLLECTIONS):
            raise _Refused(f"line {line} has a tag {node.tag!r}; only plain values are read")

        size = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            size += sum(self.sizes[key] + self.sizes[value] for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(self.sizes[value] for value in node.value)
        if size > MOST_VALUES:
            raise _Refused(f"line {line} stands for more than {MOST_VALUES:,} values by aliases")
        return size


def _check_keys(node: yaml.MappingNode) -> None:
    """Raise _Refused for a key that is no text, or that stands twice."""
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in ("tag:yaml.org,2002:str", _MERGE):
            text = f" {key.value!r}" if isinstance(key, yaml.ScalarNode) else ""
            raise _Refused(f"the key{text} of line {line} is no text; quote it")
        if key.value in seen:
            raise _Refused(f"the key {key.value!r} of line {line} stands twice")
        seen.add(key.value)


def parse_yaml(data: bytes | str, where: str) -> Any:
    """The text, number, truth value, None, list or mapping that a YAML text holds.

    Keys of mappings are texts. Raises UserError, which names `where`: a file, an option.
    """
    if len(data) > MOST_BYTES:
        raise UserError(f"{where}: it has more than {MOST_BYTES:,} bytes; it is no configuration")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        loader = _Loader(text)
        return loader.get_single_data()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start:,} is no UTF-8; save the file as UTF-8 text"
        ) from None
    except _Refused as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # noqa: BLE001  PyYAML's, and what int, float and dict raise
        raise UserError(f"{where}: it is no valid YAML: {_words(error)}") from None


def _words(error: Exception) -> str:
    """What is wrong, in a line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        text = f"line {error.problem_mark.line + 1}: {error.problem}"
    else:
        text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."
