"""Clients that are none of ours: `buf curl` over gRPC, plain `urllib` over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.integration.http_front import Fronts

ROOT = Path(__file__).parents[2]
SERVICE = "featurestore.serving.v1.FeatureServing"
ASKED = {
    "references": {"references": [{"view": "users", "features": ["score", "name"]}]},
    "entityRows": [{"name": "user", "int64s": {"values": ["1", "4"]}}],
    "asOf": "1717243200000000",
}


@pytest.fixture(scope="module")
def fronts():
    fronts = Fronts()
    yield fronts
    fronts.stop()


def buf(fronts, method, body, *options):
    found = Path(sys.executable).with_name("buf")
    command = [str(found if found.exists() else shutil.which("buf")), "curl"]
    command += ["--protocol", "grpc", "--http2-prior-knowledge", *options]
    return subprocess.run(  # noqa: S603  (of the developers' own tools)
        [*command, "-d", json.dumps(body), f"http://{fronts.address}/{SERVICE}/{method}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("options", [("--schema", "proto"), ("--reflect",)])
def test_a_lookup_by_buf_curl(fronts, options):
    ended = buf(fronts, "GetOnlineFeatures", ASKED, *options)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    score, name = answer["features"]
    assert (answer["rows"], answer["asOf"]) == (2, ASKED["asOf"])
    assert (score["name"], score["doubles"]["values"]) == ("score", [0.5, 0])
    assert base64.b64decode(score["validity"]) == b"\x01"
    assert name["strings"]["values"] == ["one", ""]
    assert answer["sources"][0]["statuses"] == [
        "FEATURE_STATUS_PRESENT",
        "FEATURE_STATUS_NOT_FOUND",
    ]


def test_what_goes_wrong_is_told_by_status_and_words(fronts):
    ended = buf(fronts, "GetOnlineFeatures", {"service": "al"}, "--schema", "proto")
    assert ended.returncode != 0
    told = json.loads(ended.stderr)
    assert told["code"] == "not_found"
    assert "'all'" in told["message"]


def test_a_push_and_what_is_served_by_buf_curl(fronts):
    columns = {"columns": [{"name": "id", "int64s": {"values": ["1", "2"]}}]}
    ended = buf(fronts, "Push", {"source": "clicks", "columns": columns}, "--schema", "proto")
    assert json.loads(ended.stdout)["accepted"] == "2", ended.stderr
    info = json.loads(buf(fronts, "GetServingInfo", {}, "--schema", "proto").stdout)
    assert info["project"] == "shop"


def test_a_lookup_by_urllib(fronts):
    body = {"features": ["users:score"], "entity_rows": [{"user": 1}]}
    request = urllib.request.Request(
        f"http://{fronts.http_address}/v1/get-online-features",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        assert json.load(answer)["values"] == {"score": [0.5]}
