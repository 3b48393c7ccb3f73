"""URLs without what must not leave the machine."""

import re
from typing import Any

USER_INFO = re.compile(r"(?<=://)[^/\s]*@")
VALUE = re.compile(r"([?&;][^=&;#?\s]+)=[^&;#\s]*")
NAMELESS = re.compile(r"(https?://[^?\s]*\?)[^=&;#\s]+(?=$|[&#\s])")
FRAGMENT = re.compile(r"(https?://[^#\s]*#)\S+")


def without_secrets(value: Any) -> Any:
    """`value`, at any depth, with every URL in it stripped of its user and password, and of values after its path.

    Parameters, query and fragment may hold a signature or a token under any name, so that only the names are kept.
    """
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str) and "://" in value:
        stripped = VALUE.sub(r"\1=…", USER_INFO.sub("", value))
        return FRAGMENT.sub(r"\1…", NAMELESS.sub(r"\1…", stripped))
    return value
