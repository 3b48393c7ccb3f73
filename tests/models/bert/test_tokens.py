import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from pretrain.config.models import WordPieceConfig
from pretrain.errors import DataError, ExportError
from pretrain.models.bert.published_tokenizer import load_tokenizer
from pretrain.models.bert.tokens import SPECIAL, WordPieceTokenizer, learn_tokenizer

LEARN = """
import hashlib, pathlib, sys
from pretrain.config.models import WordPieceConfig
from pretrain.models.bert.tokens import learn_tokenizer
texts = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
learn_tokenizer(lambda: texts, WordPieceConfig(vocabulary_size=200)).save(pathlib.Path(sys.argv[2]))
"""


def test_another_process_learns_the_same_bytes(
    tokenizer: WordPieceTokenizer, sentences: list[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences), encoding="utf-8")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    tokenizer.save(here)
    subprocess.run([sys.executable, "-c", LEARN, str(text), str(there)], check=True, cwd=Path(__file__).parents[3])
    files = sorted(path.name for path in here.iterdir())
    assert files == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    for name in files:
        assert _digest(here / name) == _digest(there / name), name


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_vocabulary_begins_with_the_special_tokens_and_fills_its_size(
    tokenizer: WordPieceTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    pieces = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert pieces[:5] == list(SPECIAL)
    assert len(pieces) == len(set(pieces)) == tokenizer.vocabulary_size == 200
    assert "##." not in pieces, "punctuation never continues a word"
    assert tokenizer.sentence_end is None
    assert tokenizer.ordinary_ids.tolist() == list(range(5, 200))


def test_rare_characters_are_left_out_and_counted() -> None:
    # 700 Chinese characters, ever rarer, and a vocabulary with room for 97 of them.
    texts = [chr(0x4E00 + i) * (1000 - i) for i in range(700)]
    tokenizer = learn_tokenizer(lambda: texts, WordPieceConfig(vocabulary_size=200))
    assert tokenizer.vocabulary_size == 5 + 97
    encoded = tokenizer.encode([chr(0x4E00 + 96), chr(0x4E00 + 97) + " " + chr(0x4E00), ""])
    assert encoded.tokens[0] == [5 + 96]
    assert encoded.tokens[1] == [tokenizer.unknown_id, 5]
    assert encoded.tokens[2] == []
    assert (encoded.words, encoded.unknown_words) == (3, 1)
    assert (encoded.characters, encoded.characters_left_out) == (3, 1)


def test_empty_text_is_refused() -> None:
    with pytest.raises(DataError, match="no character to learn"):
        learn_tokenizer(lambda: ["", " \n"], WordPieceConfig())


def test_what_encoding_loses_is_counted(tokenizer: WordPieceTokenizer) -> None:
    # A zero-width space vanishes, and a word with one unknown letter is unknown as a whole.
    encoded = tokenizer.encode(["ab a\u200bb.", "abz  ab", "ab"])
    assert encoded.words == 6
    assert encoded.unknown_words == 1
    assert encoded.characters == 6 + 5 + 2
    assert encoded.characters_left_out == 1 + 3
    assert encoded.ids.tolist() == [i for row in encoded.tokens for i in row]


def test_special_tokens_in_text_are_text(tokenizer: WordPieceTokenizer) -> None:
    special = {tokenizer.padding_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    for candidate in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert not special & set(candidate.encode(["ab [MASK] [SEP]", "[CLS][PAD]"]).ids.tolist())
        assert not special & set(candidate.pieces("ab [MASK]").tokens[1:-1])
        assert not special & set(candidate.pieces(["[SEP]"]).tokens[1:-1])


def test_pieces_of_raw_text_belong_to_words_of_the_original(shared_data: Callable[[str], Path]) -> None:
    tokenizer = _uncased(shared_data)
    pieces = tokenizer.pieces("Théodore don't  unaffable")
    assert pieces.words == ["Théodore", "don", "'", "t", "unaffable"]
    assert pieces.word_of.tolist() == [-1, 0, 1, 2, 3, 4, 4, 4, -1]
    assert pieces.tokens[0] == tokenizer.cls_id and pieces.tokens[-1] == tokenizer.sep_id
    assert tokenizer.pieces("").words == []


def test_given_words_stay_whole(shared_data: Callable[[str], Path]) -> None:
    tokenizer = _uncased(shared_data)
    words = ["don't", "\u200b", "unaffable"]
    pieces = tokenizer.pieces(words)
    assert pieces.words == words
    assert pieces.word_of.tolist() == [-1, 0, 0, 0, 2, 2, 2, -1]
    assert pieces.tokens[1:4] == tokenizer.encode(["don't"]).tokens[0]


def _uncased(shared_data: Callable[[str], Path]) -> WordPieceTokenizer:
    tokenizer = load_tokenizer(shared_data("bert/vocab.txt").parent)
    assert tokenizer is not None
    return tokenizer


def test_published_vocabulary_gives_the_original_ids(shared_data: Callable[[str], Path]) -> None:
    tokenizer = _uncased(shared_data)
    assert tokenizer.vocabulary_size == 30522
    lines = shared_data("bert/google_fulltokenizer_sample_text.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert tokenizer.encode([row["text"] for row in rows]).tokens == [row["ids"] for row in rows]


def test_saved_tokenizers_load_alike(tokenizer: WordPieceTokenizer, sentences: list[str], tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
    tokenizer.save(tmp_path)
    expected = tokenizer.encode(sentences[:50]).tokens
    whole = load_tokenizer(tmp_path)
    assert whole is not None and whole.encode(sentences[:50]).tokens == expected
    (tmp_path / "tokenizer.json").unlink()
    bare = load_tokenizer(tmp_path)
    assert bare is not None and bare.encode([*sentences[:50], "AB"]).tokens == [*expected, [tokenizer.unknown_id]]


def test_lowercasing_and_accents_follow_the_config() -> None:
    texts = ["Éa eA e\u0301a"] * 5

    def learn(**options: bool) -> int:
        tokenizer = learn_tokenizer(lambda: texts, WordPieceConfig(vocabulary_size=150, **options))
        return len(set(map(tuple, (tokenizer.encode([word]).tokens[0] for word in texts[0].split()))))

    assert learn() == 3
    assert learn(lowercase=True) == 3
    assert learn(lowercase=True, strip_accents=True) == 1


def test_cutting_and_padding_of_a_published_tokenizer_are_switched_off(
    tokenizer: WordPieceTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    published = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    published.enable_truncation(4)
    published.enable_padding(length=6)
    published.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert loaded.pieces("a b c d e f g").tokens == tokenizer.pieces("a b c d e f g").tokens


def test_other_tokenizers_are_refused(tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE()).save(str(path))
    with pytest.raises(ExportError, match=r"tokenizer.json: model is BPE; a BERT tokenizer has WordPiece"):
        load_tokenizer(tmp_path)
    path.write_text("{")
    with pytest.raises(ExportError, match=r"tokenizer.json is not JSON"):
        load_tokenizer(tmp_path)
    path.unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(ExportError, match=r"vocab.txt has no \[MASK\]"):
        load_tokenizer(tmp_path)


def test_transformers_gives_the_same_ids(
    tokenizer: WordPieceTokenizer, shared_data: Callable[[str], Path], sentences: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path, max_positions=64)
    cased = AutoTokenizer.from_pretrained(tmp_path)
    assert cased.model_max_length == 64
    for text in [*sentences[:20], "Ab É-c x́ 中文 d."]:
        assert cased(text)["input_ids"] == tokenizer.pieces(text).tokens
    folder = tmp_path / "uncased"
    folder.mkdir()
    shutil.copy(shared_data("bert/vocab.txt"), folder)
    uncased = _uncased(shared_data)
    uncased.save(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ["Naïve façades, 中文!", "Théodore don't"]:
        assert theirs(text)["input_ids"] == uncased.pieces(text).tokens
