"""A feature server with the Connect front in this process, and plain ways to speak to it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from featurestore.serving.v1 import serving_pb2 as pb
from tests.integration.http_front import Answer, Fronts

SERVICE = "/featurestore.serving.v1.FeatureServing"
LOOKUP = f"{SERVICE}/GetOnlineFeatures"
HEALTH = "/grpc.health.v1.Health/Check"
KIND = "application/proto"


def lookup(*references: str, user: int = 1, **fields: Any) -> pb.GetOnlineFeaturesRequest:
    """Return the message of a lookup of one user."""
    message = pb.GetOnlineFeaturesRequest(**fields)
    for reference in references:
        view, _, feature = reference.partition(":")
        message.references.references.add(view=view, features=[feature] if feature else [])
    message.entity_rows.add(name="user").int64s.values.append(user)
    return message


ONE = lookup("users:score").SerializeToString()


class ConnectFronts(Fronts):
    """A server whose plain ways to be asked lead to its Connect front."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        given = {"connect_address": "127.0.0.1:0", "http_address": None, **settings}
        super().__init__(*args, **given)
        self.connect_address = self.server.connect_address or ""
        self.host, _, port = self.connect_address.rpartition(":")
        self.port = int(port or 0)

    def call(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Answer:
        """Call once, over a connection of its own."""
        kind = {"content-type": KIND, "connect-protocol-version": "1"}
        return self.ask(path, body, {**kind, **(headers or {})}, **options)

    def look_up(self, body: Any = ONE, headers: Mapping[str, str] | None = None) -> Answer:
        return self.call(LOOKUP, body, headers)


def call(
    connection: http.client.HTTPConnection, path: str = LOOKUP, body: bytes = ONE, **headers: str
) -> Answer:
    """Call over a connection that stays."""
    connection.request("POST", path, body, {"content-type": KIND, **headers})
    answer = connection.getresponse()
    named = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, named, answer.read())


def scores(answer: Answer) -> list[float]:
    """Return the values of the first feature of an answer."""
    assert answer.status == 200, answer.body
    found = pb.GetOnlineFeaturesResponse.FromString(answer.body)
    return list(found.features[0].doubles.values)


def told(answer: Answer) -> tuple[str, dict[str, str]]:
    """Return the code of an error, and what it tells."""
    error = json.loads(answer.body)
    assert answer.headers["content-type"] == "application/json"
    return error["code"], error["details"][0]["debug"]
