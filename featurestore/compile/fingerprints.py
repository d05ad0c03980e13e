"""Fingerprints: 16 hex digits that tell whether two definitions are the same.

All are BLAKE2b over canonical JSON, and equal on every machine. Three questions, three
fingerprints: did anything declared change (`definition_fingerprint`), do the rows of the table
change (`table_fingerprint`), did the code of an on-demand function change (`code_fingerprint`).

Of a function count: its syntax tree, the values of its defaults, of the variables it closes over
and of the globals it names, and the same of the functions and classes of its own definitions that
it uses. Comments, layout, docstrings, annotations, decorators and its name do not. Things from
installed packages count by name, other objects (a data frame, a model) by their class only.
Nothing is executed here.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import inspect
import json
import re
import types
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from featurestore.compile.plan import EntityPlan, OnDemandPlan, ServicePlan, SourcePlan, ViewPlan
from featurestore.errors import DefinitionError

DIGEST_BYTES = 8
# Raise it when the same definition begins to give other rows.
_ROWS_VERSION = 1

SOURCE_ATTRIBUTE = "__source__"
"""The module global in which the loader keeps the text that was run."""

_PLAIN = (bool, int, float, complex, str, bytes, date, timedelta, Decimal, type(None), type(...))
_SILENT_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_params", "returns", "annotation"})
_Def = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def digest(value: Any) -> str:
    """Return 16 hex digits over plain data: dicts, lists, texts, integers, booleans and None.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def definition_fingerprint(plan: EntityPlan | ViewPlan | OnDemandPlan | ServicePlan) -> str:
    """Return the fingerprint of all that is declared, descriptions and tags included."""
    return digest([type(plan).__name__, plan.model_dump(mode="json", exclude={"fingerprint"})])


def table_fingerprint(view: ViewPlan) -> str:
    """Return the fingerprint of what decides a view's rows, and of nothing else.

    The names of the view, its entities and its source do not count, nor do ttl and descriptions;
    of aggregates all counts but what stands for null, because online states follow from it.
    The order of features does: packed rows follow it.
    """
    return digest(
        {
            "version": _ROWS_VERSION,
            "join_keys": [[key.name, key.dtype] for key in view.join_keys],
            "features": [[f.name, f.dtype, f.expression] for f in view.features],
            "source": _source(view.source),
            "where": view.where,
        }
        | ({"aggregates": _aggregates(view)} if view.aggregates else {})
    )


def _aggregates(view: ViewPlan) -> list[Any]:
    # What stands for null is put in when a value is read, and changes no state.
    inputs = [[f.dtype, f.expression] for f in view.inputs]
    return [inputs, *(a.model_dump(mode="json", exclude={"default"}) for a in view.aggregates)]


def _source(source: SourcePlan) -> dict[str, Any]:
    # A stream that moves to another server is the same stream. What was not there before events
    # were is left out where it says nothing, so that tables of plain views stay what they are.
    events = {"event_id", "version", "deleted"}
    told = source.model_dump(mode="json", exclude={"name", "stream", *events})
    if source.stream is not None:
        told["live"] = True
    return told | source.model_dump(mode="json", include=events, exclude_none=True)


def code_fingerprint(function: Callable[..., Any]) -> str:
    """Return 16 hex digits over the code of a function.

    Raises:
        DefinitionError: It is no plain Python function, or its source cannot be had.
    """
    if not isinstance(function, types.FunctionType):
        raise DefinitionError(
            "An on-demand view is computed by something that is no plain Python function.",
            got=f"{function!r}"[:120],
            allowed="a function made by def",
            hint="Put @on_demand_feature_view above a def.",
        )
    return digest(_Reader(function).function(function))


class _Reader:
    """Turns a function and what it uses into plain data."""

    def __init__(self, root: types.FunctionType) -> None:
        self._package = _root(root.__module__)
        self._open: set[int] = set()

    def function(self, function: types.FunctionType) -> list[Any]:
        """Return a function as plain data."""
        code = function.__code__
        cells = [_cell(cell) for cell in function.__closure__ or ()]
        scope = function.__globals__
        used = sorted(name for name in _global_names(code) if name in scope)
        attributes = _names(code)
        return [
            "function",
            _canonical(_syntax(_node(function))),
            self.value(function.__defaults__, attributes),
            self.value(function.__kwdefaults__, attributes),
            [[n, self.value(v, attributes)] for n, v in zip(code.co_freevars, cells, strict=True)],
            [[name, self.value(scope[name], attributes)] for name in used],
        ]

    def value(self, value: Any, names: frozenset[str]) -> Any:
        """Return a value as plain data; of own modules only the attributes in `names`."""
        if isinstance(value, _PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, re.Pattern):
            return ["pattern", repr(value.pattern), value.flags]
        if id(value) in self._open:  # it contains or calls itself
            return ["again", self._name(value)]
        self._open.add(id(value))
        try:
            return self._container(value, names) or self._object(value, names)
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any, names: frozenset[str]) -> list[Any] | None:
        if isinstance(value, list | tuple):
            return [type(value).__name__, [self.value(item, names) for item in value]]
        if isinstance(value, dict):
            pairs = value.items()
            return ["dict", [[self.value(k, names), self.value(v, names)] for k, v in pairs]]
        if isinstance(value, set | frozenset):
            return ["set", sorted(digest(self.value(item, names)) for item in value)]
        return None

    def _object(self, value: Any, names: frozenset[str]) -> list[Any]:
        if isinstance(value, types.FunctionType) and self._is_own(value.__module__):
            return ["function", digest(self.function(value))]
        if isinstance(value, type) and self._is_own(value.__module__):
            return ["class", [[k, self.value(v, names)] for k, v in _members(value)]]
        if isinstance(value, types.ModuleType) and self._is_own(value.__name__):
            found = sorted(names & vars(value).keys())
            return ["module", [[name, self.value(vars(value)[name], names)] for name in found]]
        return ["object", self._name(value)]

    def _is_own(self, module: str | None) -> bool:
        return _root(module) == self._package

    def _name(self, value: Any) -> str:
        named = value if isinstance(value, types.FunctionType | type) else type(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        # The loader numbers its packages; the number must not count.
        module = named.__module__ or ""
        place = module.partition(".")[2] if self._is_own(module) else module
        return f"{place}.{named.__qualname__}"


def _members(cls: type) -> list[tuple[str, Any]]:
    """Return what a class statement defines: its bases, fields, values and methods."""
    members: list[tuple[str, Any]] = [("__bases__", cls.__bases__)]
    members += [("__annotations__", list(inspect.get_annotations(cls)))]
    for name, value in sorted(vars(cls).items()):
        plain = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if isinstance(plain, types.FunctionType):
            if plain.__code__.co_filename != "<string>":  # written by a decorator
                members.append((name, plain))
        elif not name.startswith("__"):
            members.append((name, plain))
    return members


def _root(module: str | None) -> str:
    # Generated functions may stand in no module.
    return (module or "").partition(".")[0]


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _global_names(code: types.CodeType) -> set[str]:
    return {
        instruction.argval
        for part in _codes(code)
        for instruction in dis.get_instructions(part)
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}
    }


def _names(code: types.CodeType) -> frozenset[str]:
    return frozenset(name for part in _codes(code) for name in part.co_names)


def _node(function: types.FunctionType) -> _Def:
    """Return the syntax tree of a function, from the text that was run."""
    code = function.__code__
    text = function.__globals__.get(SOURCE_ATTRIBUTE)
    if text is None or function.__globals__.get("__file__") != code.co_filename:
        text = _text(function)
    found = [node for node in ast.walk(ast.parse(text)) if _is_at(node, code)]
    if len(found) != 1:
        raise DefinitionError(
            f"The source of '{function.__name__}' cannot be told.",
            where=f"{code.co_filename}:{code.co_firstlineno}",
            got="several lambdas in one line" if found else "a function that stands in no file",
            hint="Write it as a def of its own.",
        )
    return found[0]  # type: ignore[return-value]


def _is_at(node: ast.AST, code: types.CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        return code.co_name == node.name and first == code.co_firstlineno
    return False


def _text(function: types.FunctionType) -> str:
    try:
        lines, _ = inspect.findsource(function.__code__)
    except OSError as error:
        raise DefinitionError(
            f"The source of '{function.__name__}' cannot be read.",
            where=function.__code__.co_filename,
            hint="Put the function into a module of the definitions folder.",
        ) from error
    return "".join(lines)


def _syntax(node: _Def) -> list[Any]:
    body = [node.body] if isinstance(node, ast.Lambda) else _without_texts(node.body)
    return [node.args, *body]


def _canonical(node: Any) -> Any:
    """Return a syntax tree as plain data, the same under every version of Python."""
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.AST):
        fields: list[Any] = [type(node).__name__]
        for name, value in ast.iter_fields(node):
            if name in _SILENT_FIELDS or value is None or value == []:
                continue
            body = _without_texts(value) if name == "body" and isinstance(value, list) else value
            fields.append([name, _canonical(body)])
        return fields
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    return node


def _without_texts(body: list[Any]) -> list[Any]:
    # A text that stands alone, such as a docstring, does nothing.
    return [
        item
        for item in body
        if not (
            isinstance(item, ast.Expr)
            and isinstance(item.value, ast.Constant)
            and isinstance(item.value.value, str)
        )
    ]
