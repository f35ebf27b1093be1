"""Names of files and folders after tasks, presets, methods and runs."""

import hashlib
import re

_LONGEST = 120  # characters; file systems take 255 bytes, and endings are added


def file_name(name: str) -> str:
    """`name` as one part of a path: letters, digits, `.`, `_` and `-`; different names give different files.

    `suite:Task` becomes `suite-Task`. A name with other characters, or a very long one, gets a digest of itself at the
    end: `gym:ns/Dot-v0` becomes `gym-ns-Dot-v0-` and eight hexadecimal digits.
    """
    suite, colon, rest = name.partition(":")
    plain = f"{suite}-{rest}" if colon else suite
    simple = re.fullmatch(r"[A-Za-z0-9_]+(:[A-Za-z0-9._-]+)?|[A-Za-z0-9_][A-Za-z0-9._-]*", name)
    if simple and len(plain) <= _LONGEST:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', plain)[:_LONGEST].lstrip('.')}-{digest}"
