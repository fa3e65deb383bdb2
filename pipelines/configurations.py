"""YAML configurations: files of the user, and those that the package ships by their names."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from pipelines.storage.place import open_place
from schemas.errors import UserError

SHIPPED = "configs"  # folder in this package; in a checkout the folder beside the packages is it


def read_configuration(path: str) -> dict[str, Any]:
    """The mapping in a YAML file or URL, or in ``configs/NAME.yaml`` as it is shipped.

    Raises UserError where there is none, or no mapping in it.
    """
    try:
        value = yaml.safe_load(_text(path)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: it must be a mapping of options")
    return value


def _text(path: str) -> str:
    try:
        return open_place(path).read("").decode()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        pass

    shipped = files("pipelines") / SHIPPED
    folder, _, name = path.partition("/")
    if folder == SHIPPED and ".." not in name.split("/") and (shipped / name).is_file():
        return (shipped / name).read_text(encoding="utf-8")
    raise UserError(f"{path}: there is no such configuration")
