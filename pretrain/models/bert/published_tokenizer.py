"""The tokenizer of a published BERT: its files are obeyed key by key as transformers obeys them, or refused.

`tokenizer.json` (or `vocab.txt`) gives the pieces, `tokenizer_config.json` says how text is cleaned, and it,
`special_tokens_map.json` and `added_tokens.json` name tokens that are found in text as a whole. Those are found here
too, but for BERT's own five, which no text can spell (see `tokens`).
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as PieceTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from pretrain.errors import ExportError
from pretrain.models.bert.published_config import check_model_type
from pretrain.models.bert.tokenizer_files import (
    TokenizerFiles,
    added_by_id,
    check_roles,
    named_tokens,
    read_flag,
    read_max_length,
    read_tokenizer_files,
)
from pretrain.models.bert.tokens import CLS, CONTINUATION, SEP, SPECIAL, UNKNOWN, WordPieceTokenizer, bert_pieces
from pretrain.models.published_files import identify, read_json

log = logging.getLogger(__name__)

CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
"""Tokenizers of transformers that are BERT's, with or without `Fast`."""
AS_IN_FILE = ("PreTrainedTokenizer", "TokenizersBackend")
"""Those that are what `tokenizer.json` says."""
JAPANESE = "BertJapaneseTokenizer"
"""The one that cuts text with a program of its own, and words as BERT's does."""
NOT_OBEYED: dict[str, tuple[Any, ...]] = {
    "do_basic_tokenize": (True, None),
    "never_split": (None, []),
    "clean_text": (True, None),
}
"""Keys that the first versions of transformers obeyed, and what they are where they change nothing."""


def load_tokenizer(folder: Path) -> WordPieceTokenizer | None:
    """The tokenizer of a folder with `tokenizer.json`, or with `vocab.txt` alone; None where there is neither.

    Where nothing says whether text is lower-cased, it is, as transformers does. What is not obeyed, or makes pieces
    unreachable, is logged. Raises ExportError where the tokenizer is not BERT's, or its files contradict each other.
    """
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    if not whole.is_file() and not vocabulary.is_file():
        return None
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    check_model_type(folder / "config.json", config)
    files = read_tokenizer_files(folder)
    name, kind = _class(files, config)
    check_roles(files)
    if kind in AS_IN_FILE:
        if not whole.is_file():
            raise ExportError(f"{files.path}: tokenizer_class is {name!r}, and {whole} is missing")
        pieces = _pieces_as_in_file(whole)
    else:
        pieces = _pieces_by_keys(whole if whole.is_file() else vocabulary, files, japanese=kind == JAPANESE)
    _add_special(pieces, files)
    if config:  # and not a tokenizer that a run has taken over, of which this was said
        _warn(files, pieces)
    words_only = None
    if kind == JAPANESE:
        words_only = (
            f"{files.path}: {name} cuts text with a program that is not here: give words that are cut already "
            "(is_split_into_words, --split)"
        )
    return WordPieceTokenizer(pieces, max_length=read_max_length(files), words_only=words_only)


def _class(files: TokenizerFiles, config: dict[str, Any]) -> tuple[str, str]:
    """The class that is asked for, and what it is called here; raises ExportError for one that is not read."""
    name = files.keys.get("tokenizer_class") or config.get("tokenizer_class") or CLASSES[0]
    problem = None if files.keys.get("auto_map") is None else f"auto_map is {files.keys['auto_map']!r}"
    kind = name.removesuffix("Fast") if isinstance(name, str) else ""
    if kind not in (*CLASSES, *AS_IN_FILE, JAPANESE):
        problem = f"tokenizer_class is {name!r}"
    if problem is not None:
        raise ExportError(f"{files.path}: {problem}; can be read: {', '.join((*CLASSES, JAPANESE))}")
    return name, kind


def _pieces_by_keys(path: Path, files: TokenizerFiles, *, japanese: bool) -> PieceTokenizer:
    """BERT's tokenizer around the vocabulary of a file, as the keys say: transformers too takes no more of it."""
    lowercase = read_flag(files, "do_lower_case", default=not japanese)
    strip_accents = read_flag(files, "strip_accents", default=None)
    handle_chinese_chars = read_flag(files, "tokenize_chinese_chars", default=True)
    added = files.added
    if path.suffix == ".json":
        content = read_json(path)
        found = _parse(path, content)
        _check_parts(path, found)
        if not japanese:
            _warn_of_another_normalizer(path, files, found.normalizer, bool(lowercase), strip_accents)
        vocabulary: dict[str, int] = found.get_vocab(with_added_tokens=False)
        added = added or dict(added_by_id(path, {str(t["id"]): t for t in content.get("added_tokens") or []}))
    else:
        vocabulary = _read_vocabulary(path)
    _check_special(path, vocabulary | {token.content: index for index, token in (added or {}).items()})
    pieces = bert_pieces(
        vocabulary,
        lowercase=bool(lowercase),
        strip_accents=strip_accents,
        handle_chinese_chars=bool(handle_chinese_chars),
    )
    if japanese:
        _check_japanese(files)
        lower = [normalizers.Lowercase()] if lowercase else []
        pieces.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])
        pieces.pre_tokenizer = pre_tokenizers.Sequence([])
    for index, token in sorted((added or {}).items()):
        if token.content in SPECIAL:
            continue
        pieces.add_tokens([token])
        if pieces.token_to_id(token.content) != index:
            raise ExportError(
                f"{files.path.parent}: added token {token.content!r} has the id {index}, "
                f"and {pieces.token_to_id(token.content)} by the vocabulary"
            )
    return pieces


def _pieces_as_in_file(path: Path) -> PieceTokenizer:
    """A `tokenizer.json`, all of it; its added tokens are found in text, special or not."""
    content = read_json(path)
    _parse(path, content)
    for token in content.get("added_tokens") or []:
        token["special"] = token["content"] in SPECIAL
    pieces = _parse(path, content)
    _check_parts(path, pieces)
    _check_special(path, pieces.get_vocab())
    frame = [pieces.token_to_id(CLS), pieces.token_to_id(SEP)]
    if pieces.encode("").ids != frame:
        raise ExportError(f"{path}: post_processor puts other tokens around a text than {CLS} and {SEP}")
    return pieces


def _parse(path: Path, content: dict[str, Any]) -> PieceTokenizer:
    try:
        return PieceTokenizer.from_str(json.dumps(content))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise ExportError(f"{path} cannot be read: {error}") from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    if (what := identify(path)) is not None:
        raise ExportError(f"{path} is {what}")
    try:
        vocabulary: dict[str, int] = models.WordPiece.read_file(str(path))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise ExportError(f"{path} cannot be read: {error}") from error
    return vocabulary


def _check_parts(path: Path, pieces: PieceTokenizer) -> None:
    """Refuses tokenizers of other models, whose text would be cut or cleaned in another way."""
    for part, found, expected in (
        ("model", pieces.model, models.WordPiece),
        ("normalizer", pieces.normalizer, normalizers.BertNormalizer),
        ("pre_tokenizer", pieces.pre_tokenizer, pre_tokenizers.BertPreTokenizer),
    ):
        if not isinstance(found, expected):
            raise ExportError(f"{path}: {part} is {type(found).__name__}; a BERT tokenizer has {expected.__name__}")
    model = pieces.model
    assert isinstance(model, models.WordPiece)
    if (model.continuing_subword_prefix, model.unk_token) != (CONTINUATION, UNKNOWN):
        raise ExportError(
            f"{path}: continuing_subword_prefix and unk_token are {model.continuing_subword_prefix!r} and "
            f"{model.unk_token!r}; only {CONTINUATION!r} and {UNKNOWN!r} can be read"
        )


def _check_special(path: Path, vocabulary: dict[str, int]) -> None:
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise ExportError(f"{path} has no {', '.join(missing)}: a BERT vocabulary holds {', '.join(SPECIAL)}")


def _check_japanese(files: TokenizerFiles) -> None:
    kind = files.keys.get("subword_tokenizer_type", "wordpiece")
    if kind != "wordpiece" or files.keys.get("do_subword_tokenize", True) is not True:
        raise ExportError(f"{files.path}: subword_tokenizer_type is {kind!r}; only 'wordpiece' can be read")


def _add_special(pieces: PieceTokenizer, files: TokenizerFiles) -> None:
    """Adds the tokens that keys name beside BERT's own; one that is in no vocabulary gets the next id."""
    for token in named_tokens(files.path, files.keys):
        if token.content not in SPECIAL:
            pieces.add_tokens([token])


def _warn_of_another_normalizer(
    path: Path, files: TokenizerFiles, found: Any, lowercase: bool, strip_accents: bool | None
) -> None:
    """Says where `tokenizer.json` cleans text otherwise than the keys do, which transformers obeys."""
    strip = [asked if asked is not None else lower for asked, lower in
             ((found.strip_accents, found.lowercase), (strip_accents, lowercase))]  # fmt: skip
    for key, theirs, ours in (("do_lower_case", found.lowercase, lowercase), ("strip_accents", *strip)):
        if theirs != ours:
            log.warning(
                "%s says %s for %s, and %s %s: the latter is obeyed, as transformers does",
                path, theirs, key, files.path if key in files.keys else "the default", ours,
            )  # fmt: skip


def _warn(files: TokenizerFiles, pieces: PieceTokenizer) -> None:
    """Says which keys are not obeyed, and how many pieces no text can reach since it is lower-cased."""
    for key, unchanged in NOT_OBEYED.items():
        if files.keys.get(key) not in unchanged:
            log.warning("%s: %s is %r, which is not obeyed (nor by transformers 5)", files.path, key, files.keys[key])
    normalizer = pieces.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer) and normalizer.lowercase:
        whole = {token.content for token in pieces.get_added_tokens_decoder().values()}
        entries = [piece for piece in pieces.get_vocab() if piece not in whole and not re.fullmatch(r"\[.*\]", piece)]
        capitals = sum(piece != piece.lower() for piece in entries)
        if capitals:
            log.warning(
                "%s: text is lower-cased, so %d capitalised entries of the vocabulary can never be reached; "
                'if the model is a cased one, write {"do_lower_case": false} into tokenizer_config.json',
                files.path.parent, capitals,
            )  # fmt: skip
