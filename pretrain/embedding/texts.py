"""Texts as they are given for vectors."""

from collections.abc import Sequence

Text = str | Sequence[str]
"""A raw text, or the words of one."""


def replace_surrogates(text: Text) -> Text:
    """The text itself; or, where it holds surrogates, which are half a character each, another that holds none."""
    if isinstance(text, str):
        return text if _is_encodable(text) else _pair_surrogates(text)
    return text if all(map(_is_encodable, text)) else [_pair_surrogates(word) for word in text]


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _pair_surrogates(text: str) -> str:
    """A pair is the character that it stands for; a lone one is U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
