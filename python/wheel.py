"""Packs the Python package and the shared library into a wheel, with the standard library alone.

    python python/wheel.py LIBRARY VERSION FOLDER

A wheel is a zip archive with its metadata in it, so neither a build backend nor the network is needed, and what is in it is
written down here. The tag says the least glibc that the library's symbols need. Equal inputs give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "tercet"
LIBRARY = "libtercet_python.so"
LEAST_TORCH = "2.10"
LARGEST = 15 << 20

# What every program has, or what `import torch` has loaded: the library may need nothing else.
ALLOWED = {
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
}


class Elf:
    """The parts of a 64-bit little-endian shared library that say what it needs."""

    _VERNEED, _DYNAMIC, _NEEDED = 0x6FFFFFFE, 6, 1

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise SystemExit("expected a 64-bit little-endian ELF file")
        self.data = data
        self.machine = {62: "x86_64", 183: "aarch64"}[struct.unpack_from("<H", data, 18)[0]]
        at, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
        # name, type, flags, address, offset, size, link, info, align, entry size
        self.sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + index * size) for index in range(count)]

    def _text(self, strings: int, at: int) -> str:
        start = self.sections[strings][4] + at
        return self.data[start : self.data.index(b"\0", start)].decode()

    def needed(self) -> set[str]:
        """The libraries that the loader must find."""
        found = set()
        for section in self.sections:
            if section[1] == self._DYNAMIC:
                for at in range(section[4], section[4] + section[5], 16):
                    tag, value = struct.unpack_from("<QQ", self.data, at)
                    if tag == self._NEEDED:
                        found.add(self._text(section[6], value))
        return found

    def versions(self) -> set[str]:
        """The versions of symbols that it needs, such as GLIBC_2.34."""
        found = set()
        for section in self.sections:
            if section[1] != self._VERNEED:
                continue
            at = section[4]
            for _ in range(section[7]):
                _, count, _, first, following = struct.unpack_from("<HHIII", self.data, at)
                entry = at + first
                for _ in range(count):
                    _, _, _, name, step = struct.unpack_from("<IHHII", self.data, entry)
                    found.add(self._text(section[6], name))
                    entry += step
                at += following
        return found


def platform(elf: Elf) -> str:
    """The tag of the systems that have what the library needs; 2_28 at least, which PyTorch's own wheels need."""
    glibc = [
        tuple(map(int, name.removeprefix("GLIBC_").split("."))) for name in elf.versions() if name.startswith("GLIBC_2")
    ]
    major, minor = max([(2, 28), *((version[0], version[1]) for version in glibc)])
    return f"manylinux_{major}_{minor}_{elf.machine}"


def stripped(library: pathlib.Path) -> bytes:
    """The library without symbols that no loader looks at, if there is a `strip`."""
    tool = shutil.which("strip")
    if tool is None:
        return library.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        to = pathlib.Path(folder) / LIBRARY
        subprocess.run([tool, "--strip-unneeded", "-o", str(to), str(library)], check=True)
        return to.read_bytes()


def main() -> None:
    library, version, folder = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    code = stripped(library)
    elf = Elf(code)
    if strange := elf.needed() - ALLOWED:
        raise SystemExit(f"{library}: expected to need none but the C library, got {', '.join(sorted(strange))}")
    tag = f"py3-none-{platform(elf)}"
    info = f"tercet-{version}.dist-info"
    files: list[tuple[str, bytes]] = [
        (f"tercet/{path.relative_to(PACKAGE).as_posix()}", path.read_bytes())
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix == ".py" or path.name == "py.typed"
    ]
    files.append((f"tercet/{LIBRARY}", code))
    metadata = [
        "Metadata-Version: 2.4",
        "Name: tercet",
        f"Version: {version}",
        "Summary: Fused CUDA and CPU kernels for metric-learning losses, as operators of PyTorch",
        "License-Expression: MIT OR Apache-2.0",
        "License-File: LICENSE-APACHE",
        "License-File: LICENSE-MIT",
        "Keywords: triplet-loss,metric-learning,contrastive,cuda,pytorch",
        "Classifier: Operating System :: POSIX :: Linux",
        "Classifier: Programming Language :: Python :: 3",
        "Classifier: Programming Language :: Rust",
        "Classifier: Typing :: Typed",
        "Requires-Python: >=3.10",
        f"Requires-Dist: torch>={LEAST_TORCH}",
        "Description-Content-Type: text/markdown",
        "",
        (ROOT / "docs" / "python.md").read_text(),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: tercet", "Root-Is-Purelib: false", f"Tag: {tag}", ""]
    files.append((f"{info}/METADATA", "\n".join(metadata).encode()))
    files.append((f"{info}/WHEEL", "\n".join(wheel).encode()))
    for name in ("LICENSE-APACHE", "LICENSE-MIT"):
        files.append((f"{info}/licenses/{name}", (ROOT / name).read_bytes()))
    record = f"{info}/RECORD"
    lines = []
    for name, content in files:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    files.append((record, "\n".join([*lines, f"{record},,", ""]).encode()))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("tercet-*.whl"):
        old.unlink()
    path = folder / f"tercet-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path.name}: expected at most {LARGEST} bytes, got {size}")
    print(path)


if __name__ == "__main__":
    main()
