"""Imports a definitions folder and collects what its modules declare, each with file and line.

A load is a package of its own in `sys.modules`: two repositories do not meet, and a changed file is
read anew, whatever bytecode caches say. The folder's modules may import each other by relative
imports, by names as if the folder were on the path (`from entities import x`) and by names below
it (`from definitions.entities import x`): absolute imports of own modules are rewritten. Hidden
folders, virtual environments and tests are left out. Nothing is collected by looking at who
constructs a declaration; it must be the value of a module-level name, or inside of a list, tuple or
dictionary that is.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import itertools
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from featurestore.compile.declared import KINDS, Declarations, Declared
from featurestore.compile.fingerprints import SOURCE_ATTRIBUTE
from featurestore.compile.module_syntax import Made, ModuleSyntax
from featurestore.errors import DefinitionError, FeatureStoreError, near_miss
from featurestore.model.declarations import OnDemandFeatureView, on_demand_feature_view

if TYPE_CHECKING:
    from importlib.abc import Loader

_PREFIX = "_featurestore_definitions_"
_LEFT_OUT = {"tests", "__pycache__", "node_modules"}
# Functions of a former load may still run, and import what they need when they are called.
_KEPT_LOADS = 3
_numbers = itertools.count(1)
_lock = threading.Lock()
_loads: dict[Path, list[_Finder]] = {}


def load(folder: Path, root: Path | None = None) -> Declarations:
    """Return all that the modules of a folder declare.

    Args:
        folder: The definitions folder.
        root: The repository's folder, to which places are relative; by default its parent.

    Raises:
        DefinitionError: There is no such folder, it declares nothing, a module cannot be imported,
            or a declaration is wrong; `where` names file and line.
    """
    folder = folder.resolve()
    root = root.resolve() if root else folder.parent
    finder = _Finder(folder, root)
    if not folder.is_dir():
        raise DefinitionError(
            "There is no definitions folder.",
            where=str(folder),
            hint="Create it and declare views in it, or set definitions= in featurestore.toml.",
        )
    finder.scan()
    sys.meta_path.insert(0, finder)
    try:
        modules = [finder.load(name) for name in finder.files]
        declarations = _collect(finder, modules)
    except BaseException:
        finder.forget()
        raise
    _keep(folder, finder)
    return declarations


def _keep(folder: Path, finder: _Finder) -> None:
    with _lock:
        loads = _loads.setdefault(folder, [])
        loads.append(finder)
        former, _loads[folder] = loads[:-_KEPT_LOADS], loads[-_KEPT_LOADS:]
    for old in former:
        old.forget()


class _Finder:
    """Finds the modules of one load under its own package name.

    Attributes:
        folder: The definitions folder.
        package: The name of the package that the folder is.
        files: The file of each module by full name, sorted.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.package = f"{_PREFIX}{next(_numbers)}"
        self.files: dict[str, Path] = {}
        self.syntax: dict[str, ModuleSyntax] = {}
        self.folder = folder
        self._root = root
        self._packages: dict[str, Path] = {self.package: folder}
        inside = folder.relative_to(root).parts if folder.is_relative_to(root) else (folder.name,)
        # "definitions", or "src.definitions" and "definitions" for a folder further down.
        self._aliases = tuple(".".join(inside[i:]) for i in range(len(inside)))

    def scan(self) -> None:
        """Note all modules of the folder.

        Raises:
            DefinitionError: Two files would be one module.
        """
        for path in _python_files(self.folder):
            parts = [_identifier(part) for part in path.relative_to(self.folder).parts]
            parts[-1] = _identifier(path.stem)
            for depth in range(1, len(parts)):
                name = ".".join((self.package, *parts[:depth]))
                self._packages.setdefault(name, path.parents[len(parts) - 1 - depth])
            if parts[-1] == "__init__":
                parts.pop()
            name = ".".join((self.package, *parts))
            if name in self.files:
                raise DefinitionError(
                    "Two files would be one module.",
                    where=f"{self.place(self.files[name])}; {self.place(path)}",
                    hint="Rename one of them.",
                )
            self.files[name] = path

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module of this load, None for every other module."""
        if name != self.package and not name.startswith(f"{self.package}."):
            return None
        inside = [str(self._packages[name])] if name in self._packages else None
        path = self.files.get(name)
        if path is None and inside is None:
            return None
        loader: Loader | None = _Loader(self, name, str(path)) if path else None
        spec = importlib.machinery.ModuleSpec(
            name, loader, origin=str(path) if path else None, is_package=inside is not None
        )
        spec.submodule_search_locations = inside
        spec.has_location = path is not None
        return spec

    def own(self, name: str, importer: str) -> str | None:
        """Return the full name of an own module that an absolute import means, None if it is not.

        Args:
            name: The dotted name that is imported.
            importer: The full name of the importing module; a module never means itself.
        """
        candidates = [name]
        for alias in self._aliases:
            if name == alias:
                return self.package
            candidates += [name.removeprefix(f"{alias}.")] if name.startswith(f"{alias}.") else []
        for candidate in candidates:
            full = f"{self.package}.{candidate}"
            if (full in self.files or full in self._packages) and full != importer:
                return full
        return None

    def load(self, name: str) -> ModuleType:
        """Import one module.

        Raises:
            DefinitionError: It cannot be imported.
        """
        try:
            return importlib.import_module(name)
        except FeatureStoreError as error:
            error.where = error.where or self._innermost(error, name)
            raise
        except SyntaxError as error:
            raise self._syntax_error(error, name) from error
        except (Exception, SystemExit) as error:
            raise DefinitionError(
                f"{self.place(self.files[name])} cannot be imported.",
                where=self._innermost(error, name),
                got=f"{type(error).__name__}: {self._plain(str(error))}",
                hint=self._hint(error),
            ) from error

    def place(self, path: Path, line: int | None = None) -> str:
        """Return a place relative to the repository, as in "definitions/views.py:14"."""
        shown = path.relative_to(self._root) if path.is_relative_to(self._root) else path
        return f"{shown.as_posix()}:{line}" if line else shown.as_posix()

    def forget(self) -> None:
        """Take the load's modules out of the interpreter."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in list(sys.modules):
            if name == self.package or name.startswith(f"{self.package}."):
                del sys.modules[name]

    def _innermost(self, error: BaseException, name: str) -> str:
        """Return the last line of the folder's own code that an exception came through."""
        own = {str(path): path for path in self.files.values()}
        place = self.place(self.files[name])
        trace = error.__traceback__
        while trace is not None:
            path = own.get(trace.tb_frame.f_code.co_filename)
            if path is not None:
                place = self.place(path, trace.tb_lineno)
            trace = trace.tb_next
        return place

    def _syntax_error(self, error: SyntaxError, name: str) -> DefinitionError:
        own = {str(path): path for path in self.files.values()}
        path = own.get(error.filename or "")
        where = self.place(path, error.lineno) if path else self._innermost(error, name)
        return DefinitionError(
            f"{where.partition(':')[0]} is no valid Python: {error.msg}.",
            where=where,
            got=error.text.strip() if error.text else None,
        )

    def _plain(self, text: str) -> str:
        return text.replace(f"{self.package}.", "").replace(self.package, self.folder.name)

    def _hint(self, error: BaseException) -> str | None:
        if not isinstance(error, ModuleNotFoundError) or not error.name:
            return None
        missing = self._plain(error.name)
        own = [name.removeprefix(f"{self.package}.") for name in self.files]
        return near_miss(missing, own) or f"Install '{missing}' into this environment."


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from its file, never from a cache, with own imports made exact."""

    def __init__(self, finder: _Finder, name: str, path: str) -> None:
        super().__init__(name, path)
        self._finder = finder

    def get_code(self, fullname: str) -> CodeType:
        syntax = ModuleSyntax.parse(self.get_data(self.path), self.path)
        self._finder.syntax[fullname] = syntax
        return syntax.compile(lambda name: self._finder.own(name, fullname))

    def exec_module(self, module: ModuleType) -> None:
        code = self.get_code(module.__name__)
        # Fingerprints are of the text that runs, not of what the file holds later.
        setattr(module, SOURCE_ATTRIBUTE, self._finder.syntax[module.__name__].text)
        exec(code, module.__dict__)  # noqa: S102


def _python_files(folder: Path) -> Iterator[Path]:
    for current, folders, names in os.walk(folder):
        here = Path(current)
        folders[:] = sorted(name for name in folders if _is_searched(here / name))
        for name in sorted(names):
            is_test = name.startswith("test_") or name == "conftest.py"
            if name.endswith(".py") and not name.startswith(".") and not is_test:
                yield here / name


def _is_searched(folder: Path) -> bool:
    if folder.name in _LEFT_OUT or folder.name.startswith("."):
        return False
    return not (folder / "pyvenv.cfg").exists()


def _identifier(text: str) -> str:
    return re.sub(r"\W", "_", text)


def _collect(finder: _Finder, modules: Sequence[ModuleType]) -> Declarations:
    found: dict[int, Declared] = {}
    imported: dict[int, Declared] = {}
    for module in modules:
        syntax = finder.syntax[module.__name__]
        path = finder.files[module.__name__]
        seen: set[tuple[type, str]] = set()
        for name, declaration in _declarations(vars(module)):
            seen.add((type(declaration), declaration.name))
            line, is_import = syntax.line_of(name, type(declaration).__name__, declaration.name)
            item = Declared(declaration, finder.place(path, line))
            (imported if is_import else found).setdefault(id(declaration), item)
        for made in syntax.made():
            kind = _kind(made, vars(module))
            if kind is not None and (kind, made.name) not in seen:
                raise _lost(made, finder.place(path, made.line))
    for key, item in imported.items():
        found.setdefault(key, item)
    if not found:
        raise DefinitionError(
            "The definitions folder declares nothing.",
            where=finder.place(finder.folder),
            got=f"{len(modules)} Python modules without a declaration at module level",
            hint="Declare a FeatureView at module level, as in the README's first example.",
        )
    return Declarations(tuple(found.values()))


def _kind(made: Made, names: Mapping[str, Any]) -> type | None:
    """Return what kind of declaration a statement makes, None when it makes something else."""
    if not made.callee:
        return None
    value = names.get(made.callee[0])
    for attribute in made.callee[1:]:
        value = getattr(value, attribute, None)
    if value is on_demand_feature_view:
        return OnDemandFeatureView
    return value if isinstance(value, type) and value in KINDS else None


def _lost(made: Made, where: str) -> DefinitionError:
    return DefinitionError(
        f"The declaration '{made.name}' is lost: no module-level name holds it.",
        where=where,
        hint="Assign it to a name of its own; a later assignment may have taken its name.",
    )


def _declarations(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in names.items():
        if not name.startswith("__"):
            yield from ((name, item) for item in _inside(value, set()))


def _inside(value: Any, passed: set[int]) -> Iterator[Any]:
    if type(value) in KINDS:
        yield value
    elif isinstance(value, list | tuple | dict) and id(value) not in passed:
        passed.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inside(item, passed)
