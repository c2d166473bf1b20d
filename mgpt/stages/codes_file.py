"""The file between `mgpt encode` and `mgpt decode`: picture name → VQGAN codes, as JSON.

    {"cat.png": [[17, 4, …], …], …}        rows from the top, a row's codes from the left

It holds no more than that, so anything can read and write it. Which VQGAN the codes belong to
stands beside it, in `codes.json.vq`, with the sha256 of the file it speaks of. Writer and reader
stand here side by side, and know no pixels.

    >>> write_codes(Path("codes.json"), {"cat.png": np.array([[17, 4]])}, "0123456789abcdef")
    >>> stated_vq(Path("codes.json"))
    '0123456789abcdef'
    >>> read_codes(Path("codes.json"), num_codes=512)["cat.png"].shape
    (1, 2)

Shape suffixes: h, w latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mgpt.errors import DataError
from mgpt.files.atomic import atomic_write, file_sha256

Codes = npt.NDArray[np.int64]

_PROBLEMS_SHOWN = 8


def write_codes(path: Path, codes: Mapping[str, Codes], vq_fingerprint: str) -> None:
    """Writes codes [h, w] by picture name, and of which VQGAN they are; each file appears whole."""
    pictures = [f"{json.dumps(name)}: [\n{_rows(codes_hw)}\n]" for name, codes_hw in codes.items()]
    data = ("{\n" + ",\n".join(pictures) + "\n}\n").encode()
    atomic_write(path, data)
    stated = {"vq_fingerprint": vq_fingerprint, "sha256": hashlib.sha256(data).hexdigest()}
    atomic_write(_beside(path), (json.dumps(stated) + "\n").encode())


def stated_vq(path: Path) -> str | None:
    """The fingerprint of the VQGAN that a file's codes are of; None where nothing says so of the
    file as it is now."""
    try:
        stated = json.loads(_beside(path).read_bytes())
        is_of_file = stated["sha256"] == file_sha256(path)
        return str(stated["vq_fingerprint"]) if is_of_file else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.vq")


def _rows(codes_hw: Codes) -> str:
    return ",\n".join(json.dumps(row, separators=(",", ":")) for row in codes_hw.tolist())


def read_codes(path: Path, num_codes: int) -> dict[str, Codes]:
    """Codes [h, w] by picture name, each below `num_codes`.

    Raises DataError that names every picture whose codes are not rows of equal length of such
    numbers.
    """
    codes, problems = {}, []
    for name, rows in read_object(path).items():
        problem = _problem(rows, num_codes)
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            codes[name] = np.array(rows, np.int64)
    if problems:
        raise DataError(listed(f"{path}: not codes of this VQGAN", problems))
    return codes


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises DataError where there is none."""
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is no JSON of codes ({error}); give a file of mgpt encode"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__} where picture names with their codes "
            "belong; give a file of mgpt encode"
        )
    return content


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice")
    return content


def listed(heading: str, problems: list[str]) -> str:
    """One message of several problems, the first few in full."""
    more = len(problems) - _PROBLEMS_SHOWN
    shown = [*problems[:_PROBLEMS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return "\n  ".join([f"{heading}:", *shown])


def _problem(rows: object, num_codes: int) -> str | None:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        return "a list of rows belongs here"
    widths = {len(row) for row in rows}
    if len(widths) > 1 or 0 in widths:
        return f"rows have {', '.join(map(str, sorted(widths)))} codes; one length belongs here"
    for number, row in enumerate(rows):
        for code in row:
            if type(code) is not int or not 0 <= code < num_codes:
                return (
                    f"row {number} holds {code!r:.40} where codes from 0 to {num_codes - 1} "
                    "belong; is vq= the VQGAN that they were made with?"
                )
    return None
