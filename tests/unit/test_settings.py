"""Settings: the page tells them all, the file and the environment give them, errors help."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr

from featurestore.errors import SettingsError
from featurestore.model.settings import Section, Settings, parse_size
from featurestore.wiring import load_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def every_setting():
    """Return (section, name, field) of each setting; the section of those at the top is ""."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from ((name, key, f) for key, f in field.annotation.model_fields.items())
        else:
            yield "", name, field


ALL = [pytest.param(*item, id=f"{item[0]}.{item[1]}") for item in every_setting()]


def variable(section, name):
    return "_".join(part for part in ("FEATURESTORE", section, name) if part).upper()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for section, name, _ in every_setting():
        monkeypatch.delenv(variable(section, name), raising=False)
    (tmp_path / "featurestore.toml").write_text('project = "p"\n')
    return tmp_path


@pytest.mark.parametrize(("section", "name", "field"), ALL)
def test_the_page_tells_each_setting_with_its_variable_and_default(section, name, field):
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if f"`{variable(section, name)}`" in line]
    assert len(lines) == 1
    if section:
        assert f"`{name}`" in lines[0]
        assert field.default is None or str(field.default) in lines[0]
        assert f"## [{section}]\n" in text.partition(lines[0])[0]


@pytest.mark.parametrize(("section", "name", "field"), ALL)
def test_each_variable_overrides_the_file(folder, monkeypatch, section, name, field):
    kinds = get_args(field.annotation) or (field.annotation,)
    text, kind = next(
        (text, kind)
        for text, kind in (("7", int), ("7.5", float), ("s", SecretStr), ("7MB", str))
        if kind in kinds
    )
    monkeypatch.setenv(variable(section, name), text)
    settings = load_settings(folder)
    found = getattr(getattr(settings, section) if section else settings, name)
    assert type(found) is kind
    assert (found.get_secret_value() if kind is SecretStr else str(found)) == text


def test_a_file_with_the_project_alone_gives_the_defaults(folder):
    assert load_settings(folder).model_dump() == Settings(project="p").model_dump()


def test_the_file_gives_what_it_says(folder):
    (folder / "featurestore.toml").write_text(
        'project = "p"\n[offline]\nmemory_limit = "1GiB"\nworkers = 5\n[scheduling]\nmax_retries=9'
    )
    found = load_settings(folder)
    assert (found.offline.memory_limit, found.offline.workers) == ("1GiB", 5)
    assert found.scheduling.max_retries == 9


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("[offline]\nmemory_limit='1GB'", "The setting 'project' is missing.", None),
        ("project='p'\n[offline]\nmemroy_limit='1GB'", "does not exist", "'offline.memory_limit'"),
        ("project='p'\n[online]\nurl='redis://u:pw@h/0'", "A secret", "FEATURESTORE_ONLINE_PASSW"),
        ("project='p'\n[registry]\npassword='pw'", "A secret", "FEATURESTORE_REGISTRY_PASSW"),
        ("project='p'\n[offline]\nmemory_limit='much'", "'much' is no size", None),
        ("project='p'\n[offline]\nworkers='many'", "'offline.workers' is wrong", None),
        ("project=", "cannot be read", None),
    ],
)
def test_what_is_wrong_in_the_file_is_named(folder, text, what, hint):
    (folder / "featurestore.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(folder)
    assert what in caught.value.what
    assert str(folder) in str(caught.value.where)
    assert hint is None or hint in str(caught.value.hint)
    assert "pw@" not in str(caught.value)


def test_no_file_says_how_to_begin(tmp_path):
    with pytest.raises(SettingsError, match=r"no featurestore\.toml") as caught:
        load_settings(tmp_path)
    assert "featurestore init" in str(caught.value.hint)


def test_a_secret_is_not_shown(folder, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE_PASSWORD", "s3cret")
    assert "s3cret" not in repr(load_settings(folder))


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1B", 1), ("2kb", 2_000), ("1.5 MiB", 1_572_864), ("3GB", 3 * 10**9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1XB", "1 000"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)
