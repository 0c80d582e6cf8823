"""The real Hub client in a process of its own, started once for many calls: it reads its settings on import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LOOP = """
import sys, json, os, time, warnings
from huggingface_hub.utils import _http
_http.time.sleep = lambda seconds: None   # the client's pauses between its tries, and ours
import timm, torch, simco_zoo
from simco_zoo.publishing import copy_published
from simco_zoo.publishing.verify import verify

def push(folder, repo_id, **arguments):
    return simco_zoo.push_to_hub(folder, repo_id, **arguments)

def copy(name, folder):
    return [[check.name, check.problem, check.note] for check in verify(copy_published(name, folder))]

def features(name, cache_dir, by_timm=False, token=None):
    os.environ.update({"HF_TOKEN": token} if token else {})
    os.environ.pop("" if token else "HF_TOKEN", None)
    create = timm.create_model if by_timm else simco_zoo.create_model
    model = create(name, pretrained=True, cache_dir=cache_dir).eval()
    return model(torch.full((1, 3, 32, 32), 0.5)).sum().item()

for line in sys.stdin:
    name, arguments, keywords = json.loads(line)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = {"result": globals()[name](*arguments, **keywords)}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
    answer["warnings"] = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    print(json.dumps(answer), flush=True)
"""


def client_environment(address: str, cache: Path) -> dict[str, str]:
    """Settings of a process whose Hub is ours."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }


class Client:
    """Calls the functions of ``LOOP`` in another process."""

    def __init__(self, address: str, cache: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**client_environment(address, cache), **environment},
        )

    def __call__(self, function: str, *arguments: object, **keywords: object) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        plain = [str(a) if isinstance(a, Path) else a for a in arguments]
        self.process.stdin.write(json.dumps([function, plain, keywords]) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
