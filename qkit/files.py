"""Files as a whole or not at all; what goes wrong with one is an error that names it and what to do.

A file is written beside its place and moved into it when it is complete, so that a full disk or an interrupt leaves the earlier
one as it was. Names of tensors become names of files that no two of them share, on any system.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from qkit.errors import QkitError

#: What an error of the system means and what to do about it, in writing and in reading.
_WHY = {
    errno.ENOENT: ("there is no such file or folder", "Make its folder, or correct the path.", "Correct the path."),
    errno.ENOTDIR: ("a part of its path is a file and not a folder", "Correct the path.", "Correct the path."),
    errno.EEXIST: ("something of that name is in the way", "Choose another name.", "Correct the path."),
    errno.EISDIR: ("it is a folder", "Name a file.", "Name a file."),
    errno.ELOOP: ("it is a link that leads back to itself", "Name the file itself.", "Name the file itself."),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter one.", "Correct the path."),
    errno.ENOSPC: ("no space is left on the disk", "Free some, or choose another place.", "Free some."),
    errno.EDQUOT: ("your share of the disk is used up", "Free some space, or choose another place.", "Free some space."),
    errno.EROFS: ("the file system is read-only", "Choose another place.", "Choose another place."),
    errno.EFBIG: ("it is larger than a file may be there", "Choose another place.", "Choose another place."),
}
_DENIED = ("permission denied", "Choose a place that you may write to.", "Change its permissions, or copy it.")
_WHY |= {errno.EACCES: _DENIED, errno.EPERM: _DENIED}

#: Names that Windows keeps for devices, whatever comes behind a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
#: Systems take names of 255 bytes; this leaves room for what is put behind a name.
_LONGEST = 160


@contextlib.contextmanager
def explained(path: str | Path, done: str = "written", error: type[QkitError] = QkitError) -> Iterator[None]:
    """Turn the system's errors in the block into one that names the path and what to do.

    Parameters
    ----------
    done
        What the block does with the file: "written" or "read".
    error
        What to raise.
    """
    try:
        yield
    except OSError as failure:
        raise error(f"{path} cannot be {done}: {reason(failure, done)}") from failure


def reason(failure: OSError, done: str = "written") -> str:
    """What an error of the system means, and what to do about it."""
    other = (failure.strerror or str(failure), "Choose another place.", "Copy it again.")
    # libraries in other languages leave the number out
    code = errno.ENOENT if isinstance(failure, FileNotFoundError) else failure.errno
    why, writing_cure, reading_cure = _WHY.get(code or 0, other)
    return f"{why}. {reading_cure if done == 'read' else writing_cure}"


@contextlib.contextmanager
def writing(path: str | Path, *, parents: bool = False, new: bool = False, error: type[QkitError] = QkitError) -> Iterator[Path]:
    """A path to write to, which becomes `path` if the block ends well, and is gone if it does not.

    The file has the permissions that writing to `path` itself would have given; a link stays, and what it leads to is replaced.

    Parameters
    ----------
    parents
        Whether to make the folders that are missing.
    new
        Whether to refuse to replace a file.
    error
        What to raise.

    Raises
    ------
    QkitError
        If the file cannot be written; it is then as it was.
    """
    with explained(path, error=error):
        target, temporary, old = _begin(Path(path), parents, new)
        try:
            mode = temporary.stat().st_mode if old is None else old.st_mode
            yield temporary
            if target is None:
                with temporary.open("rb") as source, Path(path).open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                return
            if old is not None:
                with temporary.open("rb+") as stream:
                    # the earlier file goes when this one is on the disk, and no sooner
                    os.fsync(stream.fileno())
                with contextlib.suppress(OSError, AttributeError):
                    os.chown(temporary, old.st_uid, old.st_gid)
            if temporary.stat().st_mode != mode:
                temporary.chmod(stat.S_IMODE(mode))
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _begin(path: Path, parents: bool, new: bool = False) -> tuple[Path | None, Path, os.stat_result | None]:
    """The file to replace (None for a device or a pipe, which is none), an empty one to write, and what there was."""
    if parents:
        # a file in its place is told below
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    if old is not None and new:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if old is not None and not stat.S_ISREG(old.st_mode):
        handle, name = tempfile.mkstemp(suffix=path.suffix)
        os.close(handle)
        return None, Path(name), old
    if old is not None:
        # one that may not be written may not be replaced, though its folder may allow it
        os.close(os.open(path, os.O_WRONLY))
    target = Path(os.path.realpath(path))
    suffix = target.suffix if len(target.suffix) <= 16 else ""
    temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}{suffix}")
    # made by hand, since the tempfile module's are for their maker alone
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return target, temporary, old


def prepare(path: str | Path, *, parents: bool = True, error: type[QkitError] = QkitError) -> Path:
    """The path, if a file can be written there: asked before the work, which is not to be lost to a mistyped name.

    Raises
    ------
    QkitError
        As `writing`.
    """
    with explained(path, error=error):
        _begin(Path(path), parents)[1].unlink()
    return Path(path)


def write_bytes(
    path: str | Path, data: bytes, *, parents: bool = False, new: bool = False, error: type[QkitError] = QkitError
) -> None:
    """Write a file; see `writing`."""
    with writing(path, parents=parents, new=new, error=error) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, *, parents: bool = False, error: type[QkitError] = QkitError) -> None:
    """Write a file of text in UTF-8, its lines as they are; see `writing`."""
    write_bytes(path, text.encode(), parents=parents, error=error)


def write_json(path: str | Path, data: Any, *, parents: bool = False, error: type[QkitError] = QkitError) -> None:
    """Write a file of strict JSON; see `writing`."""
    write_text(path, dump(data), parents=parents, error=error)


def dump(data: Any) -> str:
    """The text of a file of strict JSON."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def read_text(path: str | Path, what: str = "text", *, error: type[QkitError] = QkitError) -> str:
    """A file's text, which is in UTF-8.

    Raises
    ------
    QkitError
        If it cannot be read; `what` it was to hold is said.
    """
    with explained(path, "read", error):
        try:
            return Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as failure:
            raise error(f"{path} cannot be read as {what}: it is not text in UTF-8. Give another file.") from failure


def read_json(path: str | Path, what: str, *, error: type[QkitError] = QkitError, cure: str = "", **options: Any) -> Any:
    """What a file of JSON holds.

    Parameters
    ----------
    what
        It should be, for the message.
    cure
        What to do if it is not JSON.
    options
        Of ``json.loads``.

    Raises
    ------
    QkitError
        If it cannot be read or is not JSON.
    """
    text = read_text(path, what, error=error)
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as failure:
        raise error(f"{path} cannot be read as {what}: {failure}. {cure or 'Give another file, or write it again.'}") from failure


@contextlib.contextmanager
def filling(
    folder: str | Path, *, replacing: Collection[str] | None = None, error: type[QkitError] = QkitError
) -> Iterator[Path]:
    """A folder to write into, whose files go into `folder` if the block ends well, and are gone if it does not.

    Parameters
    ----------
    replacing
        Files of an earlier time, by their paths in the folder: they are removed first. Nothing else in the folder is touched.
        None for a folder that has to be empty, or new.
    error
        What to raise.

    Raises
    ------
    QkitError
        If the folder is in use, a file of another name than those to be replaced is in the way, or it cannot be written.
    """
    folder = Path(folder)
    if replacing is None:
        check_unused(folder, error=error)
    with explained(folder, error=error):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        yield temporary
        with explained(folder, error=error):
            _move(temporary, folder, frozenset(replacing or ()), error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_unused(folder: str | Path, pattern: str = "*", *, error: type[QkitError] = QkitError) -> Path:
    """The folder, if it is new or has no files of that pattern.

    Raises
    ------
    QkitError
        If it has, or is a file.
    """
    folder = Path(folder)
    with explained(folder, error=error):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        found = next(folder.glob(pattern), None)
    if found is not None:
        raise error(f"{folder} is not empty, it has {found.name}: name another folder, or remove what is in it.")
    return folder


def _move(temporary: Path, folder: Path, replacing: frozenset[str], error: type[QkitError]) -> None:
    """Move all files into the folder, those to be replaced out of the way; all stays as it was if that fails."""
    root = os.path.realpath(folder)
    names = [path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file()]
    for name in names:
        place = folder / name
        if not _is_inside(place.parent, root) or (os.path.lexists(place) and name not in replacing):
            raise error(f"{place} is not of what is to be replaced, and stays: name another folder, or remove it.")
    earlier = Path(tempfile.mkdtemp(prefix=".earlier-", dir=folder))
    old = [name for name in replacing if _is_inside(folder / name, root) and (folder / name).is_file()]
    # what lists the others is on top, and comes last
    moves = [(folder / name, earlier / name) for name in old]
    moves += [(temporary / name, folder / name) for name in sorted(names, key=lambda name: -name.count("/"))]
    done = []
    try:
        for source, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            source.replace(place)
            done.append((source, place))
    except BaseException:
        for source, place in reversed(done):
            place.replace(source)
        shutil.rmtree(earlier, ignore_errors=True)
        raise
    finally:
        inner = {above for name in (*old, *names) for above in Path(name).parents} - {Path()}
        for above in sorted(inner, key=lambda above: -len(above.parts)):
            # those that are in use stay
            with contextlib.suppress(OSError):
                (folder / above).rmdir()
    shutil.rmtree(earlier, ignore_errors=True)


def _is_inside(path: Path, root: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def file_name(name: str) -> str:
    """A file's name for any name, which no other name has, whatever a system makes of capitals.

    Letters, digits and ``._-`` stay, others are written as in addresses (``%3a`` for a colon); so are dots at both ends, and the
    first letter of names that Windows keeps for itself. Behind ``~`` stand the places of the capitals, as bits; behind ``~~`` is
    a hash of a name that is too long.

    >>> file_name("layer1.0:add"), file_name("Mixed_5b.conv"), file_name("mixed_5b.conv")
    ('layer1.0%3aadd', 'Mixed_5b.conv~1', 'mixed_5b.conv')
    """
    data = name.encode("utf-8", "surrogatepass")
    body = re.sub("%..", lambda code: code[0].lower(), quote(data, safe="").replace("~", "%7e"))
    if _DEVICES.match(body) or body.startswith("."):
        body = f"%{ord(body[0]):02x}{body[1:]}"
    if body.endswith("."):
        body = f"{body[:-1]}%2e"
    capitals = sum(1 << place for place, letter in enumerate(body) if letter.isupper())
    body = body or "%"
    found = f"{body}~{capitals:x}" if capitals else body
    if len(found) <= _LONGEST:
        return found
    return f"{body[:100]}~~{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def named(file: str) -> str:
    """The name that `file_name` made a file's name of; one that it did not make, and one of a hash, stand for themselves."""
    try:
        name = unquote_to_bytes(file.partition("~")[0]).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return file
    return name if file_name(name) == file else file
