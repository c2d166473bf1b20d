"""An S3 server on loopback and a tiny VQ model, for every test that asks for `s3` or `vq`."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mgpt.tokenizers.folder import save_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig

App = Callable[[dict[str, Any], Callable[..., Any]], Any]


class FaultyStore:
    """moto's S3 as a WSGI application whose answers can be spoilt.

    `spoil(method, end, how, times)` concerns the next requests of a method whose path ends so:
    `unavailable` is a 503 and nothing is done; `lost` does what was asked and then answers 500,
    as where a connection breaks before the answer. `seen` lists (method, path) of all requests.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self.faults: list[list[Any]] = []
        self.seen: list[tuple[str, str]] = []

    def spoil(self, method: str, end: str, how: str, times: int = 1) -> None:
        self.faults.append([method, end, how, times])

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        # moto looks and stores in two steps; the real service does both in one.
        with self._lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault[3] and fault[0] == method and path.endswith(fault[1]):
                    fault[3] -= 1
                    if fault[2] == "lost":
                        list(self._app(environ, lambda *_: lambda data: None))
                    status = "503 Service Unavailable" if fault[2] != "lost" else "500 Lost"
                    start_response(status, [("Content-Length", "0"), ("Connection", "close")])
                    return [b""]
            return list(self._app(environ, start_response))


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[tuple[FaultyStore, dict[str, str], Any]]:
    pytest.importorskip("moto.server", reason="pip install -e .[test]")
    pytest.importorskip("s3fs", reason="pip install -e .[test]")
    import logging

    import botocore.session
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = FaultyStore(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="corpus")
    yield store, environment, client
    server.shutdown()


@pytest.fixture
def s3(
    _s3_server: tuple[FaultyStore, dict[str, str], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> FaultyStore:
    """An empty bucket, s3://corpus, that this process and those it starts find; its server."""
    from mgpt.files import remote

    store, environment, client = _s3_server
    for name, value in {**environment, "MGPT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    for entry in client.list_objects_v2(Bucket="corpus").get("Contents", []):
        client.delete_object(Bucket="corpus", Key=entry["Key"])
    store.seen.clear()
    store.faults.clear()
    return store


@pytest.fixture(scope="session")
def vq(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A VQ model of 4x that was never trained: its grid is 8 px."""
    torch.manual_seed(0)
    cfg = VqganConfig(
        ch=8,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        z_channels=8,
        embed_dim=8,
        n_embed=64,
        num_groups=4,
    )
    folder = tmp_path_factory.mktemp("vq")
    save_tokenizer(Vqgan(cfg).eval(), folder)
    return str(folder)
