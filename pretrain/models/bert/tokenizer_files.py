"""What the files beside a published vocabulary say of a tokenizer: keys, and tokens that text may hold.

`tokenizer_config.json`, and where it names no `added_tokens_decoder` (the files of early versions),
`special_tokens_map.json` and `added_tokens.json`: read as transformers reads them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from pretrain.errors import ExportError
from pretrain.models.bert.tokens import CLS, MASK, PADDING, SEP, UNKNOWN
from pretrain.models.published_files import read_json

ROLES = {"pad_token": PADDING, "unk_token": UNKNOWN, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK}
_ENDLESS = 10**9
"""A `model_max_length` from here on means that there is none."""
_FEWEST = 3
"""Pieces of a text of one piece."""


class TokenizerFiles(NamedTuple):
    """What the files beside the pieces say."""

    path: Path
    """`tokenizer_config.json`."""
    keys: dict[str, Any]
    """Of that, and of `special_tokens_map.json`, where transformers reads it."""
    added: dict[int, AddedToken] | None
    """Added tokens by id; None where `tokenizer.json` says which there are."""


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """What a folder's files say; all of it may be nothing. Raises ExportError where one of them is damaged."""
    path = folder / "tokenizer_config.json"
    keys = read_json(path) if path.is_file() else {}
    if "added_tokens_decoder" in keys:
        return TokenizerFiles(path, keys, dict(added_by_id(path, keys["added_tokens_decoder"])))
    added: dict[int, AddedToken] | None = None
    specials, tokens = folder / "special_tokens_map.json", folder / "added_tokens.json"
    if specials.is_file():
        keys = keys | read_json(specials)
    if tokens.is_file():
        named = {token.content for token in named_tokens(path, keys)}
        listed = {
            str(index): {"content": text, "normalized": text not in named} for text, index in read_json(tokens).items()
        }
        added = dict(added_by_id(tokens, listed))
    return TokenizerFiles(path, keys, added)


def added_by_id(path: Path, listed: Any) -> Iterator[tuple[int, AddedToken]]:
    """Added tokens, as not special, since text may hold them; raises ExportError for what is none."""
    if not isinstance(listed, dict):
        raise ExportError(f"{path}: added tokens are {listed!r}, not an object")
    for index, token in listed.items():
        if not index.isdecimal():
            raise ExportError(f"{path}: added tokens: {index!r} is not an id")
        yield int(index), _token(path, token)


def _token(path: Path, written: Any) -> AddedToken:
    if isinstance(written, str):
        return AddedToken(written, normalized=False)
    content = written.get("content") if isinstance(written, dict) else None
    if not isinstance(content, str) or not content:
        raise ExportError(f"{path}: {written!r} is no token")
    flags = {key: bool(written[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in written}
    return AddedToken(content, **{"normalized": not written.get("special", False)} | flags)


def named_tokens(path: Path, keys: dict[str, Any]) -> list[AddedToken]:
    """The tokens that keys name, but for those of `ROLES`."""
    named = [value for key, value in keys.items() if key.endswith("_token") and key not in ROLES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = keys.get(key) or []
        if not isinstance(more, list | dict):
            raise ExportError(f"{path}: {key} is {more!r}, not a list of tokens")
        named += list(more.values()) if isinstance(more, dict) else more
    return [_token(path, value) for value in named if isinstance(value, str | dict) and value]


def check_roles(files: TokenizerFiles) -> None:
    """Raises ExportError where one of BERT's own tokens has another name."""
    for role, expected in ROLES.items():
        value = files.keys.get(role, expected)
        content = value.get("content") if isinstance(value, dict) else value
        if content not in (expected, None):
            raise ExportError(f"{files.path}: {role} is {content!r}; only {expected!r} can be read")


def read_flag(files: TokenizerFiles, key: str, default: bool | None) -> bool | None:
    """A key that is true or false, or null if that is its default."""
    value = files.keys.get(key, default)
    if not isinstance(value, bool) and (value is not None or default is not None):
        raise ExportError(f"{files.path}: {key} is {value!r}, neither true nor false")
    return value


def read_max_length(files: TokenizerFiles) -> int | None:
    """The most pieces of a text, special tokens included; None where the files name no bound."""
    value = files.keys.get("model_max_length", files.keys.get("max_len"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= _FEWEST:
        raise ExportError(f"{files.path}: model_max_length is {value!r}, not a number of {_FEWEST} pieces or more")
    return int(value) if value < _ENDLESS else None
