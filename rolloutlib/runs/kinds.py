"""The type that an annotation such as `list[int]` or `str | None` names, for pydantic to check.

Nothing of a notebook is executed for this. What an unknown annotation allows is not known here, so
it is `Any`.
"""

import ast
import functools
import json
import types
import typing
from typing import Any

from rolloutlib.extras import needs

with needs("notebooks"):
    from pydantic import TypeAdapter

NAMES = {kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)}
NAMES |= {"List": list, "Tuple": tuple, "Dict": dict}
NAMES |= {"Optional": typing.Optional, "Union": typing.Union}

adapter_of = functools.cache(TypeAdapter)


@functools.cache
def type_of(annotation: str, or_none: bool = False) -> Any:
    """The type that an annotation names, and also None if asked.

    >>> type_of("typing.List[int]"), type_of("torch.dtype"), type_of("'int'", True)
    (list[int], typing.Any, int | None)
    """
    try:
        kind = _named(ast.parse(annotation.strip(), mode="eval").body)
        kind = kind | None if or_none else kind
        adapter_of(kind)
    except Exception:  # typing and pydantic raise whatever an odd annotation runs into
        return Any
    return Any if Any in alternatives(kind) else kind


def alternatives(kind: Any) -> set[object]:
    """The bare types of a union, or of a type by itself: `list` for `list[int]`."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if is_union else [kind]
    return {typing.get_origin(one) or one for one in kinds}


def checked(kind: Any, value: object) -> object:
    """A value as JSON holds it: a list for a tuple, 1.0 where a float is due.

    Raises ValueError or TypeError where the type does not allow it. A bool is not a number, and the
    keys of a dict are text: papermill writes no others.
    """
    found = adapter_of(kind).validate_json(json.dumps(value), strict=True)
    if not (_text_keys(value) and _text_keys(found)):
        raise ValueError(f"expected a dict whose keys are text, got {value!r}")
    if isinstance(found, bool) != isinstance(value, bool):  # pydantic's Literal[1] takes True
        raise ValueError(f"expected {kind}, got {value!r}")
    return json.loads(json.dumps(found))


def _text_keys(value: object) -> bool:
    match value:
        case dict():
            return all(isinstance(key, str) for key in value) and _text_keys([*value.values()])
        case list() | tuple():
            return all(map(_text_keys, value))
    return True


def _named(node: ast.expr) -> Any:
    match node:
        case ast.Constant(str(quoted)):
            return type_of(quoted)
        case ast.Constant(value):  # None, or the dots of `tuple[int, ...]`
            return value
        case ast.BinOp(left, ast.BitOr(), right):
            return _named(left) | _named(right)
        case ast.Name(name) | ast.Attribute(attr=name):
            return NAMES.get(name, Any)
        case ast.Tuple(inner):
            return tuple(_named(one) for one in inner)
        case ast.Subscript(ast.Name(name) | ast.Attribute(attr=name), inner):
            match name:
                case "Literal":
                    return typing.Literal[ast.literal_eval(inner)]
                case "Annotated" | "Final":
                    return _named(getattr(inner, "elts", [inner])[0])
                case _ if name in NAMES:
                    return NAMES[name][_named(inner)]
    return Any
