"""CoNLL-U and XML as documents of plain text."""

import gzip
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from pretrain.config.data import AnyKind
from pretrain.data.sources import read_source
from pretrain.errors import DataError


def texts(path: Path, content: str | bytes, **values: object) -> list[str]:
    """The documents of a file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_source(TypeAdapter(AnyKind).validate_python({"files": str(path)} | values)))


def problem(path: Path, content: str | bytes, **values: object) -> str:
    with pytest.raises(DataError) as caught:
        texts(path, content, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), path.name)


def conllu(*rows: str) -> str:
    """Rows of number, form and MISC as CoNLL-U; what begins with # as it is."""
    lines = []
    for row in rows:
        number, form, misc = (row.split() + ["_"] * 3)[:3]
        lines.append(row if row.startswith("#") or not row else "\t".join([number, form, *["_"] * 7, misc]))
    return "".join(f"{line}\n" for line in lines)


WITHOUT_TEXT = conllu(
    "# sent_id = 1",
    "1-2 Vámonos SpaceAfter=No",
    "1 Vamos",
    "2 nos",
    "2.1 empty",
    "3 , Lang=es|SpaceAfter=No",
    "4 ya",
    "",
    "1 Sí",
    "",
)


def test_conllu_is_sentences_in_documents(tmp_path: Path) -> None:
    content = (
        WITHOUT_TEXT
        + conllu("# newdoc id = b", "# sent_id = 3", "# text = It's  here .", "1 It SpaceAfter=No", "2 's", "")
        + conllu("# sent_id = 4", "# newdoc", "1 A", "2-3 b SpaceAfter=No", "2 x", "3 y", "4 .")
    )
    assert texts(tmp_path / "a.conllu", content, kind="conllu") == ["Vámonos,ya\nSí", "It's  here .", "A b."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# text = a\n1\ta\n", ""),
        ("1\ta\n", "line 1: not CoNLL-U, whose lines have 10 columns separated by tabs"),
        (conllu("1 a") + "plain text\n", "line 2: not CoNLL-U, whose lines have 10 columns separated by tabs"),
        (conllu("one a"), "(here: 10, first 'one')"),
    ],
)
def test_what_is_no_conllu_is_told(content: str, message: str, tmp_path: Path) -> None:
    if not message:  # the text is given: the words are not needed
        assert texts(tmp_path / "a.conllu", content, kind="conllu") == ["a"]
    else:
        assert message in problem(tmp_path / "a.conllu", content, kind="conllu")


def test_a_treebank(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    content = gzip.decompress(shared_data("ud_english_ewt/en_ewt-ud-dev.conllu.gz").read_bytes())
    documents = texts(tmp_path / "a.conllu", content, kind="conllu")
    assert sum(text.count("\n") + 1 for text in documents) == 2001
    assert len(documents) == content.count(b"# newdoc")
    # what the words say is what `# text` says
    without = b"".join(line for line in content.splitlines(keepends=True) if not line.startswith(b"# text"))
    differing = [
        (ours, theirs)
        for ours, theirs in zip(texts(tmp_path / "a.conllu", without, kind="conllu"), documents, strict=True)
        if ours != theirs
    ]
    assert not differing


TEI = """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE TEI SYSTEM "tei.dtd">
<TEI xmlns="http://www.tei-c.org/ns/1.0">
 <teiHeader><title>No text</title><p>nor this</p></teiHeader>
 <text><head>Title</head>
  <p>One &amp; <hi>two</hi>
     three.<lb/>Four<note><p>five</p></note></p> between
  <p>si<lb break="no"/>x&nbsp;seven</p><p/></text>
 <text><p>Ärger</p></text>
</TEI>
"""


def test_tei_by_paragraphs(tmp_path: Path) -> None:
    found = texts(tmp_path / "a.xml", TEI.encode("latin-1"), kind="xml", document="text", paragraph="p")
    assert found == ["One & two three. Four five\nsix seven\n", "Ärger"]
    utf8 = TEI.encode()  # which it does not declare
    assert texts(tmp_path / "b.xml", utf8, kind="xml", paragraph="p", encoding="utf-8")[1] == "Ärger"
    packed = gzip.compress(utf8)
    assert texts(tmp_path / "c.xml.gz", packed, kind="xml", paragraph="p", encoding="utf-8")[1] == "Ärger"


def test_xml_without_paragraphs_keeps_its_lines(tmp_path: Path) -> None:
    content = "<docs><doc id='1'>One.\nTwo <b>2</b>.\n<doc>Three.</doc></doc>no<doc><![CDATA[<x>]]></doc><doc/></docs>"
    found = texts(tmp_path / "a.xml", content, kind="xml", document="doc")
    assert found == ["One.\nTwo 2.\nThree.", "<x>", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<a><text>x</a>", "a.xml, line 1: not XML: mismatched tag"),
        ("<a>\n<text>x", "a.xml, line 2: not XML: no element found"),
        ("plain text", "a.xml, line 1: not XML: syntax error"),
        ("<text>&sunrise;</text>", "a.xml, line 1: the entity &sunrise; is not known"),
        ("<a><b/><ns:c xmlns:ns='x'/></a>", "a.xml: no element 'text'; there are a, b, c"),
        ("PK\x03\x04", "a.xml: not text but a zip archive"),
    ],
)
def test_what_is_no_such_xml_is_told(content: str, message: str, tmp_path: Path) -> None:
    assert problem(tmp_path / "a.xml", content, kind="xml").startswith(message)


def test_declared_entities_are_refused(tmp_path: Path) -> None:
    """A few lines of them can stand for gigabytes, or for any file of the reader's."""
    (tmp_path / "secret").write_text("secret")
    for declared in ('"lol"', f'SYSTEM "file://{tmp_path}/secret"'):
        content = f"<!DOCTYPE text [\n<!ENTITY a {declared}>\n]>\n<text>&a;</text>"
        assert problem(tmp_path / "a.xml", content, kind="xml").startswith("a.xml, line 2: it declares the entity 'a'")
    included = f'<!DOCTYPE text [<!ENTITY % e SYSTEM "file://{tmp_path}/secret"> %e;]><text>a</text>'
    assert "it declares the entity 'e'" in problem(tmp_path / "a.xml", included, kind="xml")


def test_xml_is_read_as_a_stream(tmp_path: Path) -> None:
    """The first of many documents comes before the broken end is read; deep nesting is no recursion."""
    path = tmp_path / "a.xml"
    path.write_text("<all>" + "<text>one two.</text>" * 100_000 + "<broken")
    started = time.perf_counter()
    stream = read_source(TypeAdapter(AnyKind).validate_python({"kind": "xml", "files": str(path)}))
    assert next(stream) == "one two."
    assert time.perf_counter() - started < 1
    with pytest.raises(DataError, match="not XML: unclosed token"):
        list(stream)
    assert texts(path, "<text>" + "<b>" * 50_000 + "deep" + "</b>" * 50_000 + "</text>", kind="xml") == ["deep"]


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("<head>Title</head><p>One para.</p>", "Title One para."),
        ("<item>A</item><item>B</item>", "A B"),
        ("<s><w>Hello</w><w>world</w></s>", "Hello world"),
        ("un<hi>believ</hi>able", "unbelievable"),
    ],
)
def test_text_of_neighbouring_elements_is_apart(inside: str, expected: str, tmp_path: Path) -> None:
    (found,) = texts(tmp_path / "a.xml", f"<doc>{inside}</doc>", kind="xml", document="doc")
    assert " ".join(found.split()) == expected


def test_an_xml_file_that_lacks_what_is_asked_for_is_named(tmp_path: Path) -> None:
    said = problem(tmp_path / "a.xml", "<doc><q>One.</q></doc>", kind="xml", document="doc", paragraph="p")
    assert said == "a.xml: no element 'p'; there are doc, q"
    for declared in ("Shift_JIS", "foo-8"):
        said = problem(
            tmp_path / "a.xml", f'<?xml version="1.0" encoding="{declared}"?><doc/>', kind="xml", document="doc"
        )
        assert said.startswith("a.xml: its declared encoding cannot be read") and said.endswith("source's `encoding`")
