"""YAML configurations: files of the user, and those that the package ships by their names."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from pipelines import yaml_text
from pipelines.storage.input_file import read_input
from pipelines.storage.place import open_place
from schemas.errors import UserError

SHIPPED = "configs"  # folder in this package; in a checkout the folder beside the packages is it


def read_yaml(path: str, what: str) -> Any:
    """What a YAML file or URL holds. `what` it is, for the sentences of the UserError."""
    return yaml_text.parse_yaml(read_input(path, what, yaml_text.MOST_BYTES), path)


def read_configuration(path: str) -> dict[str, Any]:
    """The mapping in a YAML file or URL, or in ``configs/NAME.yaml`` as it is shipped.

    Raises UserError where there is none, or no mapping in it.
    """
    folder, _, name = path.partition("/")
    shipped = files("pipelines") / SHIPPED / name
    is_ours = folder == SHIPPED and ".." not in name.split("/") and "\0" not in name
    if is_ours and not open_place(path).exists() and shipped.is_file():
        value = yaml_text.parse_yaml(shipped.read_bytes(), path)
    else:
        value = read_yaml(path, "configuration")

    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: it must be a mapping of options")
    return value
