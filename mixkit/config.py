"""YAML files to checked settings: the one way in which mixkit reads configuration.

A file may `include:` others (paths beside it), later values win, and `key.sub=value` words from the command line win
over all of them. What comes out is checked against a pydantic schema before anything else happens; every complaint
names the file, the key and what to do.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mixkit.errors import UserError


class Schema(BaseModel):
    """A table of keys: unknown ones are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SchemaT = TypeVar("SchemaT", bound=BaseModel)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str], schema: type[SchemaT]) -> SchemaT:
    """Read `path`, its includes and the `key=value` words, and return them as a checked `schema`.

    Raises:
        UserError: no such file, broken YAML, an unknown key, a value of the wrong kind.
    """
    return validate(schema, read_yaml(path, overrides), str(path))


def read_yaml(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file with its includes, apply dot-list `overrides` and resolve `${…}` references."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = _read_with_includes(Path(path), ())
    for word in overrides:
        if "=" not in word:
            raise UserError(f"{word!r}: an override is written key=value, for example seed=1")
    try:
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(merged, resolve=True)  # type: ignore[return-value]
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from None


def validate(schema: type[SchemaT], values: Any, source: str) -> SchemaT:
    """Check `values` against `schema`; `source` (a file's name) opens each complaint."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [f"{source}: {_explain(schema, item)}" for item in error.errors()]
        raise UserError("\n".join(lines)) from None


def _read_with_includes(path: Path, seen: tuple[Path, ...]) -> Any:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if path.resolve() in seen:
        raise UserError(f"{path}: include: the file includes itself")
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, a YAML file is wanted") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: a table of keys is wanted at the top")
    includes = config.pop("include", None) or []
    if isinstance(includes, str):
        includes = [includes]
    parts = [_read_with_includes(path.parent / name, (*seen, path.resolve())) for name in includes]
    return OmegaConf.merge(*parts, config)


def _explain(schema: type[BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    kind = item["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(schema, location[:-1]), n=1)
        return f"{key}: unknown key" + (f" (did you mean {near[0]}?)" if near else "")
    if kind == "missing":
        return f"{key}: is missing"
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return message
    value = item.get("input")
    shown = "" if isinstance(value, (dict, list)) else f" (found {value!r})"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


def _keys_at(schema: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys that the table at `location` knows; empty where that table is free-form."""
    models: list[type[BaseModel]] = [schema]
    for part in location:
        inner: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                inner += _models_in(model.model_fields[part].annotation)
        models = inner
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
