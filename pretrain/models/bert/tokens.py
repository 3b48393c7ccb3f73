"""WordPiece: text as pieces of words (Schuster and Nakajima 2012; Devlin et al. 2018, §3).

What text says is never a special token: `[MASK]` or `[SEP]` written in a document is cut into pieces like any other
word, in training and for vectors alike. (transformers, loading the same files, takes it for the special token.)
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as PieceTokenizer

from pretrain.config.models import WordPieceConfig
from pretrain.errors import DataError, ExportError
from pretrain.models.family import Encoded, Pieces

PADDING, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PADDING, UNKNOWN, CLS, SEP, MASK)
"""The special tokens; in a vocabulary learned here their ids are 0 to 4."""
CONTINUATION = "##"
"""What marks a piece that does not begin a word."""
MAX_CHARACTERS_PER_WORD = 100
"""A longer word is [UNK], as in every published BERT."""


class WordPieceTokenizer:
    """A WordPiece vocabulary with BERT's way of cleaning and cutting text.

    `max_length`, where a published folder has it, is the most pieces of a text, special tokens included. `words_only`,
    where text would have to be cut by a program that is not here, is the line that says so: such a tokenizer takes
    words that are cut already, and raises ExportError for raw text.
    """

    def __init__(self, pieces: PieceTokenizer, *, max_length: int | None = None, words_only: str | None = None) -> None:
        # A published tokenizer.json may cut or pad to a length of its own, and its special tokens be read from text.
        pieces.no_truncation()
        pieces.no_padding()
        pieces.encode_special_tokens = True
        self._pieces = pieces
        self.max_length = max_length
        self._words_only = words_only
        self.vocabulary = vocabulary = pieces.get_vocab()
        self.vocabulary_size: int = max(vocabulary.values()) + 1
        self.padding_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (vocabulary[t] for t in SPECIAL)
        self._characters_of = np.zeros(self.vocabulary_size, dtype=np.int64)
        for piece, index in vocabulary.items():
            self._characters_of[index] = len(piece.removeprefix(CONTINUATION))
        self._characters_of[[vocabulary[token] for token in SPECIAL]] = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by itself, `tokenizers.Tokenizer` forgets `encode_special_tokens`.
        make = partial(WordPieceTokenizer, max_length=self.max_length, words_only=self._words_only)
        return make, (self._pieces,)

    @property
    def options(self) -> dict[str, bool]:
        """The options of `WordPieceConfig` that say how text is cleaned."""
        self._need_no_cutter()
        normalizer = self._pieces.normalizer
        strip = normalizer.strip_accents
        return {"lowercase": normalizer.lowercase, "strip_accents": normalizer.lowercase if strip is None else strip}

    @property
    def sentence_end(self) -> int | None:
        """None: no id is predicted at the end of every sentence."""
        return None

    @property
    def ordinary_ids(self) -> NDArray[np.int64]:
        """The ids that are not special tokens."""
        special = (self.padding_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id)
        return np.setdiff1d(np.arange(self.vocabulary_size), special)

    @property
    def continuations(self) -> NDArray[np.bool_]:
        """[vocabulary]: whether the piece goes on with a word rather than beginning one."""
        continues = np.zeros(self.vocabulary_size, dtype=bool)
        continues[[index for piece, index in self.vocabulary.items() if piece.startswith(CONTINUATION)]] = True
        return continues

    def encode(self, sentences: Sequence[str]) -> Encoded:
        """Sentences as ids, without special tokens; a word that the pieces cannot spell is one [UNK]."""
        self._need_no_cutter()
        encodings = self._pieces.encode_batch(list(sentences), add_special_tokens=False)
        tokens = [encoding.ids for encoding in encodings]
        ids = np.fromiter(chain.from_iterable(tokens), dtype=np.int64)
        characters = np.array([sum(map(len, sentence.split())) for sentence in sentences], dtype=np.int64)
        ends = np.cumsum([len(row) for row in tokens], dtype=np.int64)
        spelt = np.diff(np.concatenate([[0], self._characters_of[ids].cumsum()])[ends], prepend=0)
        # Pieces of as many characters as the sentence has leave none out; only the other sentences need the offsets.
        partial: list[int] = np.flatnonzero(spelt != characters).tolist()
        return Encoded(
            tokens=tokens,
            ids=ids,
            words=sum(map(_count_words, encodings)),
            unknown_words=int((ids == self.unknown_id).sum()),
            characters=int(characters.sum()),
            characters_left_out=sum(self._left_out(sentences[s], encodings[s]) for s in partial),
        )

    def _need_no_cutter(self) -> None:
        if self._words_only is not None:
            raise ExportError(self._words_only)

    def _left_out(self, sentence: str, encoding: Encoding) -> int:
        """Characters, not white space, that no piece other than [UNK] stands for."""
        seen = bytearray(len(sentence))
        removed = 0
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if index != self.unknown_id:
                seen[start:stop] = b"\1" * (stop - start)
                # A piece shorter than its span: an accent or an invisible character within it was removed.
                removed += max(0, stop - start - int(self._characters_of[index]))
        unseen = (character for character, covered in zip(sentence, seen, strict=True) if not covered)
        return removed + sum(len(character.strip()) for character in unseen)

    def pieces(self, text: str | Sequence[str]) -> Pieces:
        """[CLS], the pieces, [SEP].

        The words of a raw text are what lies between white space and punctuation, as they stand in it. Words that are
        given stay whole: the pieces of `don't` are one word's, and a word of nothing visible has no piece.
        """
        if isinstance(text, str):
            self._need_no_cutter()
            encoding = self._pieces.encode(text)
            words = [text[start:stop] for start, stop in _word_spans(encoding)]
        else:
            words = list(text)
            encoding = self._pieces.encode(words, is_pretokenized=True)
        word_of = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
        return Pieces(tokens=encoding.ids, word_of=word_of, words=words)

    def save(self, folder: Path, max_positions: int | None = None) -> None:
        """Writes `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`, which transformers reads.

        `max_positions` is the length, in tokens, that transformers then cuts texts to where it is asked to.
        """
        self._need_no_cutter()
        vocabulary = sorted(self._pieces.get_vocab().items(), key=lambda item: item[1])
        lines = "".join(f"{piece}\n" for piece, _ in vocabulary)
        (folder / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")
        (folder / "tokenizer.json").write_text(self._pieces.to_str(pretty=True), encoding="utf-8", newline="\n")
        normalizer = self._pieces.normalizer
        options = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer.lowercase,
            "strip_accents": normalizer.strip_accents,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
            "pad_token": PADDING,
            "unk_token": UNKNOWN,
            "cls_token": CLS,
            "sep_token": SEP,
            "mask_token": MASK,
        }
        if max_positions is not None:
            options["model_max_length"] = max_positions
        (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def learn_tokenizer(texts: Callable[[], Iterable[str]], config: WordPieceConfig) -> WordPieceTokenizer:
    """A vocabulary of at most `vocabulary_size` pieces, the same for the same texts, whatever the run.

    Characters take up at most half of it, the most frequent first; a word with any other character is [UNK].
    Raises DataError where the texts hold no character.
    """
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=config.strip_accents, lowercase=config.lowercase
    )
    alphabet, spellings = _alphabet(texts(), normalizer, (config.vocabulary_size - len(SPECIAL)) // 2)
    if not alphabet:
        raise DataError("the training text holds no character to learn a WordPiece vocabulary from: is it empty?")
    # The trainer numbers what it meets in the order of a hash table seeded afresh in every process, so that ties
    # between merges break differently; given every character first, in a fixed order, it meets nothing by itself.
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.minimum_count,
        special_tokens=[*SPECIAL, *spellings],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    learner = PieceTokenizer(models.WordPiece(unk_token=UNKNOWN))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(_without_long_words(texts(), normalizer), trainer)
    return WordPieceTokenizer(
        bert_pieces(
            learner.get_vocab(),
            lowercase=config.lowercase,
            strip_accents=config.strip_accents,
            handle_chinese_chars=True,
        )
    )


def _without_long_words(texts: Iterable[str], normalizer: normalizers.BertNormalizer) -> Iterator[str]:
    """The texts without words that are [UNK]: no piece of them is used, and learning is quadratic in their length."""
    cut = pre_tokenizers.BertPreTokenizer()
    for text in texts:
        if max(map(len, text.split()), default=0) > MAX_CHARACTERS_PER_WORD:
            words = cut.pre_tokenize_str(normalizer.normalize_str(text))
            text = " ".join(word for word, _ in words if len(word) <= MAX_CHARACTERS_PER_WORD)
        yield text


def _alphabet(texts: Iterable[str], normalizer: normalizers.BertNormalizer, most: int) -> tuple[list[str], list[str]]:
    """The characters to keep, by code point, and their pieces, `most` at most: bare, and after the start of a word."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        # The normalizer works character by character, so it need not see the text.
        for normal in normalizer.normalize_str(character).replace(" ", ""):
            counts[normal] += count
    kept: list[str] = []
    continued: list[str] = []
    cut = pre_tokenizers.BertPreTokenizer()
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        # Punctuation and Chinese characters are words by themselves: they never continue one.
        whole = len(cut.pre_tokenize_str(normalizer.normalize_str(f"a{character}a"))) > 1
        if len(kept) + len(continued) + (1 if whole else 2) > most:
            break
        kept.append(character)
        if not whole:
            continued.append(character)
    kept.sort()
    return kept, kept + [CONTINUATION + character for character in sorted(continued)]


def bert_pieces(
    vocabulary: dict[str, int], *, lowercase: bool, strip_accents: bool | None, handle_chinese_chars: bool
) -> PieceTokenizer:
    """BERT's tokenizer around a vocabulary; `strip_accents` None means: where text is lower-cased."""
    pieces = PieceTokenizer(
        models.WordPiece(
            vocabulary,
            unk_token=UNKNOWN,
            continuing_subword_prefix=CONTINUATION,
            max_input_chars_per_word=MAX_CHARACTERS_PER_WORD,
        )
    )
    pieces.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=handle_chinese_chars, strip_accents=strip_accents, lowercase=lowercase
    )
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing((SEP, vocabulary[SEP]), (CLS, vocabulary[CLS]))
    pieces.decoder = decoders.WordPiece(prefix=CONTINUATION)
    pieces.add_special_tokens(list(SPECIAL))
    return pieces


def _count_words(encoding: Encoding) -> int:
    """Words of a text; their numbers begin at 0, and asking for the last piece's is cheaper than listing all."""
    last = encoding.token_to_word(len(encoding) - 1) if len(encoding) else None
    return 0 if last is None else last + 1


def _word_spans(encoding: Encoding) -> list[tuple[int, int]]:
    """Where each word stands in the text: from its first piece's first character to its last one's last."""
    spans: list[tuple[int, int]] = []
    for word, (start, stop) in zip(encoding.word_ids, encoding.offsets, strict=True):
        if word == len(spans):
            spans.append((start, stop))
        elif word is not None:
            spans[word] = (spans[word][0], stop)
    return spans
