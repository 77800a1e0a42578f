"""Which values an annotation such as `list[int]` or `str | None` allows, and what a text becomes.

A kind is one alternative of an annotation: `str | None` has two. What an unknown annotation means
is not known here, so it allows everything.
"""

import ast
import functools
import json
from collections.abc import Iterable, Iterator

from rolloutlib.extras import needs

with needs("notebooks"):
    import yaml

# A whole number is a float too; JSON has lists where Python has tuples.
TYPES = {"int": int, "float": int | float, "bool": bool, "str": str, "None": type(None)}
BRACKETS = {"list": list, "tuple": list, "dict": dict}
BOOLS = {"true": True, "false": False}


@functools.cache
def kinds_of(annotation: str) -> list[ast.expr]:
    """The alternatives of an annotation, in its order; None, if it is one of them, comes last."""
    try:
        found = _alternatives(ast.parse(annotation.strip(), mode="eval").body)
        return sorted(found, key=lambda kind: name_of(kind) == "None")
    except SyntaxError:
        return [ast.Name("Any")]


def name_of(kind: ast.expr) -> str:
    """The bare name of a kind: "list" for `list[int]` and `typing.List[int]`, "" for no name."""
    match kind:
        case ast.Subscript(value):
            return name_of(value)
        case ast.Constant(None):
            return "None"
        case ast.Name(name) | ast.Attribute(attr=name):
            return name.lower() if name.lower() in BRACKETS else name
    return ""


def is_known(kind: ast.expr) -> bool:
    return name_of(kind) in TYPES.keys() | BRACKETS.keys() or bool(_choices(kind))


def allows(kind: ast.expr, value: object) -> bool:
    """Types as people mean them: a bool is not a number.

    >>> [allows(kind, [1, None]) for kind in kinds_of("list[int] | list[int | None]")]
    [False, True]
    """
    name = name_of(kind)
    if choices := _choices(kind):
        return any(value == one and type(value) is type(one) for one in choices)
    if isinstance(value, bool) and name in ("int", "float"):
        return False
    if not isinstance(value, (TYPES | BRACKETS).get(name, object)):
        return False
    match name, kind:
        case "list", ast.Subscript(slice=inner):
            return _all_allowed(inner, value)
        case "dict", ast.Subscript(slice=ast.Tuple([_, inner])):
            return _all_allowed(inner, value.values())
    return True


def value_of(kind: ast.expr, text: str) -> object:
    """What a text becomes as this kind; what is not a word or a number is JSON or YAML.

    Raises ValueError where it cannot be read at all.

    >>> [value_of(kind, "007") for kind in kinds_of("str | int")]
    ['007', 7]
    """
    match name_of(kind):
        case "str":
            return text
        case "int" | "float" as name:
            return {"int": int, "float": float}[name](text)
        case "bool":
            return BOOLS.get(text.lower(), text)
        case "None":
            return None if text in ("None", "null") else text
    if text in _choices(kind):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise ValueError(str(problem)) from problem


def _alternatives(annotation: ast.expr) -> Iterator[ast.expr]:
    match annotation:
        case ast.BinOp(left, ast.BitOr(), right):
            yield from _alternatives(left)
            yield from _alternatives(right)
        case ast.Subscript(slice=inner) if name_of(annotation) == "Optional":
            yield from _alternatives(inner)
            yield ast.Constant(None)
        case ast.Subscript(slice=ast.Tuple(inner)) if name_of(annotation) == "Union":
            for one in inner:
                yield from _alternatives(one)
        case ast.Subscript(slice=ast.Tuple([inner, *_])) if name_of(annotation) == "Annotated":
            yield from _alternatives(inner)
        case ast.Constant(str(quoted)):
            yield from _alternatives(ast.parse(quoted.strip(), mode="eval").body)
        case _:
            yield annotation


def _all_allowed(annotation: ast.expr, values: Iterable[object]) -> bool:
    kinds = kinds_of(ast.unparse(annotation))
    return all(any(allows(kind, value) for kind in kinds) for value in values)


def _choices(kind: ast.expr) -> tuple[object, ...]:
    """The values of a `Literal`; nothing for any other kind."""
    match kind:
        case ast.Subscript(slice=inner) if name_of(kind) == "Literal":
            try:
                found = ast.literal_eval(inner)
            except ValueError:  # such as a member of an enumeration
                return ()
            return found if isinstance(found, tuple) else (found,)
    return ()
