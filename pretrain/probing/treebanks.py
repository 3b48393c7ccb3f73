"""Treebanks in CoNLL-U: words with parts of speech, heads and relations."""

from pathlib import Path

from pretrain.data.files import open_members
from pretrain.data.markup import ConlluRow, begins_document, conllu_row, conllu_sentences
from pretrain.errors import DataError
from pretrain.probing.sentences import Sentence

FORM, UPOS, HEAD, RELATION = 1, 3, 6, 7


def read_words(path: Path) -> list[list[str]]:
    """The words of each sentence of a CoNLL-U file; raises DataError, with file and line, for what is none."""
    return [_words(rows) for _, rows, _ in _sentences(path)]


def read_tagged(path: Path) -> list[Sentence]:
    """The sentences of a CoNLL-U file with their UPOS; raises DataError where no word has one."""
    sentences = [Sentence(_words(rows), _column(rows, UPOS), document) for document, rows, _ in _sentences(path)]
    if all(tag == "_" for sentence in sentences for tag in sentence.tags):
        raise DataError(f"{path}: no word has a part of speech (column {UPOS + 1} of CoNLL-U, UPOS)")
    return sentences


def read_parsed(path: Path) -> list[Sentence]:
    """The sentences of a CoNLL-U file with heads and relations; raises DataError for a head that is no word."""
    return [
        Sentence(_words(rows), _column(rows, UPOS), document, _heads(rows, lines, path), _column(rows, RELATION))
        for document, rows, lines in _sentences(path)
    ]


def _sentences(path: Path) -> list[tuple[int | None, list[ConlluRow], list[int]]]:
    """Of each sentence the document, the words (neither ranges, such as 2-3, nor empty nodes), and their lines."""
    found: list[tuple[int | None, list[ConlluRow], list[int]]] = []
    document = None
    for name, file in open_members(str(path)):
        for sentence in conllu_sentences(file, name):
            if begins_document(sentence):
                document = 0 if document is None else document + 1
            numbered = [(line, conllu_row(text, line, name)) for line, text in sentence if not text.startswith("#")]
            words = [(line, row) for line, row in numbered if row.is_word]
            for index, (line, row) in enumerate(words, 1):
                if row.first != index:
                    raise DataError(f"{name}, line {line}: word {row.first} where word {index} was to come")
            if words:
                found.append((document, [row for _, row in words], [line for line, _ in words]))
    if any(document is None for document, *_ in found):  # a file that names its documents begins with one
        return [(None, rows, lines) for _, rows, lines in found]
    return found


def _words(rows: list[ConlluRow]) -> list[str]:
    return _column(rows, FORM)


def _column(rows: list[ConlluRow], column: int) -> list[str]:
    return [row.columns[column] for row in rows]


def _heads(rows: list[ConlluRow], lines: list[int], path: Path) -> list[int]:
    """The index of each word's head, its own for a root (as Tenney et al. 2019 took it)."""
    heads = []
    for index, (row, line) in enumerate(zip(rows, lines, strict=True)):
        text = row.columns[HEAD]
        if not text.isdecimal() or int(text) > len(rows):
            raise DataError(f"{path}, line {line}: head {text!r} is none of the sentence's {len(rows)} words, nor 0")
        heads.append(int(text) - 1 if int(text) else index)
    return heads
