"""Words: how text is cut into them, which of them the softmax predicts, and how one is spelled in character ids."""

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pretrain.config.models import WordsConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import DataError
from pretrain.models.family import Encoded, Pieces, Tokenizer

SENTENCE_BEGIN, SENTENCE_END, UNKNOWN = "<S>", "</S>", "<UNK>"
SPECIAL_WORDS = (SENTENCE_BEGIN, SENTENCE_END, UNKNOWN)

# Character ids: 0-255 are the bytes of UTF-8, then come marks. Readers of the published format may count from 1.
BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, WORD_PADDING = 256, 257, 258, 259, 260
NUM_CHARACTERS = 261

VOCABULARY_FILE = "vocabulary.txt"
# Not "…options.json": that ending is what marks a model folder.
RULE_FILE = "words.json"

_VISIBLE_BYTES = 48  # 50 ids, as in every published model, less the marks of begin and end


def character_ids(words: Sequence[str], max_characters: int) -> NDArray[np.int16]:
    """Spells words as int16 [words, max_characters]: begin mark, bytes of UTF-8, end mark, padding.

    A word is cut to `max_characters - 2` bytes, even within a character. `<S>` and `</S>` are spelled by a mark each.
    """
    encoded = [word.encode("utf-8", "ignore")[: max_characters - 2] for word in words]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    rows = np.full((len(words), max_characters), WORD_PADDING, np.int16)
    rows[:, 0] = BEGIN_WORD
    rows[np.arange(len(words)), lengths + 1] = END_WORD
    rows[:, 1:-1][np.arange(max_characters - 2) < lengths[:, None]] = np.frombuffer(b"".join(encoded), np.uint8)
    for boundary, mark in ((SENTENCE_BEGIN, BEGIN_SENTENCE), (SENTENCE_END, END_SENTENCE)):
        chosen = np.fromiter((word == boundary for word in words), np.bool_, len(words))
        rows[chosen, 1:] = WORD_PADDING
        rows[chosen, 1:3] = mark, END_WORD
    return rows


def trim_characters(rows: NDArray[np.int16], widest_filter: int) -> NDArray[np.int16]:
    """Drops the columns of [words, max_characters] that cannot change any maximum over positions.

    Behind the longest word all windows of a filter hold padding only and are equal, so one of them is enough:
    `longest word with its marks + widest_filter` columns keep one for every filter that had one.
    """
    longest = int((rows == END_WORD).argmax(axis=1).max()) + 1
    return rows[:, : longest + widest_filter]


@functools.cache
def _unicode_words() -> re.Pattern[str]:
    """Words and single other characters.

    A word is letters and digits with their combining marks (which Python's `\\w` leaves out, cutting Devanagari within
    words), and within it apostrophes, zero-width joiners, soft hyphens, and points or commas between digits.
    """
    planes = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))  # all combining marks of Unicode lie here
    marks = "".join(c for plane in planes for c in map(chr, plane) if unicodedata.category(c)[0] == "M")
    letters = rf"(?:[^\W_]+[{marks}]*)+"
    inner = r"(?:['\u2019\u00ad\u200c\u200d]|(?<=\d)[.,](?=\d))"
    return re.compile(rf"{letters}(?:{inner}{letters})*|\S[{marks}]*")


_PATTERNS: dict[str, Callable[[], re.Pattern[str]]] = {
    "whitespace": lambda: re.compile(r"\S+"),
    "unicode": _unicode_words,
}


class WordTokenizer:
    """Whole words. A vocabulary says which of them have ids; words without one are still read by their characters.

    `vocabulary` lists words by id and holds `<S>`, `</S>` and `<UNK>`; `words` is the rule that cuts text
    (`whitespace` or `unicode`, see `WordsConfig`).
    """

    def __init__(self, vocabulary: Sequence[str], *, words: str = "whitespace", lowercase: bool = False) -> None:
        if words not in _PATTERNS:
            raise ValueError(f"words is {words!r}, not one of {', '.join(map(repr, _PATTERNS))}")
        self.vocabulary = tuple(vocabulary)
        self.words = words
        self.lowercase = lowercase
        self._pattern = _PATTERNS[words]()
        self._ids = {word: number for number, word in enumerate(self.vocabulary)}
        missing = [word for word in SPECIAL_WORDS if word not in self._ids]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self._unknown = self._ids[UNKNOWN]

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return len(self.vocabulary)

    @property
    def options(self) -> dict[str, str | bool]:
        """The options of `WordsConfig` that say how text is cut."""
        return {"word_split": self.words, "lowercase": self.lowercase}

    @property
    def sentence_begin(self) -> int:
        """The id of `<S>`, which the backward model predicts at the end of every sentence."""
        return self._ids[SENTENCE_BEGIN]

    @property
    def sentence_end(self) -> int:
        """The id of `</S>`, which the forward model predicts at the end of every sentence."""
        return self._ids[SENTENCE_END]

    def ids(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Vocabulary ids of words, int64 [words]; `<UNK>`'s for those that have none."""
        return np.fromiter((self._ids.get(word, self._unknown) for word in words), np.int64, len(words))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the words of a text begin and end, in characters."""
        return [match.span() for match in self._pattern.finditer(text)]

    def split(self, text: str) -> list[str]:
        """The words of a text as the model reads them."""
        words = self._pattern.findall(text)
        return [word.lower() for word in words] if self.lowercase else words

    def encode(self, sentences: Sequence[str]) -> Encoded:
        """Sentences as words, and the figures of `Encoded`.

        Characters that a word has beyond 48 bytes (`max_characters: 50`) count as left out, whatever the model's own
        limit is: a tokenizer is made before there is a model.
        """
        tokens = [self.split(sentence) for sentence in sentences]
        words = [word for sentence in tokens for word in sentence]
        ids = self.ids(words)
        return Encoded(
            tokens=tokens,
            ids=ids,
            words=len(words),
            unknown_words=int((ids == self._unknown).sum()),
            characters=sum(map(len, words)),
            characters_left_out=sum(map(_characters_left_out, words)),
        )

    def pieces(self, text: str | Sequence[str]) -> Pieces:
        """One text's words, each a piece of its own; a list of words is taken as it is."""
        words = [text[start:stop] for start, stop in self.spans(text)] if isinstance(text, str) else list(text)
        tokens = [word.lower() for word in words] if self.lowercase else words
        return Pieces(tokens=tokens, word_of=np.arange(len(words), dtype=np.int64), words=words)

    def save_vocabulary(self, path: Path) -> None:
        """Writes one word a line, in the order of ids."""
        path.write_bytes("".join(f"{word}\n" for word in self.vocabulary).encode())

    def save(self, folder: Path) -> None:
        """Writes `vocabulary.txt` and `words.json` (the rule that cuts text) into `folder`."""
        self.save_vocabulary(folder / VOCABULARY_FILE)
        rule = {"word_split": self.words, "lowercase": self.lowercase}
        (folder / RULE_FILE).write_text(json.dumps(rule) + "\n", encoding="utf-8")


def _characters_left_out(word: str) -> int:
    if len(word) * 4 <= _VISIBLE_BYTES:  # no character has more than four bytes
        return 0
    return len(word) - len(word.encode("utf-8", "ignore")[:_VISIBLE_BYTES].decode("utf-8", "ignore"))


def learn(texts: Callable[[], Iterable[str]], config: WordsConfig) -> WordTokenizer:
    """The words of `config.vocabulary`; else the most frequent ones of the texts, equally frequent ones by code points.

    Raises DataError where no word is left. Sampled softmax needs this order: it draws small ids more often.
    """
    if config.vocabulary is not None:
        return WordTokenizer(read_vocabulary(config.vocabulary), words=config.word_split, lowercase=config.lowercase)
    tokenizer = WordTokenizer(SPECIAL_WORDS, words=config.word_split, lowercase=config.lowercase)
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(tokenizer.split(text))
    for word in SPECIAL_WORDS:
        counts.pop(word, None)
    frequent = [word for word, count in counts.items() if count >= config.minimum_count]
    frequent.sort(key=lambda word: (-counts[word], word))
    kept = frequent[: max(0, config.vocabulary_size - len(SPECIAL_WORDS))]
    if not kept:
        raise DataError(
            f"no word for a vocabulary: the text has {len(counts)} distinct words, {len(frequent)} of them seen "
            f"tokenizer.minimum_count ({config.minimum_count}) times, and tokenizer.vocabulary_size "
            f"({config.vocabulary_size}) includes {len(SPECIAL_WORDS)} special words"
        )
    return WordTokenizer((*SPECIAL_WORDS, *kept), words=config.word_split, lowercase=config.lowercase)


def order_problem(tokenizer: WordTokenizer, counts: NDArray[np.int64]) -> str | None:
    """Why a vocabulary's words are in no order of frequency, in a line; None where they are, as far as it matters.

    `counts` is int [vocabulary], how often each id occurs in the training text. Sampled softmax takes the order for
    the frequencies, so the first tenth of the words must cover half as much text as the most frequent tenth does.
    """
    words = np.delete(counts, tokenizer.ids(SPECIAL_WORDS))
    tenth = max(1, len(words) // 10)
    first, most = (part.sum() / counts.sum() for part in (words[:tenth], np.sort(words)[::-1][:tenth]))
    if first >= most / 2:
        return None
    return (
        f"the first tenth of the words covers {first:.1%} of the training text, the most frequent tenth {most:.1%}: "
        "sampled softmax needs words in the order of their frequency: sort them, or set objective.softmax to full"
    )


def read_vocabulary(path: Path) -> list[str]:
    """Words by id: one a line, UTF-8, without lines `!!!MAXTERMID`, which take no id (as in the 1B-word vocabulary).

    Raises DataError naming the file, and the line where one is not UTF-8 or repeats a word.
    """
    line_of: dict[str, int] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        try:
            word = line.rstrip(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
        if word == "!!!MAXTERMID":
            continue
        if word in line_of:
            raise DataError(f"{path}, line {number}: {word!r} is already on line {line_of[word]}")
        line_of[word] = number
    missing = [word for word in SPECIAL_WORDS if word not in line_of]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}, which a vocabulary of words must hold")
    return list(line_of)


def load(folder: Path) -> WordTokenizer | None:
    """The tokenizer that `save` wrote into `folder`, or None; raises DataError where it is damaged."""
    rule_path, vocabulary_path = folder / RULE_FILE, folder / VOCABULARY_FILE
    if not rule_path.exists():
        return None
    if not vocabulary_path.exists():
        raise DataError(f"{folder} holds {RULE_FILE} but not {VOCABULARY_FILE}")
    try:
        rule = WordsConfig.model_validate(json.loads(rule_path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{rule_path} is not a rule for cutting words: {' '.join(str(error).split())}") from error
    return WordTokenizer(read_vocabulary(vocabulary_path), words=rule.word_split, lowercase=rule.lowercase)


def vocabulary_problem(config: ElmoObjectiveConfig, tokenizer: Tokenizer, counts: NDArray[np.int64]) -> str | None:
    """What is wrong with the vocabulary's order, where words are sampled by it; `counts` as `order_problem`."""
    return order_problem(cast(WordTokenizer, tokenizer), counts) if config.softmax == "sampled" else None
