"""A definitions folder is imported afresh, whole, and with the place of every declaration."""

from __future__ import annotations

import gc
import os
import sys
import textwrap
import threading

import pytest

from featurestore.compile.fingerprints import code_fingerprint
from featurestore.errors import DefinitionError
from featurestore.loader import load

HEAD = "from featurestore import Entity, FeatureView, FileSource, FeatureService\n"
ENTITY = 'driver = Entity(name="driver", join_keys=["driver_id"])\n'
SOURCE = 'drivers = FileSource(name="drivers", path="d.parquet", event_timestamp="ts")\n'


def view(name="stats", variable="stats"):
    return (
        f'{variable} = FeatureView(name="{name}", entities=[driver], source=drivers,'
        ' features=["rate"])\n'
    )


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "repo" / "definitions"
    path.mkdir(parents=True)
    return path


def write(folder, **modules):
    for name, text in modules.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")


def refused(folder, *words):
    before = set(sys.modules), list(sys.meta_path)
    with pytest.raises(DefinitionError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "_featurestore_definitions" not in str(caught.value)
    left = {name for name in set(sys.modules) - before[0] if name.startswith("_featurestore")}
    assert not left
    assert sys.meta_path == before[1]
    return caught.value


def test_declarations_are_found_with_file_and_line(folder):
    write(
        folder,
        entities=HEAD + "\n" + ENTITY,
        views=HEAD + "from entities import driver\n" + SOURCE + "\n\n" + view(),
    )
    found = load(folder)
    assert [item.label for item in found.items] == [
        "Entity 'driver', definitions/entities.py:3",
        "FileSource 'drivers', definitions/views.py:3",
        "FeatureView 'stats', definitions/views.py:6",
    ]
    assert found.location("feature_view", "stats") == "definitions/views.py:6"
    assert found.location("feature_view", "other") is None


def test_an_object_that_many_modules_import_counts_once_where_it_is_made(folder):
    write(
        folder,
        a_first="from views import stats, drivers, driver\nfrom views import stats as again\n",
        views=HEAD + ENTITY + SOURCE + view(),
        z_last="import views\nstats = views.stats\n",
    )
    found = load(folder)
    assert [item.where for item in found.items] == [
        "definitions/views.py:2",
        "definitions/views.py:3",
        "definitions/views.py:4",
    ]


def test_declarations_in_containers_have_their_own_lines(folder):
    write(
        folder,
        views=HEAD
        + ENTITY
        + SOURCE
        + """
views = [
    FeatureView(
        name="a", entities=[driver], source=drivers, features=["x"]),
    FeatureView(
        name="b", entities=[driver], source=drivers, features=["x"]),
]
by_name = {"c": (FeatureView(name="c", entities=[driver], source=drivers, features=["x"]),)}
generated = [
    FeatureView(name=f"g{i}", entities=[driver], source=drivers, features=["x"]) for i in range(2)
]
if True:
    for one in [1]:
        looped = FeatureView(name="looped", entities=[driver], source=drivers, features=["x"])
globals()["hidden"] = FeatureView(name="hidden", entities=[driver], source=drivers, features=["x"])
globals()["unknown"] = FeatureView(**{"name": "unknown", "source": drivers, "features": ["x"]})
""",
    )
    places = {item.declaration.name: item.where for item in load(folder).items}
    assert places["a"] == "definitions/views.py:6"
    assert places["b"] == "definitions/views.py:8"
    assert places["c"] == "definitions/views.py:11"
    assert places["g1"] == "definitions/views.py:12"
    assert places["looped"] == "definitions/views.py:17"
    assert places["hidden"] == "definitions/views.py:18"
    assert places["unknown"] == "definitions/views.py"


def test_a_decorated_function_is_found_at_its_def(folder):
    write(
        folder,
        views=HEAD
        + "from featurestore import Field, on_demand_feature_view\n"
        + ENTITY
        + SOURCE
        + view()
        + """
@on_demand_feature_view(
    sources=[stats], features=[Field(name="x", dtype="int64")]
)
def made(inputs):
    return inputs
""",
    )
    found = load(folder)
    assert found.location("on_demand_feature_view", "made") == "definitions/views.py:10"
    assert found.functions["made"]("anything") == "anything"


@pytest.mark.parametrize(
    "line",
    [
        "from entities import driver",
        "from definitions.entities import driver",
        "from .entities import driver",
        "from definitions import entities\ndriver = entities.driver",
        "import entities\ndriver = entities.driver",
        "import definitions.entities\ndriver = definitions.entities.driver",
        "import definitions.entities as e\ndriver = e.driver",
        "from . import entities as e\ndriver = e.driver",
        "def late():\n    from entities import driver\n    return driver\ndriver = late()",
    ],
)
def test_modules_import_each_other_in_every_usual_way(folder, line):
    write(
        folder,
        entities=HEAD + ENTITY,
        views=HEAD + line + "\n" + SOURCE + view(),
    )
    found = load(folder)
    assert found.views[0].entities[0] is found.entities[0]
    assert len(found.entities) == 1


def test_sub_folders_are_packages_with_or_without_init(folder):
    write(
        folder,
        common__base__entities=HEAD + ENTITY,
        common__sources=HEAD + SOURCE + "from .base.entities import driver\n",
        teams__rides__views=HEAD
        + "import common.base.entities, os.path\n"
        + "from ...common.sources import drivers\nfrom common.sources import driver as d\n"
        + "assert os.path and common.base.entities.driver is d\n"
        + "driver = d\n"
        + view(),
    )
    (folder / "teams" / "__init__.py").write_text("READY = True\n", encoding="utf-8")
    found = load(folder)
    assert found.views[0].source is found.sources[0]
    assert found.location("feature_view", "stats") == "definitions/teams/rides/views.py:7"


def test_a_module_may_be_called_like_an_installed_one(folder):
    write(
        folder,
        polars=HEAD + "import polars\nassert polars.DataFrame\n" + ENTITY,
        views=HEAD + "from polars import driver\n" + SOURCE + view(),
    )
    assert load(folder).views[0].entities[0].name == "driver"


def test_file_names_that_are_no_identifiers_are_read_too(folder):
    (folder / "2024-views.py").write_text(HEAD + ENTITY, encoding="utf-8")
    assert load(folder).location("entity", "driver") == "definitions/2024-views.py:2"


def test_tests_hidden_folders_and_environments_are_left_out(folder):
    write(folder, views=HEAD + ENTITY)
    for name in ("tests/broken.py", "test_views.py", "conftest.py", ".hidden/x.py", "env/lib/x.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError\n", encoding="utf-8")
    (folder / "env" / "pyvenv.cfg").write_text("", encoding="utf-8")
    assert len(load(folder).items) == 1


def test_a_change_is_seen_even_when_size_and_time_stay(folder):
    path = folder / "views.py"
    path.write_text(HEAD + ENTITY, encoding="utf-8")
    first = load(folder)
    stat = path.stat()
    path.write_text((HEAD + ENTITY).replace('"driver"', '"rivers"'), encoding="utf-8")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = load(folder)
    assert (first.entities[0].name, second.entities[0].name) == ("driver", "rivers")
    assert not list(folder.rglob("*.pyc"))


def test_a_change_of_an_imported_module_is_seen(folder):
    write(
        folder,
        entities=HEAD + ENTITY,
        views=HEAD + "from entities import driver\n" + SOURCE + view(),
    )
    load(folder)
    write(folder, entities=HEAD + ENTITY.replace("driver_id", "person_id"))
    assert load(folder).views[0].join_keys == ("person_id",)


def test_two_repositories_in_one_process_do_not_meet(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name / "definitions"
        write(
            folder,
            entities=HEAD + ENTITY.replace('name="driver"', f'name="{name}"'),
            views=HEAD
            + "import entities\n"
            + SOURCE
            + "def name():\n    from entities import driver\n    return driver.name\n"
            + "driver = entities.driver\n"
            + view(),
        )
    one, two = (load(tmp_path / name / "definitions") for name in ("one", "two"))
    assert [d.views[0].entities[0].name for d in (one, two)] == ["one", "two"]
    assert "entities" not in sys.modules


def test_functions_of_a_former_load_still_import_what_they_need(folder):
    text = HEAD + ENTITY + "def later():\n    from helpers import VALUE\n    return VALUE\n"
    write(folder, helpers="VALUE = 1\n", views=text + "hooks = [later]\n")
    module = _module_of(folder)
    load(folder)
    assert module.later() == 1


def _module_of(folder):
    before = set(sys.modules)
    load(folder)
    (name,) = (n for n in set(sys.modules) - before if n.endswith(".views"))
    return sys.modules[name]


def test_former_loads_do_not_pile_up(folder):
    write(folder, views=HEAD + ENTITY)

    def held():
        return sum(name.startswith("_featurestore_definitions") for name in sys.modules)

    for _ in range(5):
        load(folder)
    before, finders = held(), len(sys.meta_path)
    for _ in range(5):
        load(folder)
    gc.collect()
    assert (held(), len(sys.meta_path)) == (before, finders)


def test_loads_in_many_threads_do_not_disturb_each_other(folder):
    write(
        folder,
        entities=HEAD + ENTITY,
        views=HEAD + "from entities import driver\n" + SOURCE + view(),
    )
    results = []
    threads = [threading.Thread(target=lambda: results.append(load(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(result.items) for result in results] == [3, 3, 3, 3]
    assert len({id(result.views[0]) for result in results}) == 4


def test_code_fingerprints_are_of_the_code_that_was_loaded(folder):
    text = (
        HEAD
        + "from featurestore import Field, on_demand_feature_view\n"
        + ENTITY
        + SOURCE
        + view()
        + '@on_demand_feature_view(sources=[stats], features=[Field(name="x", dtype="int64")])\n'
        + "def made(inputs):\n    return inputs + 1\n"
    )
    write(folder, views=text)
    first = load(folder).functions["made"]
    fingerprint = code_fingerprint(first)
    write(folder, views=text.replace("+ 1", "+ 2"))
    second = load(folder).functions["made"]
    assert code_fingerprint(first) == fingerprint
    assert code_fingerprint(second) != fingerprint
    write(folder, views="\n\n# moved\n" + text)
    assert code_fingerprint(load(folder).functions["made"]) == fingerprint


def test_there_is_no_folder(tmp_path):
    error = refused(tmp_path / "definitions", "There is no definitions folder", "featurestore.toml")
    assert error.where == str(tmp_path / "definitions")


def test_nothing_is_declared(folder):
    write(folder, views="x = 1\n")
    refused(folder, "declares nothing", "1 Python modules", "where: definitions")


def test_a_syntax_error_has_its_line(folder):
    write(folder, views=HEAD + "\nif True\n    pass\n")
    error = refused(folder, "definitions/views.py is no valid Python", "expected ':'")
    assert (error.where, error.got) == ("definitions/views.py:3", "if True")


def test_a_syntax_error_in_an_imported_module_is_told_where_it_is(folder):
    write(folder, a="import broken\n", broken="\nx = (\n")
    assert refused(folder, "is no valid Python").where == "definitions/broken.py:2"


def test_bytes_that_are_no_text(folder):
    (folder / "views.py").write_bytes(b"x = '\xff'\n")
    refused(folder, "definitions/views.py is no valid Python")


def test_a_missing_package_is_named(folder):
    write(folder, views=HEAD + "import no_such_package\n")
    error = refused(folder, "No module named 'no_such_package'", "Install 'no_such_package'")
    assert error.where == "definitions/views.py:2"


def test_a_misspelt_module_of_the_folder_is_suggested(folder):
    write(folder, entities=HEAD + ENTITY, views="from entites import driver\n")
    assert refused(folder, "entites").hint == "Did you mean 'entities'?"


def test_a_name_that_a_module_lacks(folder):
    write(folder, entities=HEAD + ENTITY, views="from entities import drivr\n")
    error = refused(folder, "definitions/views.py cannot be imported", "drivr", "entities")
    assert error.where == "definitions/views.py:1"


def test_an_exception_of_a_module_has_the_line_of_its_own_code(folder):
    write(folder, helpers="import json\ndef read(text):\n    return json.loads(text)\n",
          views="from helpers import read\nread('{')\n")  # fmt: skip
    error = refused(folder, "JSONDecodeError", "definitions/views.py cannot be imported")
    assert error.where == "definitions/helpers.py:3"


def test_a_module_that_exits(folder):
    write(folder, views="import sys\nsys.exit(3)\n")
    assert refused(folder, "SystemExit: 3").where == "definitions/views.py:2"


def test_an_interrupt_is_no_error_of_the_definitions(folder):
    write(folder, views="raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load(folder)


def test_a_wrong_declaration_keeps_its_words_and_gets_its_place(folder):
    write(
        folder,
        views=HEAD
        + ENTITY
        + SOURCE
        + "stats = FeatureView(\n    name='stats',\n    entties=[driver],\n"
        "    source=drivers,\n    features=['rate'],\n)\n",
    )
    error = refused(folder, "FeatureView('stats') has no argument 'entties'")
    assert error.where == "definitions/views.py:4"
    assert error.hint == "Did you mean 'entities'?"


def test_a_wrong_reference_keeps_its_words_and_gets_its_place(folder):
    write(folder, views=HEAD + ENTITY + SOURCE + view() + "chosen = stats['rat']\n")
    assert refused(folder, "'stats:rat' names no feature").where == "definitions/views.py:5"


@pytest.mark.parametrize(
    "lines",
    [
        view("lost") + view("stats"),
        'FeatureView(name="lost", entities=[driver], source=drivers, features=["rate"])\n',
    ],
)
def test_a_declaration_that_no_name_holds_is_not_lost_silently(folder, lines):
    write(folder, views=HEAD + ENTITY + SOURCE + lines)
    error = refused(folder, "The declaration 'lost' is lost", "a name of its own")
    assert error.where == "definitions/views.py:4"


def test_an_on_demand_view_that_another_replaces_is_not_lost_silently(folder):
    decorator = (
        '@on_demand_feature_view(sources=["stats"], features=[Field(name="x", dtype="int64")])\n'
    )
    text = "from featurestore import Field, on_demand_feature_view\n"
    text += decorator + "def made(inputs):\n    return inputs\n"
    text += "made = 3\n"
    write(folder, views=text)
    assert refused(folder, "'made' is lost").where == "definitions/views.py:3"


def test_classes_of_other_libraries_are_not_taken_for_declarations(folder):
    write(
        folder,
        views=HEAD
        + ENTITY
        + "class Other:\n    class Entity:\n        def __init__(self, name):\n            pass\n"
        + 'Other.Entity(name="x")\n',
    )
    assert len(load(folder).items) == 1


def test_two_files_of_one_module_name_are_refused(folder):
    for name in ("my-views.py", "my_views.py"):
        (folder / name).write_text(HEAD + ENTITY, encoding="utf-8")
    refused(folder, "Two files would be one module", "my-views.py; definitions/my_views.py")


def test_a_folder_further_down_is_found_by_each_of_its_names(tmp_path):
    folder = tmp_path / "src" / "features"
    write(
        folder,
        entities=HEAD + ENTITY,
        a="from src.features.entities import driver\n",
        b="from features.entities import driver\n",
        c="import src.features.entities as e\n",
    )
    found = load(folder, tmp_path)
    assert [item.where for item in found.items] == ["src/features/entities.py:2"]
