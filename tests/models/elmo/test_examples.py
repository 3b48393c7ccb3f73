"""Windows: which positions, in which order, spelled how."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.data.stream import digest
from pretrain.models.elmo.examples import ElmoExampleMaker, ElmoExamples
from pretrain.models.elmo.layers import TokenEncoder
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer, character_ids, trim_characters

RNG = np.random.default_rng(0)


def make_block(*sentences: str) -> Block:
    words = [word for sentence in sentences for word in sentence.split()]
    distinct = sorted(set(words))
    return Block(
        tokens=np.array([distinct.index(word) for word in words], np.int32),
        sentence_starts=np.cumsum([0, *(len(sentence.split()) for sentence in sentences)]),
        document_starts=np.array([0, len(sentences)]),
        document_numbers=np.array([0]),
        words=tuple(distinct),
    )


def spoken(characters: NDArray[np.integer]) -> str:
    """Words of [T, C], `<` and `>` standing for the boundaries."""
    return "".join({256: "<", 257: ">"}.get(row[1], chr(row[1] % 256)) for row in characters.tolist())


@pytest.fixture
def objective(objective_config: ElmoObjectiveConfig) -> ElmoObjectiveConfig:
    return objective_config


def changed(objective: ElmoObjectiveConfig, **options: object) -> ElmoObjectiveConfig:
    """The objective with other options."""
    return objective.model_copy(update=options)


def read(arrays: Arrays, tokenizer: WordTokenizer) -> list[tuple[str, str, str, str]]:
    """Per example: forward inputs and targets, backward inputs and targets; `_` where there is no loss."""
    letters = [{"<S>": "<", "</S>": ">"}.get(word, word[:1]) for word in tokenizer.vocabulary]
    names = ("forward_characters", "forward_targets", "backward_characters", "backward_targets")
    return [
        (
            spoken(f),
            "".join("_" if i < 0 else letters[i] for i in ft),
            spoken(b),
            "".join("_" if i < 0 else letters[i] for i in bt),
        )
        for f, ft, b, bt in zip(*(arrays[name] for name in names), strict=True)
    ]


@pytest.mark.parametrize(
    ("unroll_length", "rows", "pad", "expected"),
    [
        # forward: <abc<d<ef -> abc>d>ef>      backward: >fe>d>cba -> fe<d<cba<
        (9, 1, False, [("<abc<d<ef", "abc>d>ef>", ">fe>d>cba", "fe<d<cba<")]),
        (4, 2, False, [("<abc", "abc>", ">cba", "cba<"), ("<d<e", "d>ef", "fe>d", "e<d<")]),
        (
            2,
            2,
            False,
            [
                ("<a", "ab", ">c", "cb"),  # window 0 of row 0
                ("<d", "d>", "fe", "e<"),  # window 0 of row 1
                ("bc", "c>", "ba", "a<"),
                ("<e", "ef", ">d", "d<"),
            ],
        ),
        (
            3,
            2,
            True,
            [
                ("<ab", "abc", "d>c", "<cb"),
                ("d<e", ">ef", ">fe", "fe<"),
                ("c<<", ">d_", "ba>", "a<_"),
                ("f<<", ">__", ">>>", "d__"),
            ],
        ),
        (5, 2, False, []),
    ],
)
def test_packing(
    config: ElmoConfig,
    objective: ElmoObjectiveConfig,
    tokenizer: WordTokenizer,
    unroll_length: int,
    rows: int,
    pad: bool,
    expected: list[tuple[str, str, str, str]],
) -> None:
    maker = ElmoExampleMaker(config, changed(objective, unroll_length=unroll_length), tokenizer, rows)
    examples = maker.make(make_block("a b c", "d", "e f"), RNG, pad=pad)
    assert len(examples) == len(expected)
    assert read(examples.take(0, len(examples)), tokenizer) == expected


@pytest.mark.parametrize(
    ("unroll_length", "rows", "expected"),
    [
        (
            3,
            2,
            [
                ("<ab", "abc", ">cb", "cba", 1),  # window 0 of row 0: the first sentence
                ("<d<", "d>_", ">d>", "d<_", 1),  # window 0 of row 1: the second
                ("c<<", ">__", "a>>", "<__", 0),
                ("<ef", "ef>", ">fe", "fe<", 1),
            ],
        ),
        (
            4,
            1,
            [
                ("<abc", "abc>", ">cba", "cba<", 1),
                ("<d<<", "d>__", ">d>>", "d<__", 1),
                ("<ef<", "ef>_", ">fe>", "fe<_", 1),
            ],
        ),
    ],
)
def test_every_sentence_by_itself(
    config: ElmoConfig,
    objective: ElmoObjectiveConfig,
    tokenizer: WordTokenizer,
    unroll_length: int,
    rows: int,
    expected: list[tuple[str, str, str, str, int]],
) -> None:
    objective = changed(objective, unroll_length=unroll_length)
    maker = ElmoExampleMaker(config, objective, tokenizer, rows, reset=True)
    arrays = maker.make(make_block("a b c", "d", "e f"), RNG, pad=True).take(0, 100)
    begins = arrays["begins"].tolist()
    assert [(*each, first) for each, first in zip(read(arrays, tokenizer), begins, strict=True)] == expected
    assert maker.collate(arrays)["begins"].tolist() == begins
    assert maker.counts(arrays) == {"forward": 9, "backward": 9, "tokens": 9}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(("rows", "unroll_length"), [(1, 4), (3, 2), (16, 5), (50, 20)])
def test_places(
    config: ElmoConfig,
    objective: ElmoObjectiveConfig,
    tokenizer: WordTokenizer,
    rows: int,
    unroll_length: int,
    reset: bool,
) -> None:
    """Every place of a padded block is predicted once by each direction, and the word there is the target."""
    rng = np.random.default_rng(rows)
    block = make_block(*(" ".join(rng.choice(list("abcdefxyz"), rng.integers(1, 9))) for _ in range(40)))
    maker = ElmoExampleMaker(config, changed(objective, unroll_length=unroll_length), tokenizer, rows, reset=reset)
    examples = maker.make(block, rng, pad=True)
    arrays, places = examples.take(0, 10**6), examples.text_positions(0, 10**6)
    ids = tokenizer.ids([block.words[token] for token in block.tokens]) if block.words else []
    starts = block.sentence_starts
    for name, boundaries, boundary in (("forward", starts[1:], "</S>"), ("backward", starts[:-1], "<S>")):
        at, targets = places[name], arrays[f"{name}_targets"]
        assert np.array_equal(at == -1, targets == -100)
        text = np.insert(ids, boundaries, tokenizer.ids([boundary])[0])
        assert np.array_equal(np.sort(at[at >= 0]), np.arange(len(text)))
        assert np.array_equal(targets[at >= 0], text[at[at >= 0]])
    assert maker.unknown(block).tolist() == (ids == tokenizer.ids(["<UNK>"])).tolist()


@pytest.fixture
def documents() -> Block:
    """Six documents of four sentences of seven words."""
    rng = np.random.default_rng(3)
    block = make_block(*(" ".join(rng.choice(list("abcdefgh"), 7)) for _ in range(24)))
    return replace(block, document_starts=np.arange(0, 25, 4), document_numbers=np.arange(6))


def test_independent_backward_text(
    config: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: WordTokenizer, documents: Block
) -> None:
    """The backward model reads each sentence once, too, but not beside the forward one; always the same for an rng."""
    makers = {
        backward_text: ElmoExampleMaker(config, changed(objective, backward_text=backward_text), tokenizer, 4)
        for backward_text in ("same", "independent")
    }
    same = makers["same"].make(documents, np.random.default_rng(1))
    first, again, other = (makers["independent"].make(documents, np.random.default_rng(s)) for s in (1, 1, 2))
    count = len(same)
    assert count * objective.unroll_length == len(documents.tokens) + 24, "nothing is left over"
    assert len({digest(e.take(0, count)) for e in (same, first, other)}) == 3
    assert digest(again.take(0, count)) == digest(first.take(0, count))

    def pairs(examples: ElmoExamples, direction: str) -> list[tuple[int, ...]]:
        places = examples.text_positions(0, count)[direction].ravel()
        arrays = examples.take(0, count)
        columns = arrays[f"{direction}_characters"].reshape(places.size, -1), arrays[f"{direction}_targets"].ravel()
        return sorted(map(tuple, np.column_stack([places, *columns]).tolist()))

    for examples in (first, other):
        assert np.array_equal(examples.forward.text_positions, same.forward.text_positions)
        assert not np.array_equal(examples.backward.text_positions, same.backward.text_positions)
        assert pairs(examples, "backward") == pairs(same, "backward")
    # a row reads on within a document and goes to the end of another
    steps = np.concatenate([first.backward.text_positions[row::4].ravel() for row in range(3, -1, -1)])
    jumps = np.flatnonzero(np.diff(steps) != -1)
    assert 0 < len(jumps) <= 5 and all(steps[jumps] % 32 == 0) and all((steps[jumps + 1] + 1) % 32 == 0)

    held_out = [maker.make(documents, RNG, pad=True).take(0, count) for maker in makers.values()]
    assert digest(held_out[0]) == digest(held_out[1]), "held-out text is read in one way only"


@pytest.mark.parametrize("backward_text", ["same", "independent"])
def test_rows_that_begin_anew(
    config: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: WordTokenizer, documents: Block, backward_text: str
) -> None:
    """They are drawn after everything else, and not of held-out text: without them examples are what they were."""

    def make(probability: float, seed: int = 1, *, pad: bool = False) -> Arrays:
        options = changed(objective, backward_text=backward_text, reset_probability=probability, unroll_length=2)
        maker = ElmoExampleMaker(config, options, tokenizer, 4)
        return maker.make(documents, np.random.default_rng(seed), pad=pad).take(0, 1000)

    without, some, every = make(0.0), make(0.3), make(1.0)
    assert "begins" not in without and every["begins"].all()
    for name, array in without.items():
        assert np.array_equal(array, some[name]) and np.array_equal(array, every[name])
    rng = np.random.default_rng(1)
    if backward_text == "independent":
        rng.permutation(6)  # the order of the documents
    assert np.array_equal(some["begins"], rng.random(len(some["begins"])) < 0.3)
    assert some["begins"].dtype == np.int8 and 0 < some["begins"].mean() < 0.6
    assert digest(make(0.3)) == digest(some) != digest(without)
    assert digest(make(0.3, seed=2)) != digest(some)
    held_out = make(0.3, pad=True)
    assert "begins" not in held_out and digest(held_out) == digest(make(0.0, seed=3, pad=True))


def test_shapes_and_types(config: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: WordTokenizer) -> None:
    examples = ElmoExampleMaker(config, objective, tokenizer, 1).make(make_block("a unseen", "b c d e f"), RNG)
    arrays = examples.take(1, 2)
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "forward_characters": ((1, 4, 50), "int16"),
        "forward_targets": ((1, 4), "int32"),
        "backward_characters": ((1, 4, 50), "int16"),
        "backward_targets": ((1, 4), "int32"),
    }
    first = examples.take(0, 1)
    assert first["forward_targets"][0].tolist() == [3, 2, 1, 4], "a word without an id is a target <UNK>"
    assert first["forward_characters"][0, 2, 1:7].tolist() == list(b"unseen"), "but is read by its own characters"


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize("unroll_length", [1, 3, 7, 50])
def test_padded_examples_hold_every_position_once(
    config: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: WordTokenizer, rows: int, unroll_length: int
) -> None:
    rng = np.random.default_rng(rows)
    block = make_block(*(" ".join(rng.choice(list("abcdef"), rng.integers(1, 9))) for _ in range(7)))
    maker = ElmoExampleMaker(config, changed(objective, unroll_length=unroll_length), tokenizer, rows)
    whole = ElmoExampleMaker(config, changed(objective, unroll_length=len(block.tokens) + 7), tokenizer, 1)
    text = read(whole.make(block, rng).take(0, 1), tokenizer)[0]
    arrays = maker.make(block, rng, pad=True).take(0, 10**6)
    count = len(block.tokens) + 7
    assert maker.counts(arrays) == {"forward": count, "backward": count, "tokens": count}
    examples = read(arrays, tokenizer)
    for direction in (0, 2):
        pieces = ["".join(e[direction] for e in examples[row::rows]) for row in range(rows)]
        targets = ["".join(e[direction + 1] for e in examples[row::rows]) for row in range(rows)]
        assert all(target.rstrip("_").count("_") == 0 for target in targets), "padding is at the end only"
        real = [piece[: len(t.rstrip("_"))] for piece, t in zip(pieces, targets, strict=True)]
        order = slice(None) if direction == 0 else slice(None, None, -1)
        assert "".join(real[order]) == text[direction]
        assert "".join(t.rstrip("_") for t in targets[order]) == text[direction + 1]


def test_an_empty_block_has_no_examples(
    config: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: WordTokenizer
) -> None:
    maker = ElmoExampleMaker(config, objective, tokenizer, 3)
    assert [len(maker.make(make_block(), RNG, pad=pad)) for pad in (False, True)] == [0, 0]


def test_collate_spells_each_word_once(
    config: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: WordTokenizer
) -> None:
    maker = ElmoExampleMaker(config, objective, tokenizer, 2)
    arrays = maker.make(make_block("a b a b a", "b a a a b"), RNG).take(0, 2)
    batch = maker.collate(arrays)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    characters = batch["characters"].numpy()
    assert len(characters) == 4 and len(np.unique(characters, axis=0)) == 4, "a, b and the boundaries"
    assert characters.shape[1] == 3 + 4, "one letter with its marks, and the widest filter"
    for direction in ("forward", "backward"):
        expected = arrays[f"{direction}_characters"][..., :7]
        assert np.array_equal(characters[batch[f"{direction}_index"].numpy()], expected)
        assert np.array_equal(batch[f"{direction}_labels"].numpy(), arrays[f"{direction}_targets"])


@pytest.mark.parametrize("longest", [0, 1, 40, 43, 44, 45, 46, 48, 60])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_trimming_changes_nothing(
    config: ElmoConfig, objective: ElmoObjectiveConfig, longest: int, activation: str
) -> None:
    """Also the gradients, of words up to, at and beyond the limit of 48 bytes."""
    torch.manual_seed(longest)
    config = config.model_copy(update={"activation": activation})
    encoder = TokenEncoder(config).double()
    rows = character_ids(["", "a", "bcd", "é" * (longest // 2) + "x" * (longest % 2)], config.max_characters)
    trimmed = trim_characters(rows, 4)
    assert trimmed.shape[1] == min(50, max(min(longest, 48), 3) + 2 + 4)
    results = []
    for characters in (rows, trimmed):
        encoder.zero_grad()
        tokens = encoder(torch.from_numpy(characters.astype(np.int64)))
        tokens.pow(3).sum().backward()
        results.append([tokens.detach(), *(p.grad for p in encoder.parameters())])
    for full, short in zip(*results, strict=True):
        torch.testing.assert_close(full, short, rtol=1e-12, atol=1e-12)


def test_running_the_encoder_on_distinct_words_changes_nothing(
    config: ElmoConfig, objective: ElmoObjectiveConfig
) -> None:
    torch.manual_seed(0)
    encoder = TokenEncoder(config).double()
    maker = ElmoExampleMaker(config, objective, WordTokenizer(SPECIAL_WORDS), 2)
    arrays = maker.make(make_block("the cat", "the dog and the cat", "a cat sat"), RNG).take(0, 2)
    batch = maker.collate(arrays)
    tokens = encoder(batch["characters"])[batch["backward_index"]]
    plain = encoder(torch.from_numpy(arrays["backward_characters"].astype(np.int64)).flatten(0, 1))
    torch.testing.assert_close(tokens.flatten(0, 1), plain, rtol=1e-12, atol=1e-12)
