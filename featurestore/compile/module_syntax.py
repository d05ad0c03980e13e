"""What a definitions module's syntax tells: where things are declared, and which imports it makes.

Works on texts and trees only; importing modules and collecting what they hold is `loader`'s work.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import CodeType

OwnModule = Callable[[str], str | None]
"""Returns the full name of the own module that a dotted name means, None for other modules."""

_NO_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Made:
    """A statement at module level that makes a declaration by a call.

    Attributes:
        line: Its line.
        name: What the declaration is called.
        callee: What is called, as in ("featurestore", "FeatureView").
    """

    line: int
    name: str
    callee: tuple[str, ...]


@dataclass(frozen=True)
class ModuleSyntax:
    """The text and the tree of a module."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, data: bytes, path: str) -> ModuleSyntax:
        """Return the syntax of a file's bytes.

        Raises:
            SyntaxError: They are no Python.
        """
        tree = ast.parse(data, filename=path)
        return cls(path, importlib.util.decode_source(data), tree)

    def compile(self, own: OwnModule) -> CodeType:
        """Return the code, in which absolute imports of own modules name them in full."""
        tree = _ExactImports(own).visit(copy.deepcopy(self.tree))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def line_of(self, variable: str, callee: str, name: str) -> tuple[int | None, bool]:
        """Return the line of a declaration, and whether it is only imported here.

        Args:
            variable: The module-level name that holds it, perhaps in a container.
            callee: The class of the declaration.
            name: What the declaration is called.
        """
        bound = self._bindings.get(variable)
        if isinstance(bound, ast.Import | ast.ImportFrom):
            return bound.lineno, True
        if isinstance(bound, ast.FunctionDef | ast.AsyncFunctionDef):
            return bound.lineno, False
        for node in ast.walk(bound or self.tree):
            if not isinstance(node, ast.Call) or _named(node) != name:
                continue
            if _dotted(node.func)[-1:] == (callee,):
                return node.lineno, False
        if bound is None:
            return None, self._imports_all
        return bound.lineno, False

    def made(self) -> Iterator[Made]:
        """Return the statements of the module's body that make one declaration each, perhaps."""
        for statement in self.tree.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr):
                call = statement.value
                if isinstance(call, ast.Call) and (name := _named(call)):
                    yield Made(call.lineno, name, _dotted(call.func))
            elif isinstance(statement, ast.FunctionDef):
                for decorator in statement.decorator_list:
                    if isinstance(decorator, ast.Call):
                        name = _named(decorator) or statement.name
                        yield Made(statement.lineno, name, _dotted(decorator.func))

    @cached_property
    def _bindings(self) -> dict[str, ast.stmt]:
        """The last statement at module level that gives each name its value."""
        return {name: node for node in _statements(self.tree.body) for name in _names(node)}

    @property
    def _imports_all(self) -> bool:
        return any(
            isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
            for node in _statements(self.tree.body)
        )


class _ExactImports(ast.NodeTransformer):
    """Rewrites absolute imports of own modules: `import a.b` also binds `a`, as ever."""

    def __init__(self, own: OwnModule) -> None:
        self._own = own

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        target = self._own(node.module) if node.level == 0 and node.module else None
        if target is not None:
            node.module = target
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        return [self._statement(node, alias) for alias in self._aliases(node)]

    def _aliases(self, node: ast.Import) -> Iterator[ast.alias]:
        for alias in node.names:
            first = alias.name.partition(".")[0]
            target, head = self._own(alias.name), self._own(first)
            if target is not None and alias.asname:
                yield ast.alias(target, alias.asname)
            elif target is not None and head is not None:
                yield ast.alias(target, "_imported")
                yield ast.alias(head, first)
            else:
                yield alias

    @staticmethod
    def _statement(node: ast.Import, alias: ast.alias) -> ast.stmt:
        return ast.copy_location(ast.Import([alias]), node)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Return the statements that run when a module is imported, nested ones included."""
    for statement in body:
        yield statement
        if isinstance(statement, _NO_SCOPE):
            continue
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.ExceptHandler | ast.match_case):
                yield from _statements(child.body)
            elif isinstance(child, ast.stmt):
                yield from _statements([child])


def _names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (a.asname or a.name.partition(".")[0] for a in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For | ast.With):
        for node in ast.iter_child_nodes(statement):
            if not isinstance(node, ast.stmt):
                yield from (
                    part.id
                    for part in ast.walk(node)
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                )


def _named(call: ast.Call) -> str | None:
    """Return the text that a call passes as `name=`, None where it is not written out."""
    for keyword in call.keywords:
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
            return keyword.value.value if isinstance(keyword.value.value, str) else None
    return None


def _dotted(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (*_dotted(node.value), node.attr)
    return ()
