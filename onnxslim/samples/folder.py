"""What lies in a folder of samples, and its ``labels.csv``. Nothing outside the folder is ever named or read."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnxslim.errors import SampleError
from onnxslim.samples.kinds import reason

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LABEL_FILE = "labels.csv"


@dataclass(frozen=True)
class Listing:
    """The files of a folder and its subfolders, relative to ``root`` with forward slashes, sorted by name."""

    root: Path
    images: tuple[str, ...]
    feeds: tuple[str, ...]


def scan(root: Path) -> Listing:
    """List the images and ``.npz`` files of ``root``, at any depth; hidden ones are passed over.

    Raises:
        SampleError: a folder cannot be read, or a link leads out of ``root``.
    """
    root = root.resolve()
    found: list[str] = []
    for folder, subfolders, files in os.walk(root, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        here = Path(folder)
        for name in subfolders:
            _check_inside(root, here / name)
        suitable = [here / name for name in files if _is_sample(name) or name == LABEL_FILE]
        for path in suitable:
            _check_inside(root, path)
        found += [path.relative_to(root).as_posix() for path in suitable if path.name != LABEL_FILE]
    found.sort()
    feeds = tuple(name for name in found if name.lower().endswith(".npz"))
    images = tuple(name for name in found if name.lower().endswith(IMAGE_SUFFIXES))
    return Listing(root, images, feeds)


def read_labels(listing: Listing) -> dict[str, int]:
    """Return the classes that ``labels.csv`` gives to images, by relative name; empty where there is none.

    Columns other than ``file`` and ``label`` are ignored, and an empty label leaves its image unlabelled.

    Raises:
        SampleError: a column is missing, a label is no integer, or a file is missing, no image, or outside.
    """
    path = listing.root / LABEL_FILE
    if not path.is_file():
        return {}
    images = frozenset(listing.images)
    labels: dict[str, int] = {}
    for number, file, text in _rows(path):
        where = f"{listing.root.name}/{LABEL_FILE} line {number}"
        name = _relative(file, where)
        if name not in images:
            raise _no_image(listing.root, name, where)
        label = _integer(text, where)
        if label is None:
            continue
        if labels.setdefault(name, label) != label:
            raise SampleError(f"{where} labels {name!r} {label} after {labels[name]}: keep one line")
    return labels


def _rows(path: Path) -> list[tuple[int, str, str]]:
    """Return (line number, file, label) of every row."""
    name = f"{path.parent.name}/{path.name}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row.get("file") or "", row.get("label") or "") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SampleError(f"{name} cannot be read ({reason(error)}): save it as UTF-8 CSV") from error
    missing = [column for column in ("file", "label") if column not in columns]
    if missing:
        raise SampleError(f"{name} has no column {missing[0]!r}: its first line must be file,label")
    return [(number, file.strip(), label.strip()) for number, file, label in rows]


def _relative(file: str, where: str) -> str:
    path = PurePosixPath(file)
    if not file or path.is_absolute() or PureWindowsPath(file).is_absolute() or ".." in path.parts:
        raise SampleError(f"{where} names the file {file!r}: give a path relative to the folder, and inside it")
    return path.as_posix()


def _no_image(root: Path, name: str, where: str) -> SampleError:
    if not (root / name).exists():
        return SampleError(f"{where} names {name!r}, which is missing: add the image or remove the line")
    kinds = " ".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
    return SampleError(f"{where} names {name!r}, which is not an image of the folder ({kinds}): remove the line")


def _integer(text: str, where: str) -> int | None:
    if not text:
        return None
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text) is None:
        raise SampleError(f"{where} has the label {text!r}: labels are integers, the class's index")
    return int(text)


def _is_sample(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith((*IMAGE_SUFFIXES, ".npz"))


def _check_inside(root: Path, path: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        name = path.relative_to(root).as_posix()
        raise SampleError(f"{root.name}/{name} is a link that leads out of the folder: copy what it points to")


def _refuse(error: OSError) -> None:
    raise SampleError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions") from error
