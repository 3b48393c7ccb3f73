"""A first look at the sources before hours are spent on them: what would make a corpus useless, said at once."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pretrain.config.data import DataConfig, FilesSource, Source
from pretrain.config.languages import has_rules
from pretrain.data.documents import describe, held_out_hash, sentence_splitter
from pretrain.data.files import list_files
from pretrain.data.sources import read_source
from pretrain.data.text import split_lines
from pretrain.errors import DataError

log = logging.getLogger(__name__)

CHARACTERS_LOOKED_AT = 4_000_000
MAX_CHARACTERS_PER_WORD = 100
"""Of a longer word WordPiece makes one [UNK]."""
MOST = 0.9
FEWEST_LINES = 20
"""Of fewer lines nothing is said: they may be anything."""

_SENTENCE_END = re.compile(r"""[.!?…。！？।॥؟۔։።]["'”’»)\]]*$""")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<[!?]")
# no white space, no punctuation, and no ideograph, each of which is a word by itself
_SEPARATE = r"\s!-/:-@\[-`{-~\u2010-\u205e\u3000-\u303f\u3400-\u9fff\U00020000-\U0003ffff"
_LONG_WORD = re.compile(rf"[^{_SEPARATE}]{{{MAX_CHARACTERS_PER_WORD + 1},}}")


@dataclass
class Look:
    """Counts over a source's first documents."""

    documents: int = 0
    one_sentence: int = 0
    """Documents, of those, of one sentence."""
    sentences: int = 0
    """Sentences, as the splitter cuts the lines, whether or not it is asked to."""
    characters: int = 0
    letters: bool = False
    long_words: int = 0
    long_characters: int = 0
    """Characters of the long words."""
    lines: int = 0
    """Lines that are not blank; of them:"""
    ended: int = 0
    """those that end as a sentence does,"""
    continued: int = 0
    """those that begin with a small letter,"""
    tagged: int = 0
    """those that hold a tag of XML or HTML,"""
    tabbed: int = 0
    """those with two tabs or more,"""
    objects: int = 0
    """those that are JSON objects, by their ends."""
    hashes: set[float] = field(default_factory=set)
    """Where the documents stand in the order in which they are held out."""
    complete: bool = False
    """Whether these are all of the source's documents."""

    def add(self, text: str, sentences: int, one_sentence: bool) -> None:
        """Counts one document."""
        self.documents += 1
        self.one_sentence += one_sentence
        self.sentences += sentences
        self.characters += len(text)
        for word in _LONG_WORD.findall(text):
            self.long_words += 1
            self.long_characters += len(word)
        for line in map(str.strip, split_lines(text)):
            if line:
                self.lines += 1
                self.letters = self.letters or any(map(str.isalpha, line))
                self.ended += bool(_SENTENCE_END.search(line))
                self.continued += line[0].islower()
                self.tagged += bool(_TAG.search(line))
                self.tabbed += line.count("\t") >= 2
                self.objects += line.startswith("{") and line.endswith("}")


def look_at(source: Source, language: str) -> Look:
    """The counts of a source's first documents, up to some megabytes of text."""
    split = sentence_splitter(language)
    look = Look()
    texts = read_source(source)
    for whole in texts:
        text = whole[:CHARACTERS_LOOKED_AT]
        if sentences := split(text, source.lines):
            cut = split(text, "paragraph") if source.lines == "sentence" else sentences
            look.add(text, len(cut), one_sentence=len(sentences) == 1)
            look.hashes.add(held_out_hash(whole))
            if look.characters >= CHARACTERS_LOOKED_AT:
                look.complete = next(texts, None) is None  # one document may be all there is
                return look
    look.complete = True
    return look


def survey(data: DataConfig) -> None:
    """Logs how many files each source has, and a warning for what is probably not meant.

    Raises DataError where there is no text, or nothing that could be held out.
    """
    if not has_rules(data.language):
        log.info(
            "data.language %s: the sentence splitter has no rules of its own for it; it takes those of a related "
            "language, else English's (where a line is a sentence already, `lines: sentence` needs none)",
            data.language,
        )
    looks: list[Look] = []
    for name, source in zip(data.source_names(), data.sources, strict=True):
        looks.append(_look_and_warn(name, source, data.language))
    for name, source in zip(data.held_out_names(), data.held_out_sources(), strict=True):
        _look_and_warn(name, source, data.language)
    if isinstance(data.held_out, float) and all(look.complete for look in looks):
        check_held_out(data.held_out, looks)


def _look_and_warn(name: str, source: Source, language: str) -> Look:
    if isinstance(source, FilesSource):
        files = len(list_files(source.files))
        log.info("source %s: %d %s", name, files, "file" if files == 1 else "files")
    look = look_at(source, language)
    if not look.documents:
        raise DataError(f"source {name} ({describe(source)}): no text in it")
    for problem in problems(look, source):
        log.warning("source %s: %s", name, problem)
    return look


def problems(look: Look, source: Source) -> list[str]:
    """What is probably not meant, a line each."""
    found = []
    if not look.letters:
        found.append("no letter in it")
    if look.long_words:
        found.append(
            f"{look.long_words:,} words longer than {MAX_CHARACTERS_PER_WORD} characters, "
            f"{look.long_characters / look.characters:.1%} of the text: WordPiece makes each of them [UNK]; "
            "is it text without spaces, or data that is no text?"
        )
    if look.documents > 1 and look.one_sentence > MOST * look.documents:
        found.append(
            f"{look.one_sentence:,} of {look.documents:,} documents are one sentence, which has no next one to learn "
            "from: put blank lines between documents, not between the sentences of one"
        )
    if source.kind not in ("python_docs", "conllu") and look.lines >= FEWEST_LINES:
        found += _of_lines(look, source)
    return found


def _of_lines(look: Look, source: Source) -> list[str]:
    """What lines are, where that is not what `lines` and `kind` say."""
    found = []
    if look.tagged > look.lines / 3:
        found.append(f"{look.tagged / look.lines:.0%} of its lines hold tags, as XML or HTML does (kind: xml)")
    if look.tabbed > look.lines / 2:
        found.append(
            f"{look.tabbed / look.lines:.0%} of its lines are columns separated by tabs (kind: conllu, or kind: tsv)"
        )
    if look.objects > look.lines / 2:
        found.append(f"{look.objects / look.lines:.0%} of its lines are JSON objects (kind: json)")
    if found:
        return found
    per_line = look.sentences / look.lines
    if source.lines == "paragraph" and look.lines > look.documents:
        if look.continued > look.lines / 3 and look.ended < look.lines / 2:
            found.append("most of its lines are pieces of sentences: if the text is hard-wrapped, say `lines: wrapped`")
        elif look.ended > MOST * look.lines and per_line < 1.05:
            found.append("nearly every line is one sentence: if all are, say `lines: sentence`, which cuts none")
    elif source.lines == "sentence" and per_line > 1.5:
        found.append(f"its lines hold {per_line:.1f} sentences each: if they are paragraphs, say `lines: paragraph`")
    return found


def check_held_out(share: float, looks: Sequence[Look]) -> None:
    """Raises DataError where a share of the documents is nothing, or all of a source; says what share would do."""
    if not share:
        return
    for look in looks:
        if max(look.hashes) < share:
            raise DataError(f"data.held_out is {share}: all of {look.documents} documents of a source; lower it")
    documents, hashes = sum(look.documents for look in looks), set().union(*(look.hashes for look in looks))
    if min(hashes) < share:
        return
    problem = f"data.held_out is {share}: none of {documents} documents"
    if len(hashes) == 1:
        raise DataError(
            f"{problem}, and no share of one can be: put blank lines between documents (there are none between its "
            f"{sum(look.lines for look in looks):,} lines), hold out another file (data.held_out=[{{kind: text, "
            "files: …}]), or give 0"
        )
    # no more digits than it takes to hold out one and leave one
    larger = (math.ceil(min(hashes) * 10**digits) / 10**digits for digits in range(2, 18))
    raised = next(value for value in larger if min(hashes) < value <= max(hashes))
    raise DataError(f"{problem}; raise it to {raised}, or give 0")
