"""A folder on any file system that pyarrow opens: local, NFS, s3://, gs://."""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from dft_cluster.errors import InputError
from dft_cluster.runs.patience import patiently

_HERE = fs.LocalFileSystem()


@patiently
def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """A bucket whose region is not named is asked for it."""
    system, root = fs.FileSystem.from_uri(uri)
    return system, root


def _settle(folder: Path) -> None:
    """The names that a folder holds go to the disk, where its file system can be asked for that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


class Storage:
    """Names below one root. `local` is the root as a path where it is one, else None."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        if "://" in uri:
            try:
                self.system, self.root = _opened(uri)
            except (ArrowException, OSError) as error:
                raise InputError(
                    f"run.dir: {uri!r} cannot be opened: {error}; right would be an absolute folder or a storage URI"
                ) from error
        else:
            self.system, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
            self.uri = self.root  # the same folder for a process that runs elsewhere
        self.local = Path(self.root) if isinstance(self.system, fs.LocalFileSystem) else None

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def place(self, name: str) -> str:
        """Where a name lies, in words: a URI without its options, or a path."""
        return f"{self.uri.partition('?')[0].rstrip('/')}/{name}" if self.local is None else self.path(name)

    def below(self, name: str) -> "Storage":
        address, question, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return Storage(f"{address.rstrip('/')}/{name}{question}{options}")

    @patiently
    def exists(self, name: str) -> bool:
        return self.system.get_file_info(self.path(name)).type != fs.FileType.NotFound

    @patiently
    def size(self, name: str) -> int | None:
        """Bytes, or None where there is no such file."""
        info = self.system.get_file_info(self.path(name))
        return info.size if info.type == fs.FileType.File else None

    @patiently
    def folders(self, name: str) -> list[str]:
        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        return sorted(
            info.base_name for info in self.system.get_file_info(selector) if info.type == fs.FileType.Directory
        )

    @patiently
    def contents(self, name: str) -> list[tuple[str, int, int]]:
        """(path, bytes, time of the last change) of a file, or of every file below a folder."""
        place = self.path(name)
        below = self.system.get_file_info(fs.FileSelector(place, recursive=True)) if self.size(name) is None else []
        infos = below or [self.system.get_file_info(place)]
        return sorted((info.path, info.size or 0, info.mtime_ns or 0) for info in infos if info.is_file)

    @patiently
    def make(self, name: str = "") -> None:
        self.system.create_dir(self.path(name), recursive=True)
        if self.local is not None:
            _settle((self.local / name).parent)

    @patiently
    def move(self, name: str, to: str) -> None:
        """A folder to another place here. Object stores move files alone, if anything."""
        if self.local is not None:
            self.system.move(self.path(name), self.path(to))
        elif self.exists(name):  # or an attempt before this one had come so far
            self.system.create_dir(self.path(to), recursive=True)
            fs.copy_files(
                self.path(name), self.path(to), source_filesystem=self.system, destination_filesystem=self.system
            )
            self.system.delete_dir(self.path(name))

    @patiently
    def remove(self, name: str) -> None:
        """A folder and what it holds; nothing where there is none."""
        if self.exists(name):
            self.system.delete_dir(self.path(name))

    @contextmanager
    def writer(self, name: str) -> Iterator[Any]:
        """A stream to a file, which is there, whole and on the disk, once the block has ended well. In a folder a reader sees the
        old file or the new one; in a bucket what was cut short may show, and counts once something else says so (a manifest)."""
        if self.local is None:
            with self.system.open_output_stream(self.path(name)) as stream:
                yield stream
            return
        target = self.local / name
        making = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with making.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            making.replace(target)
            _settle(target.parent)
        finally:
            making.unlink(missing_ok=True)

    @patiently
    def read(self, name: str) -> bytes:
        with self.system.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    @patiently
    def write(self, name: str, content: bytes) -> None:
        with self.writer(name) as stream:
            stream.write(content)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    @patiently
    def append(self, name: str, line: str) -> None:
        """One more line; file systems without appending get the whole file anew."""
        if self.local is not None:
            with (self.local / name).open("ab+") as stream:
                # A line that was cut short stays one of its own.
                end = stream.seek(0, os.SEEK_END)
                cut = end > 0 and stream.seek(end - 1) is not None and stream.read(1) != b"\n"
                stream.write((b"\n" if cut else b"") + line.encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            return
        before = self.read(name) if self.exists(name) else b""
        self.write(name, before + line.encode() + b"\n")

    @patiently
    def fetch(self, name: str, scratch: Path) -> Path:
        """A local path of a file or folder: its own, or that of a copy in `scratch`."""
        if self.local is not None:
            return self.local / name
        copy = scratch / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            coming = copy.with_name(
                f".{copy.name}.{uuid.uuid4().hex}"
            )  # a copy cut short must not pass for a whole one
            if self.size(name) is None:
                coming.mkdir()
            fs.copy_files(self.path(name), str(coming), source_filesystem=self.system, destination_filesystem=_HERE)
            coming.replace(copy)
        return copy

    @patiently
    def put(self, source: Path, name: str) -> None:
        """A local file or folder to its place here."""
        if self.local is not None and source.absolute() == (self.local / name).absolute():
            return
        self.system.create_dir(
            self.path(name) if source.is_dir() else self.path(name).rpartition("/")[0], recursive=True
        )
        fs.copy_files(str(source), self.path(name), source_filesystem=_HERE, destination_filesystem=self.system)
