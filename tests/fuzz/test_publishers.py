"""Two publishers at once: whatever the order of their requests, each revision is one publication, whole.

pytest tests/fuzz/test_publishers.py              # a sample of the orders
pytest tests/fuzz/test_publishers.py --fuzz 0 -s  # all orders of the requests that read or write the branch
"""

from __future__ import annotations

import collections
import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simco_zoo.publishing import save_pretrained
from tests.hub.client import Client
from tests.hub.folders import shaken
from tests.hub.hub_server import TOKEN, serve
from tests.hub.test_publishing import check_whole

PATIENCE = 20.0  # seconds after which a publisher that should come next is taken to have ended
MOST = 6  # requests of each publisher whose order is prescribed


class Turns:
    """Lets requests through in a given order of the two publishers, as long as both have requests."""

    def __init__(self, order: str) -> None:
        self.order = list(order)
        self.ended: set[str] = set()
        self.changed = threading.Condition()

    def wait(self, token: str, request: str) -> None:
        publisher = token[-1]
        with self.changed:
            self.changed.wait_for(lambda: self._next() in (publisher, ""), PATIENCE)
            if self.order:
                self.order.remove(publisher) if publisher in self.order else None
            self.changed.notify_all()

    def end(self, publisher: str) -> None:
        with self.changed:
            self.ended.add(publisher)
            self.changed.notify_all()

    def _next(self) -> str:
        """The publisher whose request comes next; "" if anyone's may."""
        waiting = [publisher for publisher in self.order if publisher not in self.ended]
        return waiting[0] if waiting else ""


def orders(count: int) -> list[str]:
    """All orders of ``MOST`` requests of A and as many of B, or a sample of them."""
    places = list(itertools.combinations(range(2 * MOST), MOST))
    chosen = places if count == 0 else random.Random(0).sample(places, max(1, count // 5))
    return ["".join("A" if i in place else "B" for i in range(2 * MOST)) for place in chosen]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("publishers")
    tiny = {"backbone": "resnet18", "small_stem": True, "backbone_kwargs": {"channels": (2, 2, 4, 4)}}
    (root / "log.csv").write_text("epoch\n")
    first = shaken("simco", **tiny, proj_hidden_dim=4, proj_dim=4)
    second = shaken("mocov2", seed=1, **tiny, proj_hidden_dim=4, proj_dim=4)
    return {
        "A": save_pretrained(first, root / "a", log=root / "log.csv"),
        "B": save_pretrained(second, root / "b", projector=False),
    }


def test_two_publishers(folders, tmp_path, fuzz_count):
    counts: collections.Counter[str] = collections.Counter()
    with serve() as hub, ThreadPoolExecutor(2) as pool:
        clients = {name: Client(hub.address, tmp_path / name) for name in "AB"}
        for number, order in enumerate(orders(fuzz_count), 1):
            hub.repositories = {}
            turns = Turns(order)
            hub.on_request = turns.wait

            def publish(name: str, turns: Turns = turns) -> dict:
                try:
                    return clients[name]("push", folders[name], "org/new", token=TOKEN + name)
                finally:
                    turns.end(name)

            answers = dict(zip("AB", pool.map(publish, "AB"), strict=True))
            repository = hub.repositories["org/new"]
            assert all("result" in answer for answer in answers.values()), (order, answers)
            for files in list(repository.commits.values())[1:]:  # the first one is the Hub's own
                check_whole(files)
            head = repository.files("main")["config.json"]
            counts[next(name for name in "AB" if (folders[name] / "config.json").read_bytes() == head)] += 1
            for name, answer in answers.items():
                published = repository.files(answer["result"])["config.json"]
                assert published == (folders[name] / "config.json").read_bytes(), order
            if number % 50 == 0:
                print(f"\n{number} orders: {dict(counts)}", flush=True)
        for client in clients.values():
            client.close()
    print(f"\ntwo publishers: {sum(counts.values())} orders, whose publication was the last: {dict(counts)}")
