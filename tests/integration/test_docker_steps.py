"""The steps of the image and the composition, run without a container engine.

A wheel is built and installed into a new environment as the Dockerfile does, a server runs from
there, and the image's own health check asks it. That the image is built and that containers see
each other stays unproven here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestore.cli.app import cli
from featurestore.clock import SystemClock
from featurestore.model.settings import Settings
from featurestore.semantics.timeline import format_instant
from featurestore.testing.valkey import ValkeyServer, wait_until
from featurestore.wiring import load_settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker" / "compose.yaml"
SECRET = 'correct horse & "battery'.replace('"', "'")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel that the Dockerfile's COPY lines are enough for."""
    folder = tmp_path_factory.mktemp("image")
    source, environment = folder / "source", folder / "opt"
    source.mkdir()
    for copied in _instructions("COPY")[:2]:
        *names, target = copied.split()
        for name in names:
            origin, goal = ROOT / name, source / target
            if origin.is_dir():
                shutil.copytree(origin, goal, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(origin, goal)
    _run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
        "-q", "-w", str(folder), str(source),
    )  # fmt: skip
    wheel = next(folder.glob("featurestore-*.whl"))
    # What the wheel depends on is installed here already; only the wheel itself is proven.
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    _run(
        sys.executable, "-m", "pip", f"--python={environment}", "install", "-q", "--no-deps",
        "--no-index", str(wheel),
    )  # fmt: skip
    _see_dependencies(environment)
    shutil.copy(ROOT / "docker" / "healthcheck.py", environment / "healthcheck.py")
    return environment


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the composition mounts: settings and definitions."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copy(ROOT / "featurestore.toml", folder)
    shutil.copytree(ROOT / "definitions", folder / "definitions")
    return folder


def test_the_image_serves_and_its_health_check_tells(image: Path, repository: Path):
    port = _free_port()
    environment = _environment(image, FEATURESTORE_SERVING_ADDRESS=f"127.0.0.1:{port}")
    _run(*_entrypoint(image), "apply", cwd=repository, env=environment)
    assert _health(image, environment).returncode == 1
    with _started([*_entrypoint(image), *_command()], repository, environment) as server:
        wait_until(
            lambda: server.poll() is not None or _health(image, environment).returncode == 0,
            what="a healthy server",
        )
        assert "SERVING" in _health(image, environment).stdout
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert "UNAVAILABLE" in _health(image, environment).stderr


def test_what_runs_is_the_wheel(image: Path, tmp_path: Path):
    code = "import featurestore, featurestore.serving.v1.serving_pb2 as pb; print(pb.__file__)"
    found = _run(str(image / "bin" / "python"), "-c", code, cwd=tmp_path, env=_environment(image))
    assert found.stdout.startswith(str(image))


def test_the_health_check_asks_loopback_when_the_server_listens_everywhere(image: Path):
    environment = _environment(image, FEATURESTORE_SERVING_ADDRESS=f"0.0.0.0:{_free_port()}")
    assert _health(image, environment).stderr.startswith("127.0.0.1:")


def test_the_composition_works_with_a_redis_that_has_a_password(image: Path, repository: Path):
    compose = _compose()
    given = {"FEATURESTORE_ONLINE_PASSWORD": SECRET}
    with ValkeyServer(password=SECRET) as redis:
        wanted = _expanded(compose["services"]["server"]["environment"], given)
        wanted["FEATURESTORE_ONLINE_URL"] = redis.url
        wanted["DEPARTURES_STREAM"] = f"{redis.url}/departures"
        environment = _environment(image, **wanted)
        (repository / "flight.jsonl").write_text(_flight_of_now(), encoding="utf-8")
        for words in (
            ["apply"],
            ["materialize", "2013-01-01T00:00:00Z", "2013-01-03T00:00:00Z"],
            ["push", "departures", "flight.jsonl"],
            ["ingest", "--until-idle"],
        ):
            _run(*_entrypoint(image), *words, cwd=repository, env=environment)
        flown = _run(
            *_entrypoint(image), "get-online-features", "--features", "origin_congestion:count_1h",
            "--entity", "origin=JFK", "--output", "json", cwd=repository, env=environment,
        )  # fmt: skip
        answer = _run(
            *_entrypoint(image), "get-online-features", "--features", "airport_facts:zone",
            "--entity", "airport=JFK", "--output", "json", cwd=repository, env=environment,
        )  # fmt: skip
    assert json.loads(answer.stdout)["rows"][0]["values"] == {"zone": "America/New_York"}
    assert json.loads(flown.stdout)["rows"][0]["values"] == {"count_1h": 1}
    assert SECRET not in answer.stdout + answer.stderr + flown.stdout


def test_the_dockerfile_ends_as_somebody_harmless_with_an_exec_entrypoint():
    assert _instructions("USER") == ["10001:10001"]
    assert json.loads(_instructions("ENTRYPOINT")[0]) == ["featurestore"]
    assert json.loads(_instructions("CMD")[-1]) == ["serve"]
    for base in _instructions("FROM"):
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+(?: AS build)?", base)


def test_what_is_not_copied_is_not_sent():
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        name.rstrip("/")
        for line in _instructions("COPY")
        if not line.startswith("--from")
        for name in line.split()[:-1]
    }
    assert ignored[1] == "*"
    assert copied == allowed


def test_the_commands_of_the_composition_exist():
    services = _compose()["services"]
    ours = {name: s for name, s in services.items() if s.get("image") == "featurestore"}
    assert set(ours) == {"apply", "server", "ingest", "scheduler"}
    for service in ours.values():
        assert service["command"][0] in cli.commands


def test_the_composition_fits_together():
    compose = _compose()
    services, volumes = compose["services"], compose["volumes"]
    allowed = {
        "image", "build", "command", "depends_on", "environment", "healthcheck", "init", "ports",
        "restart", "stop_grace_period", "volumes",
    }  # fmt: skip
    conditions = {"service_healthy", "service_completed_successfully", "service_started"}
    for service in services.values():
        assert set(service) <= allowed
        for name, need in service.get("depends_on", {}).items():
            assert name in services
            assert need["condition"] in conditions
        for mount in service.get("volumes", []):
            origin = mount.split(":")[0]
            known = origin in volumes or (COMPOSE.parent / origin).resolve().exists()
            assert known, mount
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
    assert services["redis"]["healthcheck"]["test"][0] == "CMD"


def test_the_variables_of_the_composition_are_settings(monkeypatch: pytest.MonkeyPatch):
    given = {"FEATURESTORE_ONLINE_PASSWORD": SECRET}
    for service in ("server", "ingest", "scheduler", "apply"):
        variables = _expanded(_compose()["services"][service]["environment"], given)
        stream = variables.pop("DEPARTURES_STREAM")
        assert stream == "redis://redis:6379/departures"
        for name, value in variables.items():
            section, key = name.removeprefix("FEATURESTORE_").lower().split("_", 1)
            assert key in type(Settings.model_fields[section].default).model_fields
            monkeypatch.setenv(name, value)
        settings = load_settings(ROOT)
        assert settings.online.url == "redis://redis:6379"
        assert settings.online.password is not None
        assert settings.online.password.get_secret_value() == SECRET


def test_no_secret_stands_in_the_files():
    text = COMPOSE.read_text(encoding="utf-8") + DOCKERFILE.read_text(encoding="utf-8")
    for line in text.splitlines():
        if "PASSWORD" in line or "AUTH" in line:
            assert "$" in line or "export" in line, line


def _flight_of_now() -> str:
    left = format_instant(SystemClock().now_us() - 60_000_000)
    flight = {
        "flight_id": "DL 1 now", "origin": "JFK", "dest": "BOS", "carrier": "DL", "tailnum": "N1",
        "dep_delay": 12.5, "departed_at": left,
    }  # fmt: skip
    return json.dumps(flight) + "\n"


def _compose() -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return compose


def _expanded(variables: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """Return a service's environment with `${NAME:?message}` filled in."""
    return {
        name: re.sub(r"\$\{(\w+):\?[^}]*\}", lambda m: given[m[1]], str(value))
        for name, value in variables.items()
    }


def _instructions(word: str) -> list[str]:
    """Return the arguments of an instruction's lines, continuation lines joined."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{word}\s+(.*)$", text, re.MULTILINE)


def _entrypoint(image: Path) -> list[str]:
    (name,) = json.loads(_instructions("ENTRYPOINT")[0])
    return [str(image / "bin" / name)]


def _command() -> list[str]:
    words: list[str] = json.loads(_instructions("CMD")[-1])
    return words


def _health(image: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the HEALTHCHECK's command."""
    line = _instructions("HEALTHCHECK")[0]
    python, script = json.loads(line.partition("CMD")[2])
    script = script.replace("/opt/featurestore", str(image))
    return subprocess.run(  # noqa: S603  (the image's own command)
        [str(image / "bin" / python), script],
        env=environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def _environment(image: Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FEATURESTORE_", "PYTHON"))}
    return {**kept, "PATH": f"{image / 'bin'}:{os.environ['PATH']}", **variables}


def _see_dependencies(environment: Path) -> None:
    """Let a new environment find the packages of this one, but not this one's featurestore."""
    (site,) = environment.glob("lib/python*/site-packages")
    here = Path(pytest.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{here}\n", encoding="utf-8")


def _run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: S603  (our own interpreter and command)
        command, capture_output=True, text=True, check=False, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def _started(
    command: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # noqa: S603  (our own command)
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
