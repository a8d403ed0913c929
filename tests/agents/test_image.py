"""An image that is not what was built does not boot, nor a snapshot that others could write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from vauban.agents.image import FILES, MANIFEST, load_image, read_manifest, seal, sealed_copy
from vauban.agents.image_build import uncompressed_kernel
from vauban.agents.template import _load, _save, is_private
from vauban.agents.vm import Snapshot
from vauban.errors import ImageError


@pytest.fixture
def copy(image_directory: Path, tmp_path: Path) -> Path:
    """An image with short files and a manifest that is right for them."""
    place = tmp_path / "image"
    place.mkdir()
    manifest = json.loads((image_directory / MANIFEST).read_text())
    for name in FILES:
        data = name.encode() * 1000
        (place / name).write_bytes(data)
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (place / MANIFEST).write_text(json.dumps(manifest))
    return place


def test_the_manifest_names_every_package_and_file(image_directory: Path) -> None:
    manifest, _ = read_manifest(image_directory)
    assert set(manifest["files"]) == set(FILES)
    assert any(name.startswith("linux-image") for name in manifest["packages"])
    assert any(name.startswith("python3") for name in manifest["packages"])
    digests = [*manifest["packages"].values(), *manifest["files"].values()]
    assert all(len(digest) == 64 for digest in digests)


def test_what_was_built_loads(copy: Path) -> None:
    image = load_image(copy)
    assert os.pread(image.files["initrd.cpio"], 11, 0) == b"initrd.cpio"
    image.close()


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_does_not(copy: Path, name: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with (copy / name).open("r+b") as stream:
        stream.seek(500)
        stream.write(b"!")
    with pytest.raises(ImageError, match=name):
        load_image(copy)
    (copy / name).unlink()
    with pytest.raises(ImageError, match=name):
        load_image(copy)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", "{" * 100_000, "[" * 100_000, '{"format": 1}'])
def test_nor_does_a_broken_manifest(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(ImageError, match="sandbox build"):
        load_image(copy)


def test_nor_one_of_another_version_of_the_guest(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["guest"]["agent.py"] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ImageError, match="version"):
        load_image(copy)


def test_nor_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="sandbox build"):
        load_image(tmp_path)


def test_what_was_checked_can_not_be_changed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"right" + bytes(3 << 20) + b"end")
    descriptor, digest = sealed_copy(tmp_path / "file")
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert os.pread(descriptor, 3, 5 + (3 << 20)) == b"end"
    for write in (lambda: os.pwrite(descriptor, b"x", 0), lambda: os.ftruncate(descriptor, 1)):
        with pytest.raises(PermissionError):
            write()
    os.close(descriptor)


def sealed(data: bytes) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    seal(descriptor)
    return descriptor


def test_a_kept_snapshot_is_used_only_as_it_was_written(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    snapshot = Snapshot(sealed(b"memory" + bytes(2 << 20)), sealed(b"state"))
    _save(snapshot, cache / "key")
    loaded = _load(cache / "key")
    assert loaded is not None
    assert os.pread(loaded.memory, 6, 0) == b"memory"
    loaded.close()

    cache.chmod(0o777)
    assert not is_private(cache)
    assert _load(cache / "key") is None
    cache.chmod(0o700)
    (cache / "key" / "state").chmod(0o600)
    (cache / "key" / "state").write_bytes(b"other")
    assert _load(cache / "key") is None
    shutil.rmtree(cache / "key")
    assert _load(cache / "key") is None
    snapshot.close()


@pytest.mark.parametrize("data", [b"", b"MZ" + bytes(10_000), bytes(0x202) + b"HdrS" + bytes(5000)])
def test_only_a_kernel_is_unpacked(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(data)
    with pytest.raises(ImageError):
        uncompressed_kernel(tmp_path / "vmlinuz")
