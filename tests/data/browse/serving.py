"""The application of `lmk-shard browse` in the process of a test, as a browser's pages ask it."""

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from lmk_data.browse.app import make_app
from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.security import Guard
from lmk_data.dataset import ShardedDataset
from lmk_data.views.marks import MarksFile

HOST, TOKEN, COOKIE = "127.0.0.1:8000", "secret", "lmk"
ONE, TWO = "1" * 32, "2" * 32  # windows


class Pages:
    """A browser with two windows over a dataset and a marks file."""

    def __init__(self, dataset: Path, marks: Path, run: Path | None = None, quality: Path | None = None) -> None:
        opened = ShardedDataset.open(dataset)
        self.catalogue = Catalogue.open(opened, run=run, quality=quality, marks=MarksFile(marks))
        self.guard = Guard(make_app(self.catalogue, "version"), TOKEN, COOKIE, ["here"])
        self.client = TestClient(self.guard, base_url=f"http://{HOST}", raise_server_exceptions=True)

    def enter(self) -> "Pages":
        """Open the printed address."""
        assert self.client.get(f"/?token={TOKEN}").status_code == 200
        return self

    def get(self, path: str, code: int = 200) -> str:
        response = self.client.get(path)
        assert response.status_code == code, response.text
        return str(response.text)

    def post(self, path: str, code: int = 200, window: str = ONE, **content: Any) -> Any:
        body = {"window": window, "shown": [], **content}
        response = self.client.post(path, json=body, headers={"Origin": f"http://{HOST}"})
        assert response.status_code == code, response.text
        return response.json() if code == 200 else response.text
