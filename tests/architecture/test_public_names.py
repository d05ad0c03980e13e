"""The public face: sorted, complete, resolvable, and nothing else leaks from it."""

from __future__ import annotations

import ast
import inspect
import pickle

import pytest

import featurestore
from featurestore import errors
from tests.architecture.tree import PACKAGE, parsed


def test_public_names_are_sorted_and_distinct():
    assert featurestore.__all__ == sorted(set(featurestore.__all__))
    assert dir(featurestore) == featurestore.__all__


@pytest.mark.parametrize("name", featurestore.__all__)
def test_each_public_name_resolves_and_is_documented(name):
    value = getattr(featurestore, name)
    assert inspect.getdoc(value)
    assert value is getattr(featurestore, name)


def test_the_type_checker_sees_the_same_names():
    tree = parsed(PACKAGE / "__init__.py")
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and "." in node.module
        for alias in node.names
    }
    assert imported == set(featurestore.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'FeatureStor'"):
        _ = featurestore.FeatureStor


def test_every_error_stands_in_the_tree_at_the_top_and_survives_pickling():
    text = errors.__doc__ or ""
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.FeatureStoreError):
            assert name in text
            data = pickle.dumps(cls("what", where="there", hint="do"))
            again = pickle.loads(data)  # noqa: S301  (written one line above)
            assert (type(again), str(again)) == (cls, "what\n  where: there\n  next: do")
