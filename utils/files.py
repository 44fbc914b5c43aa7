"""Text, JSON, npy and npz of unknown origin: refused or right, in bounded memory; and files that
are written whole or not at all.

Nothing is unpickled, and no memory is taken for what a header says before its caller has agreed.
Whatever is wrong with a file is an InputError of one short line; OSError is for a file that cannot
be opened.
"""

import codecs
import contextlib
import io
import json
import math
import zipfile
from dataclasses import dataclass

import numpy as np
import psutil

from utils.cli import InputError, short

WHOLE = "a whole one: make or copy it again"
TEXT = 2**24  # bytes of a text at most; the index of the real weights has 10**5
HEAD = 2**14  # bytes that hold an array's header; numpy allows 10,000
BOMS = {  # byte order marks; UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}
READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Header:
    """What the head of an npy says. offset: bytes before the numbers."""

    shape: tuple
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def numeric(self):
        return self.dtype.kind in "fiu"

    def __str__(self):
        return f"{short(self.dtype, 60)} of shape {short(self.shape, 60)}"


@contextlib.contextmanager
def refused(path, what, expected=WHOLE):
    """A context in which whatever is raised becomes an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what libraries raise for a broken file is anything
        why = short(error) or type(error).__name__
        raise InputError(f"{path}: not a readable {what} ({why}); expected {expected}") from error


def read_text(path, limit=TEXT):
    """The text of a file: UTF-8, or what its byte order mark says; the marks are left out."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path}: got more than {limit:,} bytes; expected a text file below that")
    encoding = "utf-8"
    for mark, name in BOMS.items():
        if data.startswith(mark):
            encoding = name
            break
    with refused(path, "text in UTF-8"):
        return data.decode(encoding).replace("\ufeff", "")


def read_json(path, kind=dict):
    """The value in a JSON file, which has to be of a type (object in Python: any)."""
    text = read_text(path)
    with refused(path, "JSON file"):
        value = json.loads(text)
    if not isinstance(value, kind):
        raise InputError(f"{path}: got a JSON {type(value).__name__}; expected a {kind.__name__}")
    return value


@contextlib.contextmanager
def whole(path):
    """The name to write a file at, which is moved to `path` if all goes well, or else deleted."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:  # of a disk that is full it has no file name
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


# ---- arrays --------------------------------------------------------------------------------------


def names_in_npz(path):
    """The names of an npz's arrays, or of any zip's files; None if it is no zip."""
    with open(path, "rb") as file, refused(path, "zip"):
        if not zipfile.is_zipfile(file):
            return None
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]


def headers(path, names, expected=WHOLE):
    """{name: Header} of those arrays of an npz that are among `names`; an npy has the first name.

    Their numbers are there as far as sizes tell.
    """
    return _each(path, list(names), _header, expected)


def read(path, found, expected=WHOLE):
    """The arrays {name: array} of what headers() found."""
    check_memory(path, sum(header.nbytes for header in found.values()))
    return _each(path, list(found), _array, expected)


def map_npy(path, header):
    """The array of an npy, memory-mapped, by its Header."""
    order = "F" if header.fortran else "C"
    with refused(path, ".npy of numbers"):
        return np.memmap(path, header.dtype, "r", header.offset, header.shape, order)


def check_memory(path, nbytes):
    """InputError if memory is short of so many bytes."""
    free = psutil.virtual_memory().available
    if nbytes > free:
        raise InputError(f"{path}: its numbers take {nbytes / 2**30:.3g} GiB, of memory "
                         f"{free / 2**30:.3g} GiB is free; expected fewer frames or smaller ones")


def _each(path, names, take, expected):
    """{name: take(open member, its size in bytes)} of the members of an npz that are there."""
    taken = {}
    with open(path, "rb") as file, refused(path, ".npy or .npz", expected):
        if file.read(2) != b"PK":
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            return {names[0]: take(file, size)}
        with zipfile.ZipFile(file) as archive:
            there = set(archive.namelist())
            for name in names:
                if f"{name}.npy" in there:
                    member = archive.getinfo(f"{name}.npy")
                    with archive.open(member) as stream:
                        taken[name] = take(stream, member.file_size)
    return taken


def _header(stream, size):
    head = io.BytesIO(stream.read(HEAD))
    version = np.lib.format.read_magic(head)
    if version not in READ_HEADER:
        raise ValueError(f"its npy format is version {version}")
    shape, fortran, dtype = READ_HEADER[version](head)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, and allow_pickle is off")
    header = Header(shape, dtype, fortran, head.tell())
    if min(shape, default=0) < 0 or header.offset + header.nbytes > size:
        raise ValueError(f"its header says {header}, the file has {size} bytes")
    return header


def _array(stream, size):
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if isinstance(stream, zipfile.ZipExtFile) and stream.read(1):  # the end has the checksum
        raise ValueError("bytes follow an array")
    return array
