"""Build the guest's image from Debian packages, by the machine's own apt.

apt checks the packages' signatures; what was taken is recorded with its SHA-256. Nothing is
installed, and no right is needed beyond those to read apt's lists.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vauban.agents.image import FILES, FORMAT, MANIFEST, guest_digests, guest_files
from vauban.errors import ImageError

KERNEL: Final = "linux-image-cloud-amd64"
PACKAGES: Final = ("python3-minimal", "libpython3-stdlib", "busybox-static")
LEFT_OUT: Final = frozenset({"dpkg", "tar", "busybox-static"})
MODULES: Final = ("virtio_mmio", "virtio_blk", "virtio_console", "erofs")
TOOLS: Final = (
    "apt-get",
    "apt-cache",
    "dpkg-deb",
    "tar",
    "mkfs.erofs",
    "cpio",
    "bwrap",
    "lz4",
    "zstd",
)
_TOP: Final = ("dev", "proc", "run", "sys", "tmp", "work")
_MERGED: Final = ("bin", "lib", "lib64", "sbin")
_EPOCH: Final = "1700000000"
_UUID: Final = "00000000-0000-4000-8000-000000000001"
_COMPRESSED: Final = {
    b"\xfd7zXZ": ["xz"],
    b"\x1f\x8b": ["gzip"],
    b"\x02\x21\x4c\x18": ["lz4"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-q"],
}
_NO_DOCS: Final = ("doc", "man", "locale", "lintian", "bug")
_QUIET: Final = ("-o", "Debug::NoLocking=1", "-o", "APT::Install-Recommends=0", "-qq")


def build_image(directory: Path) -> str:
    """Build the image into a directory, replacing one that is there.

    :returns: the SHA-256 of its manifest.
    :raises ImageError: a tool is missing or fails, or a package is not as expected.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise ImageError(
            f"missing: {', '.join(missing)}; they are in the packages that"
            " [sandbox] of setup/apt-packages.txt lists; it is built on Debian 12 or later"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".sandbox-") as place:
        work, made = Path(place), Path(place) / "image"
        made.mkdir()
        kernel, packages = _download(work)
        boot, root = work / "kernel", work / "root"
        _unpack([kernel], boot)
        _make_root([p for p in packages if _name(p) not in LEFT_OUT], root)
        (made / "vmlinux").write_bytes(uncompressed_kernel(_only(boot, "boot/vmlinuz-*")))
        _unpack([p for p in packages if _name(p) == "busybox-static"], work / "busybox")
        _make_initrd(boot, _only(work / "busybox", "bin/busybox"), work / "initrd", made)
        _run(
            ["mkfs.erofs", "--quiet", "--all-root", "-T", _EPOCH, "-U", _UUID,
             str(made / "root.erofs"), str(root)],
        )  # fmt: skip
        manifest = {
            "format": FORMAT,
            "packages": {p.name: _sha256(p) for p in sorted([kernel, *packages])},
            "guest": guest_digests(),
            "files": {name: _sha256(made / name) for name in FILES},
        }
        text = json.dumps(manifest, indent=1)
        (made / MANIFEST).write_text(text)
        for path in made.iterdir():
            path.chmod(0o444)
        if directory.exists():
            directory.rename(work / "old")
        made.rename(directory)
    return hashlib.sha256(text.encode()).hexdigest()


def _download(work: Path) -> tuple[Path, list[Path]]:
    """The kernel's package, and the others with all that they depend on."""
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    (work / "status").touch()
    depends = _run(["apt-cache", "depends", "--no-recommends", KERNEL])
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise ImageError(f"apt knows no package {KERNEL}; run apt-get update, on Debian")
    _run(["apt-get", *_QUIET, "download", found[1]], cwd=archives)
    kernel = _only(archives, "linux-image-*.deb")
    # With an empty list of installed packages, apt takes all that the packages depend on.
    _run(
        ["apt-get", *_QUIET, "-o", f"Dir::State::status={work / 'status'}",
         "-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root",
         "-y", "--download-only", "install", *PACKAGES],
    )  # fmt: skip
    return kernel, sorted(set(archives.glob("*.deb")) - {kernel})


def _unpack(packages: Iterable[Path], root: Path) -> None:
    root.mkdir(exist_ok=True)
    for package in packages:
        tar = _run_bytes(["dpkg-deb", "--fsys-tarfile", str(package)])
        _run(["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", str(root)], tar)


def _make_root(packages: Iterable[Path], root: Path) -> None:
    root.mkdir()
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    _unpack(packages, root)
    for name in _TOP:
        (root / name).mkdir(exist_ok=True)
    for name in _NO_DOCS:
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    etc = root / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text(
        "root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/work:/bin/false\n"
    )
    (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "usr/lib/vauban").mkdir()
    shutil.copyfile(guest_files()["agent.py"], root / "usr/lib/vauban/agent.py")
    for hook in root.glob("**/sitecustomize.py"):
        hook.unlink()
    # Compiled by the guest's own Python; the emulated processor would take seconds each time.
    _run(
        ["bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--bind", str(root), "/",
         "--dev", "/dev", "--proc", "/proc", "--setenv", "PATH", "/usr/bin", "/usr/bin/python3",
         "-I", "-B", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash",
         *_library(root)],
    )  # fmt: skip
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o755)  # nothing set-uid


def _library(root: Path) -> list[str]:
    return [f"/usr/lib/{path.name}" for path in sorted((root / "usr/lib").glob("python3.*"))]


def _make_initrd(boot: Path, busybox: Path, tree: Path, made: Path) -> None:
    for name in ("bin", "dev", "modules", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copyfile(guest_files()["init"], tree / "init")
    (tree / "init").chmod(0o755)
    order = load_order(boot)
    for name, data in order.items():
        (tree / "modules" / name).write_bytes(data)
    (tree / "modules/order").write_text("".join(f"{name}\n" for name in order))
    paths = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    for path in paths:
        os.utime(tree / path, (int(_EPOCH), int(_EPOCH)))
    archive = _run_bytes(
        ["cpio", "--quiet", "-o", "-H", "newc", "--reproducible", "-R", "0:0"],
        "".join(f"{path}\n" for path in paths).encode(),
        cwd=tree,
    )
    (made / "initrd.cpio").write_bytes(archive)


def load_order(boot: Path) -> dict[str, bytes]:
    """The modules that the guest needs, each behind what it depends on: file name to content.

    :raises ImageError: the kernel lacks one.
    """
    paths = {path.name.partition(".ko")[0].replace("-", "_"): path for path in boot.rglob("*.ko*")}
    builtin = {
        Path(line).name.partition(".ko")[0].replace("-", "_")
        for listed in boot.rglob("modules.builtin")
        for line in listed.read_text().splitlines()
    }
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if f"{name}.ko" in order or name in builtin:
            return
        if name not in paths:
            raise ImageError(f"the kernel package has no module {name}")
        data = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            data = lzma.decompress(data)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in depends[1].decode().split(",") if depends and depends[1] else ():
            add(needed.replace("-", "_"))
        if name == "libcrc32c" and "crc32c_generic" in paths:
            add("crc32c_generic")
        order[f"{name}.ko"] = data

    for name in MODULES:
        add(name)
    return order


def uncompressed_kernel(path: Path) -> bytes:
    """The ELF kernel inside a bzImage; the emulator starts it directly.

    :raises ImageError: it is no bzImage, or compressed in an unknown way.
    """
    image = path.read_bytes()
    if image[0x202:0x206] != b"HdrS":
        raise ImageError(f"{path.name} is no bzImage")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    payload = image[start : start + length]
    for magic, command in _COMPRESSED.items():
        if payload.startswith(magic):
            # The last four bytes are the kernel's own note of its size.
            kernel = _run_bytes([*command, "-dc"], payload[:-4])
            break
    else:
        raise ImageError(f"{path.name} is compressed in an unknown way")
    if not kernel.startswith(b"\x7fELF"):
        raise ImageError(f"{path.name} holds no ELF kernel")
    return kernel


def _name(package: Path) -> str:
    return package.name.partition("_")[0]


def _only(root: Path, pattern: str) -> Path:
    found = list(root.glob(pattern))
    if len(found) != 1:
        raise ImageError(f"expected one {pattern}, found {len(found)}")
    return found[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _run(command: list[str], given: bytes | None = None, cwd: Path | None = None) -> str:
    return _run_bytes(command, given, cwd).decode(errors="replace")


def _run_bytes(command: list[str], given: bytes | None = None, cwd: Path | None = None) -> bytes:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    done = subprocess.run(  # noqa: S603 - fixed commands
        command, input=given, cwd=cwd, env=environment, capture_output=True, check=False
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ImageError(f"{command[0]} failed: {last[0] if last else done.returncode}")
    return done.stdout
