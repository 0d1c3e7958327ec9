"""The server does what its own description says, whatever is sent."""

from __future__ import annotations

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from edge_runtime.daemon.http import openapi
from edge_runtime.daemon.http.app import Application, Site
from edge_runtime.kiosk.pages import PUBLIC_PAGES
from edge_runtime.settings import Settings

PATHS = openapi.document("1")["paths"]
OPERATIONS = [(path, method.upper()) for path, methods in PATHS.items() for method in methods]
# Only a body can be wrong: the others take nothing.
CASES = [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
CASES += [(path, method, GenerationMode.NEGATIVE) for path, method in OPERATIONS if method == "POST"]
# What is wrong may be too large before it is wrong.
WRONG = {"negative_data_rejection": {"expected-statuses": ["400", "404", "413", "415"]}}
CONFIG = schemathesis.Config.from_dict({"checks": WRONG})


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_the_server_keeps_to_its_description(box, path, method, mode):
    operation = schemathesis.openapi.from_url(f"{box.url}/openapi.json", config=CONFIG)[path][method]
    cases = operation.as_strategy(generation_mode=mode)

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def ask(case):
        # What a schema cannot say may be refused: that a file is a recording, that a chosen tool is one of them.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    ask()


def test_every_route_is_described():
    routes = {getattr(route, "path", None) for route in Application(Site("1"), Settings())._router.routes}
    described = {re.sub(r"{name}", "{name:path}", path) for path in PATHS}
    assert routes - described == {"/v1/listen", "/kiosk/speech", "/kiosk/status.json"} | PUBLIC_PAGES
    assert described <= routes
