"""Tokenizers as people publish them: transformers' own ids, or a line that names the key."""

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, normalizers, processors

from pretrain.errors import ExportError
from pretrain.models.bert.published_tokenizer import load_tokenizer
from pretrain.models.bert.tokens import SPECIAL, WordPieceTokenizer, bert_pieces

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    "[unused1]",
    "the",
    "The",
    "river",
    "River",
    "naive",
    "naïve",
    "Ünder",
    "under",
    "中",
    "中文",
    "##文",
    ".",
    "'",
]
VOCABULARY = [*SPECIAL, *WORDS, *LETTERS, *LETTERS.upper(), *(f"##{letter}" for letter in LETTERS + LETTERS.upper())]
SIZE = len(VOCABULARY)
TEXTS = [
    "The River naïve, the river.",
    "Ünder 中文 don't",
    "COVID covid xcovidy <e1> word</e1> [unused1] New York",
    "a\u200bb\tc\u00a0d e\u0301 É ﬁ",
    "",
]
CONFIG = dict(
    vocab_size=SIZE, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, model_type="bert",
    max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT's config and vocabulary, and nothing else: what is added is the layout."""
    put(tmp_path, "config.json", CONFIG)
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY), encoding="utf-8")
    return tmp_path


def put(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def whole(folder: Path, **options: Any) -> Tokenizer:
    """Writes a `tokenizer.json` in place of `vocab.txt`."""
    options = {"lowercase": False, "strip_accents": None, "handle_chinese_chars": True} | options
    pieces = bert_pieces({piece: index for index, piece in enumerate(VOCABULARY)}, **options)
    pieces.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    return pieces


def loaded(folder: Path) -> WordPieceTokenizer:
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def added(index: int, content: str, *, special: bool = False, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {str(index): {"content": content, "special": special} | plain | flags}


def _layouts() -> Iterator[tuple[str, dict[str, Any]]]:
    """`tokenizer_config.json`, and other files by name."""
    for lower in (True, False):
        yield f"lower {lower}", {"do_lower_case": lower}
        for strip in (True, False, None):
            yield f"lower {lower} strip {strip}", {"do_lower_case": lower, "strip_accents": strip}
        yield f"Chinese whole, lower {lower}", {"do_lower_case": lower, "tokenize_chinese_chars": False}
    for name in ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizerFast", "ElectraTokenizer"):
        yield name, {"tokenizer_class": name, "do_lower_case": False}
    cased = {"do_lower_case": False}
    tokens = {"covid": SIZE, "<e1>": SIZE + 1, "New York": SIZE + 2}
    yield "added_tokens.json", cased | {"added_tokens.json": tokens}
    yield "added_tokens.json, lower", {"added_tokens.json": {"COVID": SIZE}}
    yield "added_tokens.json that names a piece", cased | {"added_tokens.json": {"river": VOCABULARY.index("river")}}
    extra = {"additional_special_tokens": ["<e1>", "</e1>"]}
    yield "special_tokens_map.json", cased | {"special_tokens_map.json": extra}
    yield "special_tokens_map.json beside keys", {"special_tokens_map.json": {"cls_token": "[CLS]"}} | extra
    yield (
        "both files",
        cased | {"special_tokens_map.json": extra, "added_tokens.json": {"<e1>": SIZE, "</e1>": SIZE + 1}},
    )
    entity = {"__type": "AddedToken", "content": "<e1>", "lstrip": True, "rstrip": True, "normalized": False}
    unknown = {"unk_token": {"content": "[UNK]", "normalized": False}}
    yield "dictionaries", cased | {"special_tokens_map.json": unknown, "additional_special_tokens": [entity]}
    yield "additional_special_tokens", cased | extra
    yield "extra_special_tokens", cased | {"extra_special_tokens": ["<e1>"]}
    yield "named extra_special_tokens", cased | {"extra_special_tokens": {"entity_token": "<e1>"}}
    yield "entity_token", cased | {"entity_token": "<e1>"}
    yield "a piece as special token", cased | {"additional_special_tokens": ["[unused1]"]}
    special = {str(index): added(index, token, special=True)[str(index)] for index, token in enumerate(SPECIAL)}
    decoder = special | added(SIZE, "<e1>", special=True) | added(SIZE + 1, "covid")
    yield "added_tokens_decoder", cased | {"added_tokens_decoder": decoder}
    yield "added_tokens_decoder, single words", cased | {"added_tokens_decoder": added(SIZE, "covid", single_word=True)}
    yield (
        "added_tokens_decoder, strips",
        cased | {"added_tokens_decoder": added(SIZE, "<e1>", lstrip=True, rstrip=True)},
    )
    yield "added_tokens_decoder before the files", cased | {
        "added_tokens_decoder": added(SIZE, "covid"), "added_tokens.json": {"<e1>": SIZE},
        "special_tokens_map.json": extra,
    }  # fmt: skip
    yield "no basic tokenizer", {"do_basic_tokenize": False, "never_split": ["River"]}
    yield "lengths", {"model_max_length": 1000000000000000019884624838656}


LAYOUTS = dict(_layouts())
FILES = ("special_tokens_map.json", "added_tokens.json")


def lay_out(folder: Path, layout: dict[str, Any]) -> None:
    for name in FILES:
        if name in layout:
            put(folder, name, layout[name])
    put(folder, "tokenizer_config.json", {key: value for key, value in layout.items() if key not in FILES})


def agrees(folder: Path) -> None:
    """Raw texts and words, by transformers' ids; saved and loaded again too."""
    ours, theirs = loaded(folder), transformers.AutoTokenizer.from_pretrained(folder)
    (folder / "again").mkdir()
    ours.save(folder / "again")
    for tokenizer in (ours, pickle.loads(pickle.dumps(ours)), loaded(folder / "again")):
        assert tokenizer.vocabulary == theirs.get_vocab()
        for text in TEXTS:
            expected = theirs(text)["input_ids"]
            assert tokenizer.pieces(text).tokens == expected, text
            assert tokenizer.encode([text]).tokens[0] == expected[1:-1]
            words = text.split()
            assert tokenizer.pieces(words).tokens == theirs(words, is_split_into_words=True)["input_ids"]


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, file: str, folder: Path) -> None:
    if file == "tokenizer.json":
        whole(folder)
    lay_out(folder, LAYOUTS[layout])
    agrees(folder)


def test_no_options_at_all(folder: Path) -> None:
    agrees(folder)


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_vocabularies_of_other_writers(ending: str, folder: Path) -> None:
    """Windows line ends, a blank line, an entry twice, no end of line at the end."""
    lines = [*VOCABULARY[:20], "", *VOCABULARY[20:], "river"]
    (folder / "vocab.txt").write_bytes(ending.join(lines).encode())
    put(folder, "tokenizer_config.json", {"do_lower_case": False})
    ours, theirs = loaded(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.pieces(text).tokens == theirs(text)["input_ids"]


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_tokenizer_that_is_its_file(name: str, folder: Path) -> None:
    """Those classes take all from `tokenizer.json`, special tokens of its own included."""
    pieces = whole(folder, lowercase=True, strip_accents=False)
    pieces.add_special_tokens(["<e1>"])
    pieces.add_tokens(["covid"])
    pieces.save(str(folder / "tokenizer.json"))
    put(folder, "tokenizer_config.json", {"tokenizer_class": name, "do_lower_case": False})
    agrees(folder)


def test_added_tokens_of_the_file_itself(folder: Path) -> None:
    pieces = whole(folder)
    pieces.add_special_tokens(["<e1>"])
    pieces.add_tokens(["covid"])
    pieces.save(str(folder / "tokenizer.json"))
    put(folder, "tokenizer_config.json", {"do_lower_case": False})
    agrees(folder)


def test_bert_s_own_tokens_are_never_spelled(folder: Path) -> None:
    """Whatever the layout says of them; the one place where transformers does otherwise."""
    special = {str(index): added(index, token, special=True)[str(index)] for index, token in enumerate(SPECIAL)}
    put(folder, "tokenizer_config.json", {"added_tokens_decoder": special, "bos_token": "[CLS]", "eos_token": "[SEP]"})
    ids = loaded(folder).pieces("a [MASK] [SEP] b [CLS]").tokens[1:-1]
    assert not set(ids) & {VOCABULARY.index(token) for token in ("[MASK]", "[SEP]", "[CLS]")}


def test_what_the_file_says_otherwise_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers builds the normalizer from the keys, whose defaults are those of an uncased BERT."""
    whole(folder)
    with caplog.at_level(logging.WARNING):
        agrees(folder)
    assert "tokenizer.json says False for do_lower_case, and the default True: the latter is obeyed" in caplog.text
    assert "strip_accents" in caplog.text
    caplog.clear()
    put(folder, "tokenizer_config.json", {"do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    loaded(folder)
    assert not caplog.records


def test_keys_that_are_not_obeyed_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(folder, "tokenizer_config.json", {"do_lower_case": False, "do_basic_tokenize": False, "never_split": ["River"]})
    with caplog.at_level(logging.WARNING):
        loaded(folder)
    assert "do_basic_tokenize is False, which is not obeyed" in caplog.text
    assert "never_split is ['River'], which is not obeyed" in caplog.text


def test_capitals_that_no_text_can_reach_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded(folder)
    capitals = 3 + 26 + 26  # The, River, Ünder, the letters, the letters within words; not [CLS]
    assert f"lower-cased, so {capitals} capitalised entries of the vocabulary can never be reached" in caplog.text
    caplog.clear()
    put(folder, "tokenizer_config.json", {"do_lower_case": False})
    loaded(folder)
    (folder / "vocab.txt").write_text(
        "\n".join(piece for piece in VOCABULARY if piece == piece.lower() or "[" in piece)
    )
    put(folder, "tokenizer_config.json", {"do_lower_case": True})
    loaded(folder)
    assert not caplog.records


def test_the_shared_cased_case(shared_data: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = shared_data("cases/published/cased_vocabulary_no_tokenizer_config")
    with caplog.at_level(logging.WARNING):
        ours = loaded(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.pieces("The River Bank").tokens == theirs("The River Bank")["input_ids"]
    assert "56 capitalised entries" in caplog.text


def test_published_uncased_vocabularies_have_no_capitals(
    shared_data: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded(shared_data("bert/vocab.txt").parent)
    assert not caplog.records


def test_lengths(folder: Path) -> None:
    for given, expected in ((128, 128), (1e30, None), (None, None)):
        put(folder, "tokenizer_config.json", {"do_lower_case": False, "model_max_length": given})
        assert loaded(folder).max_length == expected
    put(folder, "tokenizer_config.json", {"do_lower_case": False, "max_len": 64})
    assert pickle.loads(pickle.dumps(loaded(folder))).max_length == 64


JAPANESE = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab", "mecab_kwargs": {}}


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
def test_words_of_another_program(where: str, folder: Path) -> None:
    """A class that cuts text with a program of its own: raw text is refused, words are cut into its pieces."""
    put(folder, where, (CONFIG if where == "config.json" else {}) | JAPANESE)
    tokenizer = loaded(folder)
    words = ["中文", "中", "river", "River", "ＡＢ", "don't", "xyz中"]
    subwords = transformers.models.bert_japanese.tokenization_bert_japanese.WordpieceTokenizer(
        {piece: index for index, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"
    )
    expected = [
        [VOCABULARY.index(p) for p in subwords.tokenize(w)]
        for w in ["中文", "中", "river", "River", "AB", "don't", "xyz中"]
    ]
    pieces = tokenizer.pieces(words)
    assert pieces.tokens[1:-1] == [index for ids in expected for index in ids]
    assert pieces.words == words and pieces.tokens[1] == VOCABULARY.index("中文"), "one piece, not two characters"
    for use in (
        lambda: tokenizer.pieces("中文"), lambda: tokenizer.encode(["中文"]), lambda: tokenizer.save(folder),
        lambda: pickle.loads(pickle.dumps(tokenizer)).pieces("中文"),
    ):  # fmt: skip
        with pytest.raises(
            ExportError, match="BertJapaneseTokenizer cuts text with a program that is not here: give words"
        ):
            use()


def test_the_shared_japanese_case(shared_data: Callable[[str], Path]) -> None:
    tokenizer = loaded(shared_data("cases/published/japanese_mecab"))
    with pytest.raises(ExportError, match="BertJapaneseTokenizer"):
        tokenizer.pieces("東京に行く")
    assert [index for index in tokenizer.pieces(["東京", "に", "行く"]).tokens[1:-1]] == [5, 6, 7]


def _refused() -> Iterator[tuple[str, Callable[[Path], object]]]:
    def options(**keys: Any) -> Callable[[Path], object]:
        return lambda folder: put(folder, "tokenizer_config.json", keys)

    def edit(change: Callable[[Tokenizer], object]) -> Callable[[Path], object]:
        def apply(folder: Path) -> None:
            pieces = whole(folder)
            change(pieces)
            pieces.save(str(folder / "tokenizer.json"))
            put(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})

        return apply

    yield (
        r"tokenizer_class is 'XLMRobertaTokenizer'; can be read: BertTokenizer",
        options(tokenizer_class="XLMRobertaTokenizer"),
    )
    yield r"tokenizer_class is \['BertTokenizer'\]", options(tokenizer_class=["BertTokenizer"])
    yield r"auto_map is .*mine.Tokenizer", options(auto_map={"AutoTokenizer": ["mine.Tokenizer", None]})
    yield r"tokenizer.json is missing", options(tokenizer_class="PreTrainedTokenizerFast")
    yield r"cls_token is '<s>'; only '\[CLS\]' can be read", options(cls_token="<s>")
    yield r"unk_token is '<unk>'", lambda f: put(f, "special_tokens_map.json", {"unk_token": {"content": "<unk>"}})
    yield r"do_lower_case is 'false', neither true nor false", options(do_lower_case="false")
    yield r"do_lower_case is None, neither", options(do_lower_case=None)
    yield r"strip_accents is 1, neither", options(strip_accents=1)
    yield r"tokenize_chinese_chars is 'no', neither", options(tokenize_chinese_chars="no")
    yield r"model_max_length is 'long', not a number", options(model_max_length="long")
    yield r"model_max_length is 0, not a number", options(model_max_length=0)
    yield r"subword_tokenizer_type is 'character'", options(**JAPANESE, subword_tokenizer_type="character")
    yield (
        rf"added token '<e1>' has the id 900, and {SIZE} by the vocabulary",
        lambda f: put(f, "added_tokens.json", {"<e1>": 900}),
    )
    yield r"added tokens are \[\], not an object", options(added_tokens_decoder=[])
    yield r"'x' is not an id", options(added_tokens_decoder={"x": {"content": "a"}})
    yield r"3 is no token", options(added_tokens_decoder={"3": 3})
    yield r"additional_special_tokens is 3, not a list", options(additional_special_tokens=3)
    yield r"added_tokens.json holds no JSON object", lambda f: put(f, "added_tokens.json", [])
    yield r"tokenizer_config.json is not JSON", lambda f: (f / "tokenizer_config.json").write_text("{")
    yield (
        r"vocab.txt is a Git LFS pointer",
        lambda f: (f / "vocab.txt").write_text("version https://git-lfs.github.com"),
    )
    yield r"vocab.txt has no \[MASK\]", lambda f: (f / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    yield (
        r"model_type is 'roberta'; only 'bert' can be read",
        lambda f: put(f, "config.json", {"model_type": "roberta"}),
    )
    yield r"normalizer is Lowercase", edit(lambda pieces: setattr(pieces, "normalizer", normalizers.Lowercase()))
    yield (
        r"post_processor puts other tokens around a text",
        edit(lambda pieces: setattr(pieces, "post_processor", processors.BertProcessing(("[SEP]", 3), ("[MASK]", 4)))),
    )
    yield (
        r"continuing_subword_prefix and unk_token are '@@'",
        edit(lambda pieces: setattr(pieces.model, "continuing_subword_prefix", "@@")),
    )


@pytest.mark.parametrize(("message", "change"), list(_refused()))
def test_what_is_refused_is_named(message: str, change: Callable[[Path], object], folder: Path) -> None:
    change(folder)
    with pytest.raises(ExportError, match=message) as raised:
        load_tokenizer(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
