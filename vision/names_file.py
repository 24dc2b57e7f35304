"""Class names in a file: one per line, as JSON or as YAML, in UTF-8, UTF-16 or GBK."""
from __future__ import annotations

import ast
import json
import os
import unicodedata
from typing import Any, Dict, List

from vision.errors import InputError
from vision.packages import pip_install


def read_names(path: str | os.PathLike[str]) -> List[str] | Dict[int, str]:
    """The class names in a file, by number: a list, or a dict if numbers are left out.

    The file has one name per line, or is JSON or YAML (.yaml): a list, a dict from numbers to names
    or from names to numbers, or an object with such a list or dict as "names". Raises InputError if
    it has no names.
    """
    text = read_text(path).rstrip()
    json_text, is_yaml = text.lstrip(), os.fspath(path).lower().endswith((".yaml", ".yml"))
    if is_yaml or json_text[:1] + json_text[-1:] in ("[]", "{}"):
        try:
            names = names_of(parse_yaml(text, path) if is_yaml else _parse(json_text))
        except ValueError as error:
            raise InputError(str(error)) from None
        if names is None:
            raise InputError(f"{path}: contains no class names: neither one per line nor a list "
                             f"or dict of names as JSON or YAML.")
        return names
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise InputError(f"{path}: contains no class names (one per line).")
    return lines


def _parse(text: str) -> Any:
    """JSON, or Python's notation of the same ({0: 'person'}). None if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def parse_yaml(text: str, path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file. Raises ValueError with a sentence if it is not valid, and
    InputError if PyYAML is missing."""
    try:
        import yaml
    except ImportError:
        raise InputError(f"{path}: cannot be read because PyYAML is not installed: "
                         f"{pip_install('pyyaml')}") from None
    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML raises many
        raise ValueError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from None


def names_of(names: Any) -> List[str] | Dict[int, str] | None:
    """Class names as lists and dicts of several kinds give them; None if these are no names.

    {"0": "person"} and {"person": 0} are the same as {0: "person"}. In a dict "names" or "id2label"
    may hold them.
    """
    if isinstance(names, dict):
        for key in ("names", "id2label"):
            if isinstance(names.get(key), (dict, list)):
                return names_of(names[key])
        for pairs in (list(names.items()), [(value, key) for key, value in names.items()]):
            if pairs and all(_is_number(number) and not _is_collection(name)
                             for number, name in pairs):
                return {int(number): str(name) for number, name in sorted(
                    pairs, key=lambda pair: int(pair[0]))}
        return None
    if isinstance(names, (list, tuple)) and names:
        return None if any(map(_is_collection, names)) else [str(name) for name in names]
    return None


def _is_collection(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, set))


def _is_number(value: Any) -> bool:
    text = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10
    return type(value) is int or text


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, UTF-16 or GBK, the encodings of Windows' editors. Raises
    InputError for a file in another encoding."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}.") from None
    text = _decode(content)
    # Control characters; those that are private or that do not exist come of Big5 read as GBK.
    if text is None or any(unicodedata.category(char) in ("Cc", "Co", "Cn")
                           for char in set(text) - set("\t\n\r\f\v\x1a")):
        raise InputError(f"{path}: cannot be read as text: it is neither UTF-8 nor UTF-16 nor GBK. "
                         f"Save it as UTF-8.")
    return text.rstrip("\x1a")  # the end of a file in DOS


def _decode(content: bytes) -> str | None:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in content:  # the upper bytes of ASCII characters and line ends in UTF-16
        encodings = ["utf-16-le" if content[1::2].count(0) >= content[::2].count(0)
                     else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "gb18030"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "gb18030" or _is_chinese(text):
            return text
    return None


def _is_chinese(text: str) -> bool:
    """Whether most characters outside ASCII are frequent Chinese ones, those of GB 2312. Other
    encodings, such as Latin-1, give rare ones when they are read as GBK."""
    frequent = text.encode("gb2312", "ignore").decode("gb2312")
    count, total = (sum(not char.isascii() for char in each) for each in (frequent, text))
    return 2 * count >= total
