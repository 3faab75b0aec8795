"""YAML documents for people: every error carries the path inside the document, the line, and the nearest valid key."""

from __future__ import annotations

import types
import typing
from typing import Any

import pydantic
import yaml

from hlt_train.errors import UsageError, nearest

__all__ = ["explain", "fields_at", "parse_yaml"]

Lines = dict[tuple[str | int, ...], int]


def parse_yaml(text: str, where: str) -> tuple[Any, Lines]:
    """The content of a YAML document and the line of every key and item, by path. A key given twice is an error: YAML would keep the last silently."""
    loader = yaml.SafeLoader(text)
    lines: Lines = {}
    try:
        node = loader.get_single_node()
        if node is None:
            raise UsageError("the document is empty", where=where)
        _walk(node, (), lines, where)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise UsageError(f"not YAML: {getattr(error, 'problem', None) or error}", where=place) from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: tuple[str | int, ...], lines: Lines, where: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            if inner in lines:
                raise UsageError(f"key '{'.'.join(map(str, inner))}' is given twice", where=f"{where}, lines {lines[inner]} and {key.start_mark.line + 1}")
            lines[inner] = key.start_mark.line + 1
            _walk(value, inner, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, where)


def explain(error: pydantic.ValidationError, model: type[pydantic.BaseModel], lines: Lines, where: str) -> UsageError:
    """A pydantic error as the user reads it: one line per problem, each with its path and line; `near` holds the keys nearest to the first unknown one."""
    problems: dict[str, list[str]] = {}
    near: tuple[str, ...] = ()
    for item in error.errors():
        keys = tuple(str(part) if not isinstance(part, int) else part for part in item["loc"])
        path: tuple[str | int, ...] = ()
        for part in keys:  # pydantic adds the branches of unions to the path: keep only what the document has
            if (*path, part) in lines:
                path = (*path, part)
        if item["type"] == "missing":
            text = f"'{keys[-1]}' is missing"
        elif item["type"] == "extra_forbidden":
            known = fields_at(model, path[:-1])
            text = f"unknown key '{keys[-1]}'"
            near = near or nearest(str(keys[-1]), known) or tuple(sorted(known))
        else:
            text = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            text = text if item["type"] == "value_error" else f"expected {text}"
        place = f"{'.'.join(map(str, path)) or 'the document'} (line {lines.get(path, 1)})"
        problems.setdefault(place, []).append(text)
    first, *rest = [f"{place}: {' or '.join(dict.fromkeys(texts))}" for place, texts in problems.items()]
    return UsageError("\n  also ".join([first, *rest]), where=where, near=near)


def fields_at(model: Any, path: tuple[str | int, ...]) -> set[str]:
    """Field names of the model at `path` inside `model`, following mappings, lists and unions."""
    models = [model]
    for part in path:
        found: list[Any] = []
        for candidate in models:
            if isinstance(candidate, type) and issubclass(candidate, pydantic.BaseModel):
                if part in candidate.model_fields:
                    found += _unfold(candidate.model_fields[str(part)].annotation)
            elif typing.get_origin(candidate) in (dict, list, tuple):
                found += _unfold(typing.get_args(candidate)[-1])
        models = found
    return {name for m in models if isinstance(m, type) and issubclass(m, pydantic.BaseModel) for name in m.model_fields}


def _unfold(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _unfold(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for option in typing.get_args(annotation) for inner in _unfold(option)]
    return [annotation]
