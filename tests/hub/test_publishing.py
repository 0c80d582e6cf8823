"""Publishing is one transaction: a whole folder, or nothing and one sentence; with others, or twice."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import simco_zoo
from simco_zoo.hub import WeightsError
from simco_zoo.hub.config import parse_config
from simco_zoo.publishing import copy_published, save_pretrained
from simco_zoo.publishing.card import card_as_written
from simco_zoo.publishing.push import read_publication
from tests.hub.client import Client
from tests.hub.folders import make_old, read_config, shaken
from tests.hub.hub_server import TOKEN, Repository


@pytest.fixture
def push(client):
    """Publishes a folder as org/new, in the other process."""

    def publish(folder: Path, repo_id: str = "org/new", token: str = TOKEN, **arguments: object) -> dict:
        return client("push", folder, repo_id, token=token, **arguments)

    return publish


@pytest.fixture(scope="module")
def published_once(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("p")
    (root / "log.csv").write_text("epoch,loss\n1,2.5\n")
    return save_pretrained(shaken(), root / "model", tag="toy", log=root / "log.csv")


@pytest.fixture
def folder(published_once, tmp_path) -> Path:
    return Path(shutil.copytree(published_once, tmp_path / "model"))


def check_whole(files: dict[str, bytes]) -> dict:
    """A revision is one publication: each file has the hash that its config.json gives."""
    config = parse_config(files["config.json"], "config.json")
    for name, entry in config["simco_zoo"]["files"].items():
        assert hashlib.sha256(files[name]).hexdigest() == entry["sha256"], name
    assert ("projector.safetensors" in files) == ("projector.safetensors" in config["simco_zoo"]["files"])
    for name, sha256 in config["simco_zoo"]["documents"].items():
        assert name == "README.md" or hashlib.sha256(files[name]).hexdigest() == sha256, name
    return config


def test_what_the_folder_no_longer_has_leaves_the_repository(hub, push, folder, tmp_path):
    assert "result" in push(folder, remote_code=True)
    repository = hub.repositories["org/new"]
    repository.commit({"pytorch_model.bin": b"another model", "notes.txt": b"mine"})
    slim = save_pretrained(shaken(seed=1), tmp_path / "slim", projector=False)
    commits = len(repository.commits)
    assert "result" in push(slim)
    files = repository.files("main")
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "notes.txt"}
    assert len(repository.commits) == commits + 1
    check_whole(files)


@pytest.mark.parametrize("name", ["README.md", "log.csv", "model.safetensors", "config.json"])
def test_links_that_leave_the_folder_are_not_followed(name, hub, push, folder, tmp_path):
    secret = tmp_path / "secret"
    shutil.copy(folder / name, secret)  # the right content: even that is not ours to publish
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    found = push(folder)
    assert found["error"] == "WeightsError" and "leads out of its folder" in found["message"] and not hub.repositories


def test_the_card_names_the_repository_and_belongs_to_the_config(hub, push, folder, tmp_path):
    oid = push(folder)["result"]
    files = hub.repositories["org/new"].files(oid)
    check_whole(files)
    assert files["config.json"] == (folder / "config.json").read_bytes()
    assert read_publication(folder, "org/new") | {".gitattributes": b""} == files
    assert b'create_model("hf-hub:org/new", pretrained=True)' in files["README.md"]
    assert b'AutoModel.from_pretrained("org/new")' in files["README.md"] and b"FOLDER" not in files["README.md"]
    assert card_as_written(files["README.md"]) == (folder / "README.md").read_bytes()


def test_a_card_of_ours_is_renewed_and_an_edited_one_is_kept(hub, push, folder, tmp_path):
    push(folder)
    repository = hub.repositories["org/new"]
    other = save_pretrained(shaken(seed=1), tmp_path / "other", tag="toy", metrics={"knn_top1": 12.34})
    push(other)
    assert b"12.34" in repository.files("main")["README.md"]  # nobody had edited it
    repository.commit({"README.md": b"# My words, \xff not UTF-8\n"})
    assert "was edited there and is kept" in push(folder)["warnings"][0]
    files = repository.files("main")
    assert files["README.md"] == b"# My words, \xff not UTF-8\n"
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    (folder / "README.md").write_text("# Words in the folder\n")
    push(folder, overwrite_card=True)
    assert repository.files("main")["README.md"] == b"# Words in the folder\n"


@pytest.mark.parametrize("files", [
    {"README.md": b"# timm's\n", "config.json": b'{"architecture": "resnet18"}', "pytorch_model.bin": b"x"},
    {"README.md": b"\xff\xfe", "config.json": b"not JSON"},
    {"config.json": b"[]"},
], ids=["timm", "not UTF-8, not JSON", "no card"])  # fmt: skip
def test_repositories_that_others_wrote_are_taken_over_but_for_their_card(files, hub, push, folder, tmp_path):
    hub.repositories["org/new"] = Repository()
    hub.repositories["org/new"].commit(files)
    assert "result" in push(folder)
    after = hub.repositories["org/new"].files("main")
    check_whole(after)
    assert "pytorch_model.bin" not in after and after["README.md"] == files.get("README.md", after["README.md"])


def test_a_tag_is_put_once_and_never_moved(hub, push, folder, tmp_path):
    first = push(folder, tag="v1")
    assert "result" in first and push(folder, tag="v1") == first
    repository = hub.repositories["org/new"]
    # as if the tag had failed after the commit: publishing again puts it
    del repository.branches["v1"]
    assert push(folder, tag="v1") == first and repository.branches["v1"] == first["result"]
    other = save_pretrained(shaken(seed=1), tmp_path / "other", tag="toy")
    head = repository.branches["main"]
    found = push(other, tag="v1")
    assert found["error"] == "WeightsError" and "the tag v1 of org/new is on" in found["message"]
    assert repository.branches["main"] == head and repository.branches["v1"] == first["result"]
    assert "result" in push(other, tag="v2")


def test_a_commit_of_someone_else_in_between_is_taken_into_account(hub, push, folder, tmp_path):
    push(folder)
    repository = hub.repositories["org/new"]
    others = iter([b"one", b"two"])

    def interfere(token: str, request: str) -> None:
        if request.startswith("POST") and "/commit/" in request:
            text = next(others, None)
            if text is not None:
                repository.commit({"projector.safetensors": text, "README.md": text})

    hub.on_request = interfere
    other = save_pretrained(shaken(seed=1), tmp_path / "other", projector=False)
    assert "result" in push(other)
    files = repository.files("main")
    check_whole(files)
    assert files["README.md"] == b"two"  # their edit of the card is kept, too


def test_endless_conflicts_end_in_a_sentence(hub, push, folder, tmp_path):
    push(folder)
    count = iter(range(1000))
    hub.on_request = lambda token, request: (
        hub.repositories["org/new"].commit({"x": str(next(count)).encode()}) and None if "/commit/" in request else None
    )
    other = save_pretrained(shaken(seed=1), tmp_path / "other")
    found = push(other)
    assert found["error"] == "WeightsError" and "others kept committing to org/new" in found["message"]


@pytest.mark.parametrize(("part", "answer", "message"), [
    ("/commit/", "403", "hf auth login"),
    ("/api/", "html", "did not answer as expected"),
    ("/api/models/", "html", "did not answer as expected"),
    ("/commit/", "500", "did not answer as expected"),
    ("/commit/", "html", "did not answer as expected"),
])  # fmt: skip
def test_every_refusal_is_one_sentence_with_the_way_out(part, answer, message, hub, push, folder):
    hub.answers[part] = answer
    found = push(folder)
    assert found.get("error") == "WeightsError" and message in found["message"], found
    assert "\n" not in found["message"] and "org/new" in found["message"]
    hub.answers.clear()
    assert "result" in push(folder)
    check_whole(hub.repositories["org/new"].files("main"))


def test_a_wrong_token_and_a_wrong_name(hub, push, folder):
    found = push(folder, token="hf_wrong")
    assert found["error"] == "WeightsError" and "hf auth login" in found["message"], found
    for call, message in (
        ({"repo_id": "a//b"}, "is not the name of a repository"),
        ({"repo_id": "new"}, "does not say whose repository"),
        ({"tag": ""}, "is not the name of a tag"),
        ({"tag": "a b"}, "is not the name of a tag"),
        ({"tag": "main"}, "has the name of a branch"),  # it would have been taken for a tag that is there
        ({"tag": "dev", "revision": "dev"}, "has the name of a branch"),
        ({"revision": ""}, "is not the name of a branch"),
    ):
        found = push(folder, **call)
        assert found.get("error") == "WeightsError" and message in found["message"], (call, found)
    (folder / "README.md").write_bytes(b"\xff")
    assert "is not UTF-8 text" in push(folder)["message"]
    assert not hub.repositories


@pytest.mark.parametrize("case", ["refused", "offline"])
def test_without_a_network(case, hub, folder, tmp_path):
    offline = {"HF_HUB_OFFLINE": "1"} if case == "offline" else {}
    process = Client("http://127.0.0.1:9" if case == "refused" else hub.address, tmp_path, **offline)
    found = process("push", folder, "org/new", token=TOKEN)
    process.close()
    assert found["error"] == "WeightsError" and "unset HF_HUB_OFFLINE" in found["message"], found


def test_folders_of_an_earlier_version_are_published_with_hashes(hub, push, folder, tmp_path):
    make_old(folder)
    assert "result" in push(folder)
    check_whole(hub.repositories["org/new"].files("main"))


def test_an_edited_log_is_not_published(hub, push, folder, tmp_path):
    (folder / "log.csv").write_text("epoch,loss\n1,0.0\n")
    found = push(folder)
    assert found["error"] == "WeightsError" and "is not the file that was written with the model" in found["message"]


# Copies


def test_a_copy_is_whole_and_overwrites_nothing(folder, tmp_path):
    name = f"local-dir:{folder}"
    assert copy_published(name, tmp_path / "copy") == tmp_path / "copy"
    assert {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    copy_published("simco_r18_025", tmp_path / "copy")  # an older copy is replaced
    assert read_config(tmp_path / "copy")["pretrained_cfg"]["tag"] == "cifar100"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("my project")
    for files in (["README.md"], ["README.md", "config.json"]):
        for file in files:
            (mine / file).write_text("my project")
        with pytest.raises(ValueError, match="so that nothing is lost"):
            copy_published(name, mine)
        with pytest.raises(ValueError, match="so that nothing is lost"):
            save_pretrained(shaken(), mine)
        assert sorted(p.name for p in mine.iterdir()) == files and (mine / "README.md").read_text() == "my project"


def test_a_damaged_model_is_not_copied(folder, tmp_path):
    (folder / "projector.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match="is damaged"):
        copy_published(f"local-dir:{folder}", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_copy_from_the_hub(hub, push, client, folder, tmp_path):
    oid = push(folder)["result"]
    checks = client("copy", "hf-hub:org/new", tmp_path / "copy")["result"]
    assert {name for name, _, _ in checks} >= {"README.md", "log.csv", "fingerprint"}
    assert [check for check in checks if check[1] or check[2]] == []
    files = hub.repositories["org/new"].files(oid)
    assert {p.name for p in (tmp_path / "copy").iterdir()} == set(files) - {".gitattributes"}
    assert simco_zoo.create_model(f"local-dir:{tmp_path / 'copy'}", pretrained=True).num_features == 128
