"""Ways to read packs and to compute layers that only some devices have: each changes nothing but rounding."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from pretrain.config.models import BertConfig
from pretrain.data.blocks import Block
from pretrain.errors import ConfigError
from pretrain.models.bert import tuning
from pretrain.models.bert.attention import KERNELS, OnEnd, read_packs
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.bert.tuning import attention_problem, choose_attention, compile_parts, compile_problem, tune
from tests.models.bert.conftest import TINY
from tests.models.bert.test_packed import batch_of, build, gradients, losses

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")


def attend_per_sequence(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention within each stretch of [tokens, heads, width], by its formula."""
    mixed = torch.empty_like(query)
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        shares = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed[start:stop] = (torch.dropout(shares, dropout, True) @ v).transpose(0, 1)
    return mixed


def _varlen(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    longest = rest[1]
    assert starts.dtype == torch.int32 and int(starts.diff().max()) <= longest and starts[-1] == len(q)
    lse = q.new_zeros(q.shape[1], len(q), dtype=torch.float32)
    return attend_per_sequence(q, k, v, starts), lse, torch.zeros(2, dtype=torch.uint64)


def _varlen_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, starts: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = tuple(torch.empty_like(x) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        g, q, k, v = (x[start:stop].transpose(0, 1) for x in (gradient, query, key, value))
        shares = (q @ k.transpose(1, 2) * scale).softmax(-1)
        of_shares = g @ v.transpose(1, 2)
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * scale
        three = (of_scores @ k, of_scores.transpose(1, 2) @ q, shares.transpose(1, 2) @ g)
        for whole, part in zip(gradients, three, strict=True):
            whole[start:stop] = part.transpose(0, 1)
    return gradients


OPERATIONS: list[Any] = [varlen._varlen_attn, varlen._varlen_attn_backward]
for _operation, _kernel in zip(OPERATIONS, (_varlen, _varlen_backward), strict=True):
    _operation.register_kernel("cpu")(_kernel)
    _operation._disabled_kernel.add("cpu")  # but for the tests that ask for it


@pytest.fixture
def varlen_on_cpu() -> Iterator[None]:
    """torch's kernel for sequences on end, which it has for CUDA only, by its formula."""
    with ExitStack() as stack:
        for operation in OPERATIONS:
            stack.enter_context(operation.set_kernel_enabled("cpu"))
        yield


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which needs CUDA."""

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, dropout_p: float,
        deterministic: bool,
    ) -> Tensor:  # fmt: skip
        assert cu_q is cu_k and max_q == max_k >= int(cu_q.diff().max())
        assert not deterministic
        return attend_per_sequence(q, k, v, cu_q, dropout_p)

    module = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.fixture
def block(make_block: Callable[[list[int], list[int]], Block]) -> Block:
    return make_block([12] * 8, list(range(8)))


def agree(plain: BertModel, other: BertModel, batch: dict[str, Tensor]) -> None:
    """The same losses and gradients, in float64."""
    expected, terms = losses(plain, batch), losses(other, batch)
    for name, term in terms.items():
        torch.testing.assert_close(term.total, expected[name].total, rtol=1e-12, atol=0)
    theirs = gradients(plain, expected)
    for name, gradient in gradients(other, terms).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [64, 100, 256])
@pytest.mark.parametrize("way", ["varlen", "flash_attn", "nested", "per_sequence"])
@pytest.mark.usefixtures("varlen_on_cpu", "flash_attn")
def test_every_way_gives_the_same_losses_and_gradients(
    way: str, length: int, block: Block, tokenizer: WordPieceTokenizer
) -> None:
    """In packs that are full, half empty, and no multiple of the longest sequence."""
    plain, other = (build(tokenizer, pack_length=length, attention=one) for one in ("masked", way))
    batch = batch_of(plain, block, tokenizer)
    agree(plain, other, batch)


def test_shapes_do_not_depend_on_the_sequences() -> None:
    shapes = set()
    for lengths in ([[64, 30, 0], [1, 1, 1]], [[0, 0, 0], [64, 64, 22]]):
        attend = read_packs("varlen", torch.tensor(lengths), 150, 64)
        assert isinstance(attend, OnEnd)
        shapes.add(attend.starts.shape)
        assert int(attend.starts[-1]) == 300 and int(attend.starts.diff().max()) <= 64
        assert set(range(0, 301, 150)) <= set(attend.starts.tolist()), "no sequence goes on in the next row"
    assert len(shapes) == 1


PACKED = BertConfig.model_validate(TINY.model_dump() | {"dropout": 0.0, "pack_length": 256})


@pytest.mark.usefixtures("varlen_on_cpu", "flash_attn")
def test_what_works_is_taken() -> None:
    for way in ("varlen", "flash_attn", "nested", "masked", "per_sequence"):
        assert attention_problem(way, PACKED, CPU, torch.float32) is None, way


def test_what_does_not_work_says_why() -> None:
    problems = {way: attention_problem(way, PACKED, CPU, torch.float32) for way in tuning.LADDER}
    assert problems.pop("nested") is None
    assert problems == {
        "varlen_fa3": "ModuleNotFoundError: No module named 'flash_attn_interface'",
        "varlen": "NotImplementedError: Could not run 'aten::_flash_attention_forward' with arguments from the 'CPU' "
        "backend",
        "flash_attn": "ModuleNotFoundError: No module named 'flash_attn'",
    }


def _wrong(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, dropout: float) -> Tensor:
    """Sequences that see each other."""
    return attend_per_sequence(q, k, v, starts[[0, -1]])


def _wrong_gradient(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, dropout: float) -> Tensor:
    return attend_per_sequence(q, k.detach(), v, starts) + 0 * k


def _no_padding(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, dropout: float) -> Tensor:
    """What comes after the last sequence of a row is left as it was in memory."""
    mixed = attend_per_sequence(q, k, v, starts)
    return torch.cat([mixed[:-1], mixed[-1:] * float("nan")])


@pytest.mark.parametrize("kernel", [_wrong, _wrong_gradient, _no_padding])
def test_a_kernel_that_is_wrong_is_not_taken(kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "flash_attn", kernel)
    problem = attention_problem("flash_attn", PACKED, CPU, torch.float32)
    assert problem is not None and "from the plain way" in problem


@pytest.mark.usefixtures("varlen_on_cpu", "flash_attn")
def test_dropout_is_not_lost() -> None:
    config = PACKED.model_copy(update={"attention_dropout": 0.1})
    state = torch.get_rng_state()
    problems = [attention_problem(way, config, CPU, torch.float32) for way in ("varlen", "flash_attn", "nested")]
    assert problems == ["ValueError: it has no dropout", None, None]
    assert torch.equal(torch.get_rng_state(), state), "trying changes nothing that the run draws"


def _without_dropout(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, dropout: float) -> Tensor:
    return attend_per_sequence(q, k, v, starts)


def test_a_kernel_that_ignores_dropout_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "flash_attn", _without_dropout)
    config = PACKED.model_copy(update={"attention_dropout": 0.1})
    assert attention_problem("flash_attn", PACKED, CPU, torch.float32) is None
    assert attention_problem("flash_attn", config, CPU, torch.float32) == "it has no dropout"


def test_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the first that works; if none does, the mask. On CPU one sequence at a time, but for a compiler."""
    tried = []

    def problem(way: str, *rest: object) -> str | None:
        tried.append(way)
        return None if way in working else "broken"

    monkeypatch.setattr(tuning, "attention_problem", problem)
    working = {"flash_attn", "nested"}
    assert choose_attention(PACKED, CUDA, torch.bfloat16) == (
        "flash_attn",
        ["attention: flash_attn", "attention: not varlen_fa3: broken", "attention: not varlen: broken"],
    )
    working = set()
    way, lines = choose_attention(PACKED, CUDA, torch.bfloat16)
    assert (way, lines[0], len(lines)) == ("masked", "attention: masked", 5)
    tried.clear()
    assert choose_attention(PACKED, CPU, torch.float32) == ("per_sequence", [])
    assert choose_attention(PACKED.model_copy(update={"compile": True}), CPU, torch.float32) == ("masked", [])
    assert tried == []


def test_what_the_config_asks_for_is_taken_or_refused() -> None:
    def asked(**options: object) -> BertModel:
        return BertModel(BertConfig.model_validate(PACKED.model_dump() | options), 200)

    model = asked(attention="nested")
    assert tune(model, CPU, torch.float32, 0) == [], "nothing is compiled on CPU unless it is asked for"
    assert model.encoder.attention == "nested"
    with pytest.raises(ConfigError, match=r"^model.attention is varlen: NotImplementedError: .*CPU' backend$"):
        tune(asked(attention="varlen"), CPU, torch.float32, 0)
    with pytest.raises(ConfigError, match=r"^model.compile is true: sharding.zero_stage is 3"):
        tune(asked(compile=True), CPU, torch.float32, 3)
    for way in ("nested", "per_sequence"):
        with pytest.raises(ConfigError, match=rf"^model.compile is true: attention is {way}$"):
            tune(asked(compile=True, attention=way), CPU, torch.float32, 0)
    assert tune(asked(compile=False), CPU, torch.float32, 0) == []
    with pytest.raises(ValueError, match="attention is nested, a way to read packs, and packing is false"):
        BertConfig(packing=False, attention="nested")


@pytest.mark.parametrize("way", ["masked", "varlen"])
@pytest.mark.usefixtures("varlen_on_cpu")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's tracer looks at them all
def test_compiled_parts_give_the_same_and_share_their_code(
    way: str, block: Block, tokenizer: WordPieceTokenizer
) -> None:
    """Traced and differentiated as for a compiler, in one piece each, then run by torch's own kernels."""
    from torch._dynamo.utils import counters

    options = {"pack_length": 256, "attention": way, "num_layers": 6}
    plain, compiled = (build(tokenizer, **options) for _ in range(2))
    names = list(compiled.state_dict())
    compile_parts(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == names
    batch = batch_of(plain, block, tokenizer)
    torch._dynamo.reset()
    counters.clear()
    agree(plain, compiled, batch)
    assert counters["stats"]["unique_graphs"] == 3, "embeddings, six layers, head"
    # Batches of a second size have graphs of their own, which take all others.
    for rows in (2, 4, 3):
        agree(plain, compiled, batch_of(plain, block, tokenizer, rows))
        assert counters["stats"]["unique_graphs"] == 6
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_layer_agrees_or_says_why_not() -> None:
    model = BertModel(BertConfig.model_validate(PACKED.model_dump() | {"compile": True}), 200)
    problem = compile_problem(model, CPU, torch.bfloat16, 0)
    assert problem is None or "compiler" in problem.lower(), problem


def test_a_checkpointed_layer_keeps_less_and_learns_the_same(block: Block, tokenizer: WordPieceTokenizer) -> None:
    """With dropout at work, whose noise the second forward pass has to draw again."""
    results = []
    for checkpointing in (False, True):
        model = build(tokenizer, dropout=0.2, activation_checkpointing=checkpointing, num_layers=4).train()
        batch = batch_of(model, block, tokenizer)
        kept = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = losses(model, batch)
        results.append((sum(kept), terms, gradients(model, terms)))
    (all_kept, terms, expected), (some_kept, other_terms, actual) = results
    assert some_kept < 0.4 * all_kept
    assert all(torch.equal(terms[name].total, other_terms[name].total) for name in terms)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
