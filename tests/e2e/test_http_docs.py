"""Every example of docs/api.md, run as it stands against the daemon; only the address is another."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import jinja2
import pytest
import yaml

import edge_runtime
from edge_runtime import settings

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
ASSETS = Path(edge_runtime.__file__).parent / "demo_assets"
# Runs a flow whose nodes stand in a row, as Node-RED does.
FLOW = """
const flow = JSON.parse(process.argv[1]);
const kinds = {
  "inject": node => ({payload: node.payload}),
  "function": (node, msg) => new Function("msg", node.func)(msg),
  "http request": async (node, msg) => {
    const asked = {method: node.method, headers: msg.headers, body: JSON.stringify(msg.payload)};
    return {...msg, payload: await (await fetch(node.url, asked)).json()};
  },
  "debug": (node, msg) => console.log(msg[node.complete]),
};
(async () => {
  let node = flow.find(node => node.type === "inject"), msg;
  while (node) {
    msg = await kinds[node.type](node, msg);
    node = node.wires.length ? flow.find(next => next.id === node.wires[0][0]) : null;
  }
})();
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def here(box):
    """The page's text with the address of the daemon."""
    url = box[0].url
    return lambda text: text.replace("http://localhost:8080", url).replace(
        "ws://localhost:8080", url.replace("http", "ws")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    for name in ("voice.wav", "sign.png"):
        shutil.copy(ASSETS / name, folder)
    return folder


def output(command, folder):
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


SHELL = ["9 am", '"hour', "Until what time is the zoo open?"]
PYTHON = ["shop", "FLOOR 17", "Until what time is the zoo open?", "The zoo closes at 6 pm."]


@pytest.mark.parametrize(("number", "says"), list(enumerate(SHELL)))
def test_shell(here, folder, number, says):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    said = output(["bash", "-ec", here(blocks("bash")[number])], folder)
    assert says in said.replace("\\", "")


@pytest.mark.parametrize(("number", "says"), list(enumerate(PYTHON)))
def test_python(here, folder, number, says):
    assert says in output([sys.executable, "-c", here(blocks("python")[number])], folder)


def test_all_of_them_are_run():
    assert (len(blocks("bash")), len(blocks("python"))) == (len(SHELL), len(PYTHON))
    assert (len(blocks("yaml")), len(blocks("json")), len(blocks("toml"))) == (2, 1, 2)


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings(text, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(text)
    read = settings.load(file, {})
    for section, keys in tomllib.loads(text).items():
        for key, value in keys.items():
            given = getattr(getattr(read, section), key)
            assert (list(given) if isinstance(given, tuple) else str(given)) == value


def test_home_assistant(here):
    """As its integration `rest_command` does it: templates are jinja2 with filters such as `to_json`."""
    command, actions = (yaml.safe_load(here(block)) for block in blocks("yaml"))
    action = actions[0]
    service = command["rest_command"][action["action"].split(".")[1]]
    environment = jinja2.Environment(autoescape=False)
    environment.filters["to_json"] = json.dumps
    body = environment.from_string(service["payload"]).render(**action["data"])
    headers = {"Content-Type": service["content_type"]}
    reply = httpx2.request(service["method"], service["url"], content=body, headers=headers, timeout=service["timeout"])
    variables = {action["response_variable"]: {"content": reply.json(), "status": reply.status_code}}
    assert "9 am" in environment.from_string(actions[1]["data"]["message"]).render(**variables)


def test_node_red(here, folder):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    assert "9 am" in output(["node", "-e", FLOW, here(blocks("json")[0])], folder)
