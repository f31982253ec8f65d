"""Downloads: only when asked for, checked before use, and one clear line without a network."""

from __future__ import annotations

import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from spectrascope.loading.data import imagenet
from spectrascope.loading.data.labels import imagenet_wnids
from tests.support.data_networks import images, load, refusal

WNIDS = imagenet_wnids()[:200]


def archive() -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(picture, "JPEG")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("tiny-imagenet-200/wnids.txt", "\n".join(WNIDS))
        packed.writestr("tiny-imagenet-200/val/val_annotations.txt", f"val_0.JPEG\t{WNIDS[4]}\t0\t0\t9\t9\n")
        packed.writestr("tiny-imagenet-200/val/images/val_0.JPEG", picture.getvalue())
        packed.writestr("../escaped.txt", "no")
    return stream.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    content = archive()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setattr(imagenet, "URL", f"http://127.0.0.1:{web.server_port}/tiny-imagenet-200.zip")
    yield content
    web.shutdown()
    web.server_close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_tiny_imagenet_is_fetched_and_unpacked(
    server: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagenet, "MD5", hashlib.md5(server).hexdigest())
    root = tmp_path / "outer" / "data"
    refusal("or fetch it with --download", "tiny-imagenet", images(200), data_root=root)
    assert not root.exists()  # nothing is fetched unasked
    data = load("tiny-imagenet", images(200), data_root=root, download=True)
    assert data.source.fetch(0, 1)[1].tolist() == [4]
    assert [path.parent for path in tmp_path.rglob("escaped.txt")] == [root]  # not beside it
    out, _ = capfd.readouterr()
    assert out == ""
    assert socket.getdefaulttimeout() is None


def test_a_wrong_checksum_is_never_unpacked(server: bytes, tmp_path: Path) -> None:
    text = refusal("could not be downloaded", "tiny-imagenet", images(200), data_root=tmp_path, download=True)
    assert "corrupted" in text
    assert not (tmp_path / "tiny-imagenet-200").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("spec", "classes", "parts"),
    [
        ("tiny-imagenet", 200, ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "wnids.txt", "tiny-imagenet:PATH")),
        ("cifar10", 10, ("cifar-10-batches-py/test_batch", "cifar-10-python.tar.gz")),
        ("cifar100", 100, ("cifar-100-python/test", "cifar-100-python.tar.gz")),
        ("imagenet", 1000, ("val/n01440764", "image-net.org", "cannot be downloaded automatically")),
    ],
)
def test_offline(
    spec: str, classes: int, parts: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = refusal(spec, spec, images(classes), data_root=tmp_path, download=True)
    assert str(tmp_path) in text
    assert all(part in text for part in parts)
    refusal(str(tmp_path), spec, images(classes), data_root=tmp_path)
    assert capfd.readouterr().out == ""
