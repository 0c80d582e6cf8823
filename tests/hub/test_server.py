"""Publishing and loading through the real Hub client, over real connections, with everything that can go wrong.

The client reads its address and settings when it is imported, so each scenario runs in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simco_zoo
from simco_zoo.hub.config import seal
from simco_zoo.publishing.card import card_for_repository
from simco_zoo.publishing.register import register_publication
from tests.hub.client import client_environment
from tests.hub.hub_server import TOKEN, Hub, Repository

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
    settings = {**client_environment(hub.address, cache), **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120)
    assert done.stdout.strip(), done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def load(client, tmp_path):
    """Loads a model in the other process; returns the sum of its features, or the name of the error and its message."""

    def features(name: str, cache: str = "cache", **keywords: object) -> dict:
        return client("features", name, tmp_path / cache, **keywords)

    return features


def test_load_pinned_revision_and_from_cache_without_a_request(hub, stored, load, tmp_path, expected):
    sha = stored.branches["main"]
    assert load(f"hf-hub:org/model@{sha}")["result"] == pytest.approx(expected)
    hub.requests.clear()
    assert load(f"hf-hub:org/model@{sha}")["result"] == pytest.approx(expected)
    assert hub.requests == []
    cache = f"import os; os.environ['HF_HUB_CACHE'] = {str(tmp_path / 'cache')!r}\n"
    offline = run(hub, tmp_path, cache + LOAD, f"hf-hub:org/model@{sha}", HF_HUB_OFFLINE="1")
    assert offline["sum"] == pytest.approx(expected) and hub.requests == []


def test_timm_verifies_too(hub, stored, load, expected):
    assert load("hf-hub:org/model", by_timm=True)["result"] == pytest.approx(expected)
    hub.faults["model.safetensors"] = "wrong bytes"
    assert "is damaged: its sha256 is" in load("hf-hub:org/model", "other", by_timm=True)["message"]


FAULTS = {
    "wrong bytes": "is damaged: its sha256 is",
    "cut": "could not be fetched",
    "500": "could not be fetched",
    "503": "could not be fetched",
    "429": "could not be fetched",
    "reset": "could not be fetched",
    "stall": "could not be fetched",
    "head:500": "could not be fetched",
    "head:html": "could not be fetched",
    "head:no commit header": "could not be fetched",
    "head:wrong size": "could not be fetched",
}


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_the_next_load_succeeds(fault, file, hub, stored, load, expected):
    hub.faults[f"head:{file}" if fault.startswith("head:") else file] = fault.removeprefix("head:")
    found = load("hf-hub:org/model")
    assert found.get("error") == "WeightsError", found
    message = FAULTS[fault] if (fault, file) != ("wrong bytes", "config.json") else "is damaged: its hash is not"
    assert message in found["message"] and "org/model" in found["message"]
    assert "\n" not in found["message"]
    hub.faults.clear()
    assert load("hf-hub:org/model")["result"] == pytest.approx(expected)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_cache_entry_is_fetched_once_more(file, hub, stored, load, tmp_path, expected):
    sha = stored.branches["main"]
    load(f"hf-hub:org/model@{sha}")
    (blob,) = {path.resolve() for path in tmp_path.rglob(file)}
    content = bytearray(blob.read_bytes())
    content[-10] ^= 0x55
    blob.write_bytes(content)
    hub.requests.clear()
    assert load(f"hf-hub:org/model@{sha}")["result"] == pytest.approx(expected)
    assert any(request.startswith("GET") for request in hub.requests)
    hub.requests.clear()
    assert load(f"hf-hub:org/model@{sha}")["result"] == pytest.approx(expected)
    assert hub.requests == []


@pytest.mark.parametrize(("case", "message"), [
    ("missing", "shows no repository 'org/none'"),
    ("private", "if it is private, log in"),
    ("gated", "is gated: ask for access"),
    ("revision", "has no revision 'v9'"),
    ("no file", "was not published by simco-zoo"),
])  # fmt: skip
def test_what_cannot_be_had_says_why(case, message, hub, stored, load):
    name = "hf-hub:org/model"
    if case == "missing":
        name = "hf-hub:org/none"
    elif case == "revision":
        name += "@v9"
    elif case == "no file":
        hub.repositories["org/model"] = Repository()
        hub.repositories["org/model"].commit({"README.md": b""})
    else:
        setattr(stored, case, True)
    found = load(name)
    assert found.get("error") == "WeightsError" and message in found["message"], found


def test_offline_without_a_cache(hub, stored, tmp_path):
    found = run(hub, tmp_path, LOAD, "hf-hub:org/model", HF_HUB_OFFLINE="1")
    assert found["error"] == "WeightsError" and "could not be fetched and is not in the cache" in found["message"]


def test_private_repositories_work_with_a_token(hub, stored, load, expected):
    stored.private = True
    assert load("hf-hub:org/model", token=TOKEN)["result"] == pytest.approx(expected)


def test_publish_twice_edit_and_fail(hub, client, load, folder, expected):
    def push(**arguments: object) -> dict:
        return client("push", folder, "org/new", token=TOKEN, **arguments)

    first = push(private=True)
    assert "error" not in first, first
    repository = hub.repositories["org/new"]
    assert repository.private and first["result"] == repository.branches["main"]
    for name in FILES[:3]:
        assert repository.files("main")[name] == (folder / name).read_bytes()
    card = card_for_repository((folder / "README.md").read_bytes(), "org/new")
    assert repository.files("main")["README.md"] == card
    assert load("hf-hub:org/new", token=TOKEN)["result"] == pytest.approx(expected)
    # twice changes nothing
    assert push() == first and len(repository.commits) == 2, repository.commits.keys()
    # a card that someone edited stays, unless asked
    repository.commit({"README.md": b"# My words\n"})
    push()
    assert repository.files("main")["README.md"] == b"# My words\n"
    push(overwrite_card=True)
    assert repository.files("main")["README.md"] == card
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


def test_publish_with_a_tag_a_curve_and_remote_code(hub, client, load, folder, tmp_path, expected):
    curves = tmp_path / "drawn.png"
    curves.write_bytes(b"a picture")
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    other = simco_zoo.save_pretrained(model, tmp_path / "other", curves=curves)
    published = client("push", other, "org/new", token=TOKEN, tag="v1.0", remote_code=True)
    assert "error" not in published, published
    files = hub.repositories["org/new"].files("v1.0")
    assert hub.repositories["org/new"].branches["v1.0"] == published["result"]
    assert files["curves.png"] == b"a picture" and b"(curves.png)" in files["README.md"]
    assert json.loads(files["config.json"])["auto_map"] == {"AutoModel": "modeling_simco.SimcoModel"}
    assert load("hf-hub:org/new@v1.0")["result"] == pytest.approx(expected)
    remote = run(hub, tmp_path, REMOTE_CODE, "org/new")
    assert remote["without"] and remote["sum"] == pytest.approx(expected, rel=1e-4) and not remote["imported"]


REMOTE_CODE = """
import sys, json, torch, transformers
try:
    transformers.AutoModel.from_pretrained(sys.argv[1])
    without = ""
except ImportError as error:
    without = str(error)
model = transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
pooled = model(torch.full((1, 3, 32, 32), 0.5)).pooler_output
print(json.dumps({"without": without, "sum": pooled.sum().item(), "imported": "simco_zoo" in sys.modules}))
"""


def test_a_damaged_folder_is_not_sent(hub, client, folder, tmp_path):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    content = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = client("push", other, "org/new", token=TOKEN)
    assert found["error"] == "WeightsError" and "is damaged" in found["message"] and not hub.repositories


def test_timm_pushes_and_both_load_what_it_pushed(hub, folder, tmp_path, expected):
    """timm's own push_to_hf_hub of our backbone: through timm it comes back; simco_zoo says whose it is."""
    code = """
import sys, json, torch, timm, simco_zoo
backbone = timm.create_model("local-dir:" + sys.argv[1], pretrained=True)
timm.models.push_to_hf_hub(backbone, "org/pushed", safe_serialization=True)
again = timm.create_model("hf-hub:org/pushed", pretrained=True).eval()
try:
    simco_zoo.create_model("hf-hub:org/pushed", pretrained=True)
except ValueError as error:
    refused = str(error)
print(json.dumps({"sum": again(torch.full((1, 3, 32, 32), 0.5)).sum().item(), "refused": refused}))
"""
    found = run(hub, tmp_path, code, folder, HF_TOKEN=TOKEN)
    assert found["sum"] == pytest.approx(expected)
    assert "was not published by simco-zoo" in found["refused"] and "timm.create_model" in found["refused"]


@pytest.mark.parametrize(("case", "preamble", "message"), [
    # a real refusal by the kernel, where a test may run as root and own every folder
    ("full disk", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))", "free some space"),
    ("unwritable", "", "make it writable"),
])  # fmt: skip
def test_a_cache_that_takes_no_file(case, preamble, message, hub, stored, tmp_path, expected):
    cache = tmp_path / "cache"
    if case == "unwritable":
        cache.write_text("a file where the folder would be")
    found = run(hub, cache, f"{preamble}\n{LOAD}", "hf-hub:org/model")
    assert found.get("error") == "WeightsError" and message in found["message"], found
    assert "cache_dir=FOLDER or HF_HOME" in found["message"]
    if case == "unwritable":
        cache.unlink()
    assert run(hub, cache, LOAD, "hf-hub:org/model")["sum"] == pytest.approx(expected)
    assert not list(cache.rglob("*.incomplete"))


def test_a_refused_connection(hub, tmp_path):
    found = run(Hub("http://127.0.0.1:9"), tmp_path, LOAD, "hf-hub:org/model")
    assert found.get("error") == "WeightsError", found
    for way_out in ("connect", "weights=FOLDER", "HF_HOME"):
        assert way_out in found["message"]


def test_a_registered_publication_loads_by_name_without_a_request_from_the_cache(
    hub, client, folder, tmp_path, expected
):
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    tagged = simco_zoo.save_pretrained(model, tmp_path / "tagged", tag="mine")
    oid = client("push", tagged, "org/new", token=TOKEN)["result"]
    registry = tmp_path / "registry.json"
    registry.write_text("{}")
    assert register_publication(tagged, "org/new", oid, registry) == "simco_r18_025.mine"
    # as after the package was released with that registry: it is read when simco_zoo is imported
    code = f"""
import json, pathlib
plain, registered = pathlib.Path.read_text, pathlib.Path({str(registry)!r})
pathlib.Path.read_text = lambda self, *a, **k: plain(registered if self.name == "registry.json" else self, *a, **k)
import simco_zoo
assert "simco_r18_025.mine" in simco_zoo.list_models(pretrained=True)
{LOAD}"""
    assert run(hub, tmp_path, code, "simco_r18_025.mine")["sum"] == pytest.approx(expected)
    assert hub.requests[-1].endswith(".safetensors") and oid in hub.requests[-1]
    hub.requests.clear()
    assert run(hub, tmp_path, code, "simco_r18_025.mine")["sum"] == pytest.approx(expected) and hub.requests == []
    by_timm = code.replace("simco_zoo.create_model(sys", "__import__('timm').create_model(sys")
    assert run(hub, tmp_path, by_timm, "simco_r18_025.mine")["sum"] == pytest.approx(expected)
    # the registry's hash, not the repository's own, is what counts
    cached = next(tmp_path.rglob("models--org--new/snapshots/*/model.safetensors")).resolve()
    entry = json.loads(registry.read_text())
    entry["simco_r18_025.mine"]["config"]["simco_zoo"]["files"]["model.safetensors"]["sha256"] = "0" * 64
    entry["simco_r18_025.mine"]["config"] = seal(entry["simco_r18_025.mine"]["config"])
    registry.write_text(json.dumps(entry))
    assert "is damaged" in run(hub, tmp_path, code, "simco_r18_025.mine")["message"] and cached.is_file()


@pytest.mark.parametrize(
    ("tag", "revision", "message"), [(None, "a" * 40, "has no tag"), ("t", "main", "not a full sha")]
)
def test_what_cannot_be_registered(tag, revision, message, folder, tmp_path):
    model = simco_zoo.create_model("simco_r18_025")
    model.backbone.pretrained_cfg = {k: v for k, v in model.pretrained_cfg.items() if k != "tag"}
    (tmp_path / "registry.json").write_text("{}")
    saved = simco_zoo.save_pretrained(model, tmp_path / "m", tag=tag)
    with pytest.raises(ValueError, match=message):
        register_publication(saved, "org/new", revision, tmp_path / "registry.json")
    assert (tmp_path / "registry.json").read_text() == "{}"


def test_two_processes_load_for_the_first_time_at_once(hub, stored, tmp_path, expected):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: run(hub, tmp_path, LOAD, "hf-hub:org/model"), range(2)))
    assert [f.get("sum") for f in found] == [pytest.approx(expected)] * 2, found
