"""Publishing and loading through the real Hub client, over real connections, with everything that can go wrong.

The client reads its address and settings when it is imported, so each scenario runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simco_zoo
from tests.hub.hub_server import TOKEN, Hub, Repository, serve

FILES = ("model.safetensors", "projector.safetensors", "config.json", "README.md")

LOAD = """
import sys, json, torch, simco_zoo
from huggingface_hub.utils import _http
_http.time.sleep = lambda seconds: None   # the client's pauses between its tries
try:
    model = simco_zoo.create_model(sys.argv[1], pretrained=True).eval()
    features = model(torch.full((1, 3, 32, 32), 0.5))
    print(json.dumps({"sum": features.sum().item()}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


@pytest.fixture
def hub():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return simco_zoo.save_pretrained(simco_zoo.create_model("simco_r18_025"), tmp_path_factory.mktemp("p") / "model")


@pytest.fixture(scope="module")
def expected(folder) -> float:
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model(torch.full((1, 3, 32, 32), 0.5)).sum().item()


@pytest.fixture
def stored(hub, folder) -> Repository:
    repository = Repository()
    repository.commit({name: (folder / name).read_bytes() for name in FILES})
    hub.repositories["org/model"] = repository
    return repository


def run(hub: Hub, cache: Path, code: str, *arguments: object, **environment: str) -> dict:
    """Runs code in a new process whose Hub is ours; returns the JSON it prints."""
    settings = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120)
    assert done.stdout.strip(), done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_load_pinned_revision_and_from_cache_without_a_request(hub, stored, tmp_path, expected):
    sha = stored.branches["main"]
    assert run(hub, tmp_path, LOAD, f"hf-hub:org/model@{sha}")["sum"] == pytest.approx(expected)
    hub.requests.clear()
    assert run(hub, tmp_path, LOAD, f"hf-hub:org/model@{sha}")["sum"] == pytest.approx(expected)
    assert hub.requests == []
    offline = run(hub, tmp_path, LOAD, f"hf-hub:org/model@{sha}", HF_HUB_OFFLINE="1")
    assert offline["sum"] == pytest.approx(expected) and hub.requests == []


def test_timm_verifies_too(hub, stored, tmp_path, expected):
    code = LOAD.replace("simco_zoo.create_model(sys", "__import__('timm').create_model(sys")
    assert run(hub, tmp_path, code, "hf-hub:org/model")["sum"] == pytest.approx(expected)
    hub.faults["model.safetensors"] = "wrong bytes"
    assert "is damaged: its sha256 is" in run(hub, tmp_path / "other", code, "hf-hub:org/model")["message"]


FAULTS = {
    "wrong bytes": "is damaged: its sha256 is",
    "cut": "could not be fetched",
    "500": "could not be fetched",
    "503": "could not be fetched",
    "reset": "could not be fetched",
    "stall": "could not be fetched",
    "head:500": "could not be fetched",
    "head:html": "could not be fetched",
    "head:no commit header": "could not be fetched",
    "head:wrong size": "could not be fetched",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_the_next_load_succeeds(fault, hub, stored, tmp_path, expected):
    where = "head:model.safetensors" if fault.startswith("head:") else "model.safetensors"
    hub.faults[where] = fault.removeprefix("head:")
    found = run(hub, tmp_path, LOAD, "hf-hub:org/model")
    assert found.get("error") == "WeightsError", found
    assert FAULTS[fault] in found["message"] and "org/model" in found["message"]
    assert "\n" not in found["message"]
    hub.faults.clear()
    assert run(hub, tmp_path, LOAD, "hf-hub:org/model")["sum"] == pytest.approx(expected)


def test_429_is_waited_for(hub, stored, tmp_path, expected):
    hub.faults["model.safetensors"] = "429"
    found = run(hub, tmp_path, LOAD, "hf-hub:org/model")
    assert found.get("error") == "WeightsError" and "could not be fetched" in found["message"]
    hub.faults.clear()
    assert run(hub, tmp_path, LOAD, "hf-hub:org/model")["sum"] == pytest.approx(expected)


def test_a_damaged_cache_entry_is_fetched_once_more(hub, stored, tmp_path, expected):
    sha = stored.branches["main"]
    run(hub, tmp_path, LOAD, f"hf-hub:org/model@{sha}")
    (blob,) = {path.resolve() for path in tmp_path.rglob("model.safetensors")}
    content = bytearray(blob.read_bytes())
    content[-10] ^= 0x55
    blob.write_bytes(content)
    hub.requests.clear()
    assert run(hub, tmp_path, LOAD, f"hf-hub:org/model@{sha}")["sum"] == pytest.approx(expected)
    assert any(request.startswith("GET") for request in hub.requests)
    hub.requests.clear()
    assert run(hub, tmp_path, LOAD, f"hf-hub:org/model@{sha}")["sum"] == pytest.approx(expected)
    assert hub.requests == []


@pytest.mark.parametrize(("case", "message"), [
    ("missing", "shows no repository 'org/none'"),
    ("private", "if it is private, log in"),
    ("gated", "is gated: ask for access"),
    ("revision", "has no revision 'v9'"),
    ("no file", "was not published by simco-zoo"),
    ("offline", "could not be fetched and is not in the cache"),
])  # fmt: skip
def test_what_cannot_be_had_says_why(case, message, hub, stored, tmp_path):
    name, environment = "hf-hub:org/model", {}
    if case == "missing":
        name = "hf-hub:org/none"
    elif case == "revision":
        name += "@v9"
    elif case == "no file":
        hub.repositories["org/model"] = Repository()
        hub.repositories["org/model"].commit({"README.md": b""})
    elif case == "offline":
        environment["HF_HUB_OFFLINE"] = "1"
    else:
        setattr(stored, case, True)
    found = run(hub, tmp_path, LOAD, name, **environment)
    assert found.get("error") == "WeightsError" and message in found["message"], found


def test_private_repositories_work_with_a_token(hub, stored, tmp_path, expected):
    stored.private = True
    assert run(hub, tmp_path, LOAD, "hf-hub:org/model", HF_TOKEN=TOKEN)["sum"] == pytest.approx(expected)


PUSH = """
import sys, json
from simco_zoo import push_to_hub
try:
    print(json.dumps({"oid": push_to_hub(sys.argv[1], "org/new", **json.loads(sys.argv[2]))}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)[:300]}))
"""


def test_publish_twice_edit_and_fail(hub, folder, tmp_path, expected):
    def push(**arguments: object) -> dict:
        return run(hub, tmp_path, PUSH, folder, json.dumps(arguments), HF_TOKEN=TOKEN)

    first = push(private=True)
    assert "error" not in first, first
    repository = hub.repositories["org/new"]
    assert repository.private and first["oid"] == repository.branches["main"]
    for name in FILES:
        assert repository.files("main")[name] == (folder / name).read_bytes()
    assert run(hub, tmp_path, LOAD, "hf-hub:org/new", HF_TOKEN=TOKEN)["sum"] == pytest.approx(expected)
    # twice changes nothing
    assert push() == first and len(repository.commits) == 2
    # a card that someone edited stays, unless asked
    repository.commit({"README.md": b"# My words\n"})
    push()
    assert repository.files("main")["README.md"] == b"# My words\n"
    push(overwrite_card=True)
    assert repository.files("main")["README.md"] == (folder / "README.md").read_bytes()
    # a failed publish leaves the old revision whole
    before = dict(repository.branches)
    repository.commit({"config.json": b"{}"})
    damaged = dict(repository.branches)
    hub.commit_fault = True
    assert "error" in push(overwrite_card=True) and repository.branches == damaged
    assert before != damaged
    hub.commit_fault = False
    push(revision="v1", overwrite_card=True)
    assert repository.files("v1")["config.json"] == (folder / "config.json").read_bytes()
    assert repository.files("main")["config.json"] == b"{}"


def test_two_processes_load_for_the_first_time_at_once(hub, stored, tmp_path, expected):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: run(hub, tmp_path, LOAD, "hf-hub:org/model"), range(2)))
    assert [f.get("sum") for f in found] == [pytest.approx(expected)] * 2, found
