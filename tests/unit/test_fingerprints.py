"""Fingerprints change with what they are about, and with nothing else."""

from __future__ import annotations

import functools
import re
import textwrap
import types
from datetime import timedelta

import pytest

from featurestore.compile.fingerprints import (
    SOURCE_ATTRIBUTE,
    code_fingerprint,
    definition_fingerprint,
    digest,
    table_fingerprint,
)
from featurestore.compile.plan import Column, FeaturePlan, SourcePlan, ViewPlan
from featurestore.errors import DefinitionError

SOURCE = SourcePlan(name="s", kind="parquet", path="p", event_timestamp="t")
VIEW = ViewPlan(
    name="v",
    entities=("e",),
    join_keys=(Column(name="k", dtype="int64"),),
    features=(FeaturePlan(name="a", dtype="int64"), FeaturePlan(name="b", dtype="int64")),
    source=SOURCE,
)


def test_a_digest_is_the_same_on_every_machine():
    assert digest({"b": [1, "ü", None, True], "a": {}}) == "a59bf043edc2b77c"


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"name": "w"}, False),
        ({"entities": ("f",)}, False),
        ({"ttl_us": 5}, False),
        ({"online": False}, False),
        ({"schedule": "* * * * *"}, False),
        ({"description": "d"}, False),
        ({"owner": "o"}, False),
        ({"tags": {"a": "b"}}, False),
        ({"source": SOURCE.model_copy(update={"name": "z"})}, False),
        (
            {
                "features": (
                    VIEW.features[0].model_copy(update={"description": "d"}),
                    VIEW.features[1],
                )
            },
            False,
        ),
        ({"where": "a > 1"}, True),
        ({"features": VIEW.features[::-1]}, True),
        ({"features": VIEW.features[:1]}, True),
        ({"features": (FeaturePlan(name="a", dtype="int32"), VIEW.features[1])}, True),
        (
            {
                "features": (
                    VIEW.features[0].model_copy(update={"expression": "b"}),
                    VIEW.features[1],
                )
            },
            True,
        ),
        ({"join_keys": (Column(name="k", dtype="string"),)}, True),
        ({"source": SOURCE.model_copy(update={"path": "q"})}, True),
        ({"source": SOURCE.model_copy(update={"kind": "csv"})}, True),
        ({"source": SOURCE.model_copy(update={"timezone": "UTC"})}, True),
        ({"source": SOURCE.model_copy(update={"created_timestamp": "c"})}, True),
        ({"source": SOURCE.model_copy(update={"field_mapping": {"x": "a"}})}, True),
    ],
)
def test_the_definition_changes_with_everything_the_table_only_with_its_rows(change, rows):
    changed = VIEW.model_copy(update=change)
    assert definition_fingerprint(changed) != definition_fingerprint(VIEW)
    assert (table_fingerprint(changed) != table_fingerprint(VIEW)) is rows


def function(text, name="f", module="own.views"):
    """Run a module's text as the loader does, and return a function of it."""
    source = textwrap.dedent(text)
    scope = types.ModuleType(module)
    scope.__file__ = f"/{module}.py"
    setattr(scope, SOURCE_ATTRIBUTE, source)
    exec(compile(source, scope.__file__, "exec", dont_inherit=True), scope.__dict__)  # noqa: S102
    return getattr(scope, name)


BASE = """
    def f(x):
        return x + 1
"""


@pytest.mark.parametrize(
    "text",
    [
        "def f(x): return (x+1)  # one more",
        '\n\n\ndef f(x):\n    """Adds."""\n    "and says so"\n    return x + 1',
        "def f(x: int, /) -> int:\n    return x + 1".replace(", /", ""),
        "def g(x):\n    return x + 1\nf = g",
        "import functools\ndef same(g): return g\n@same\ndef f(x):\n    return x + 1",
        "unused = 5\ndef f(x):\n    return x + 1",
    ],
)
def test_layout_comments_names_and_annotations_do_not_count(text):
    assert code_fingerprint(function(text)) == code_fingerprint(function(BASE))


@pytest.mark.parametrize(
    "text",
    [
        "def f(x): return x + 2",
        "def f(x): return x + 1.0",
        "def f(x, y=1): return x + 1",
        "def f(y): return y + 1",
        "def f(x):\n    if x: return x + 1",
        "f = lambda x: x + 1 if x else 0",
    ],
)
def test_what_a_function_does_counts(text):
    assert code_fingerprint(function(text)) != code_fingerprint(function(BASE))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("FACTOR = 2\ndef f(x): return x * FACTOR", "FACTOR = 3\ndef f(x): return x * FACTOR"),
        ("T = (1, [2])\ndef f(x): return T", "T = (1, [3])\ndef f(x): return T"),
        ("T = {'a': 1}\ndef f(x): return T", "T = {'a': 2}\ndef f(x): return T"),
        ("T = {1, 2}\ndef f(x): return T", "T = {1, 3}\ndef f(x): return T"),
        ("def f(x, n=1): return x * n", "def f(x, n=2): return x * n"),
        ("def f(x, *, n=1): return x * n", "def f(x, *, n=2): return x * n"),
        ("def g(x): return 1\ndef f(x): return g(x)", "def g(x): return 2\ndef f(x): return g(x)"),
        (
            "def make(n):\n    def g(x): return x * n\n    return g\nf = make(1)",
            "def make(n):\n    def g(x): return x * n\n    return g\nf = make(2)",
        ),
        (
            "class C:\n    def m(self): return 1\ndef f(x): return C().m()",
            "class C:\n    def m(self): return 2\ndef f(x): return C().m()",
        ),
        (
            "class C:\n    RATE = 1\ndef f(x): return C.RATE",
            "class C:\n    RATE = 2\ndef f(x): return C.RATE",
        ),
        (
            "import re\nP = re.compile('a')\ndef f(x): return P",
            "import re\nP = re.compile('b')\ndef f(x): return P",
        ),
        ("def f(x): return (lambda y: y + 1)(x)", "def f(x): return (lambda y: y + 2)(x)"),
        (
            "import math\ndef f(x): return math.sin(x)",
            "import cmath as math\ndef f(x): return math.sin(x)",
        ),
    ],
)
def test_what_a_function_uses_counts(before, after):
    assert code_fingerprint(function(before)) == code_fingerprint(function("# other\n" + before))
    assert code_fingerprint(function(before)) != code_fingerprint(function(after))


def test_sets_have_no_order():
    values = [f"v{i}" for i in range(20)]
    one = function(f"T = {set(values)!r}\ndef f(x): return T")
    other = function(f"T = set({values[::-1]!r})\ndef f(x): return T")
    assert code_fingerprint(one) == code_fingerprint(other)


def test_functions_that_call_themselves_and_each_other_come_to_an_end():
    text = "def g(x): return f(x - 1)\ndef f(x): return g(x) if x else f"
    assert code_fingerprint(function(text)) == code_fingerprint(function(text))


def test_helpers_in_other_own_modules_count():
    def using(value):
        helpers = types.ModuleType("own.helpers")
        text = f"def h(x): return x * {value}\n"
        helpers.__file__ = "/own.helpers.py"
        setattr(helpers, SOURCE_ATTRIBUTE, text)
        exec(compile(text, helpers.__file__, "exec"), helpers.__dict__)  # noqa: S102
        f = function("def f(x): return helpers.h(x)")
        f.__globals__["helpers"] = helpers
        return code_fingerprint(f)

    assert using(2) == using(2)
    assert using(2) != using(3)


def test_generated_methods_of_own_classes_do_no_harm():
    text = "import dataclasses\n@dataclasses.dataclass\nclass C:\n    a: int = {}\n"
    text += "def f(x): return C"
    one, other = (code_fingerprint(function(text.format(value))) for value in (1, 2))
    assert one != other


def test_a_function_in_a_test_file_is_read_from_its_file():
    def plain(inputs):
        return inputs

    @functools.wraps(plain)
    def wrapped(inputs):
        return plain(inputs)

    assert code_fingerprint(plain) != code_fingerprint(wrapped)
    assert re.fullmatch("[0-9a-f]{16}", code_fingerprint(plain))


@pytest.mark.parametrize("value", [len, functools.partial(print), timedelta])
def test_only_plain_functions_have_a_fingerprint(value):
    with pytest.raises(DefinitionError, match="no plain Python function") as caught:
        code_fingerprint(value)
    assert "def" in str(caught.value.hint)


def test_a_function_without_source_is_refused():
    scope: dict = {"__name__": "own"}
    exec("def f(x): return x", scope)  # noqa: S102
    with pytest.raises(DefinitionError, match="source of 'f' cannot be read"):
        code_fingerprint(scope["f"])


def test_two_lambdas_in_one_line_cannot_be_told_apart():
    with pytest.raises(DefinitionError, match="cannot be told"):
        code_fingerprint(function("f, g = lambda x: x, lambda x: -x"))
