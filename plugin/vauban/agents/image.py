"""The guest's image on the host: what is in it, and that it is still what was built.

A directory with three files and `manifest.json`, which has the SHA-256 of each and of every Debian
package that they were made from. Files are read into sealed memory and checked there, so what was
checked is what boots, whatever happens to the directory later.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vauban.errors import ImageError

FILES: Final = ("vmlinux", "initrd.cpio", "root.erofs")
MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 20
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def default_directory() -> Path:
    """Where `vauban sandbox build` puts the image: beside the environment's packages."""
    return Path(sys.prefix) / "sandbox"


def guest_files() -> dict[str, Path]:
    """The project's own files that an image holds."""
    guest = Path(__file__).parent / "guest"
    return {name: guest / name for name in ("init", "agent.py")}


@dataclass(frozen=True, slots=True)
class Image:
    """A checked image. `files`: name to a descriptor of sealed memory; `digest`: SHA-256 of the
    manifest, hex."""

    files: dict[str, int]
    digest: str

    def close(self) -> None:
        for descriptor in self.files.values():
            os.close(descriptor)


def load_image(directory: Path) -> Image:
    """Read and check an image.

    :raises ImageError: there is none, it was changed, or it is of another version of vauban.
    """
    manifest, digest = read_manifest(directory)
    image = Image({}, digest)
    with ExitStack() as held:
        held.callback(image.close)
        for name in FILES:
            image.files[name], found = sealed_copy(directory / name)
            if found != manifest["files"].get(name):
                raise ImageError(f"{directory / name} is not what was built; {_BUILD}")
        held.pop_all()
    return image


def read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    """The manifest and its SHA-256.

    :raises ImageError: it is missing, can't be read, or names other guest files than this
        version of vauban has.
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES)
        manifest = json.loads(data)
    except FileNotFoundError:
        raise ImageError(f"no guest image in {directory}; {_BUILD}") from None
    except (OSError, ValueError, RecursionError):
        raise ImageError(f"{path} can't be read; {_BUILD}") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("format") != FORMAT:
        raise ImageError(f"{path} is of another version; {_BUILD}")
    if manifest.get("guest") != guest_digests():
        raise ImageError(f"the image in {directory} is of another version of vauban; {_BUILD}")
    return manifest, hashlib.sha256(data).hexdigest()


def guest_digests() -> dict[str, str]:
    """SHA-256 of the project's own files in the guest."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in guest_files().items()
    }


def sealed_copy(path: Path) -> tuple[int, str]:
    """A copy of a file in memory that nobody can change, and its SHA-256.

    :raises ImageError: it can't be read.
    """
    descriptor = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while data := stream.read(1 << 20):
                digest.update(data)
                if data.count(0) == len(data):
                    os.lseek(descriptor, len(data), os.SEEK_CUR)  # stays a hole
                else:
                    os.writev(descriptor, [data])
            os.ftruncate(descriptor, stream.tell())
    except OSError as error:
        os.close(descriptor)
        raise ImageError(f"{path} can't be read: {error.strerror}; {_BUILD}") from None
    seal(descriptor)
    return descriptor, digest.hexdigest()


def seal(descriptor: int) -> None:
    """From now on nobody can change this memory.

    :raises OSError: somebody still has it mapped for writing.
    """
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


_BUILD: Final = "run `vauban sandbox build`"
