"""Backends of attention and compiled layers that only some devices have: each changes nothing but rounding."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams
from torch.nested._internal import sdpa
from torch.nn.attention import varlen

from pretrain.config.compute import ComputeConfig
from pretrain.data.blocks import Block
from pretrain.errors import ConfigError
from pretrain.models.bert import backends, trials
from pretrain.models.bert.attention import KERNELS, VarlenAttention, packed_attention
from pretrain.models.bert.backends import BACKENDS_BY_SPEED, choose, select_backends, try_backends
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.bert.trials import (
    Setting,
    attention_problem,
    compile_parts,
    compile_problem,
    layer_milliseconds,
    loss_and_gradients,
)
from tests.models.bert.conftest import tiny_configs
from tests.models.bert.test_packed import batch_of, build, gradients, losses

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT32 = Setting(CPU, torch.float32, zero_stage=0)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning"),
    # torch's tracer looks at all attributes of tensors
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


def attend_per_sequence(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention within each sequence of [tokens, heads, head size], by its formula."""
    output = torch.empty_like(query)
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        probabilities = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        output[start:stop] = (torch.dropout(probabilities, dropout, True) @ v).transpose(0, 1)
    return output


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    max_seqlen = rest[1]
    assert cu_seqlens.dtype == torch.int32 and int(cu_seqlens.diff().max()) <= max_seqlen and cu_seqlens[-1] == len(q)
    lse = q.new_zeros(q.shape[1], len(q), dtype=torch.float32)
    return attend_per_sequence(q, k, v, cu_seqlens), lse, torch.zeros(2, dtype=torch.uint64)


def _varlen_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = tuple(torch.empty_like(x) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        g, q, k, v = (x[start:stop].transpose(0, 1) for x in (gradient, query, key, value))
        probabilities = (q @ k.transpose(1, 2) * scale).softmax(-1)
        grad_probabilities = g @ v.transpose(1, 2)
        grad_scores = (
            probabilities * (grad_probabilities - (grad_probabilities * probabilities).sum(-1, keepdim=True)) * scale
        )
        parts = (grad_scores @ k, grad_scores.transpose(1, 2) @ q, probabilities.transpose(1, 2) @ g)
        for whole, part in zip(gradients, parts, strict=True):
            whole[start:stop] = part.transpose(0, 1)
    return gradients


OPERATIONS: list[Any] = [varlen._varlen_attn, varlen._varlen_attn_backward]
for _operation, _kernel in zip(OPERATIONS, (_varlen, _varlen_backward), strict=True):
    _operation.register_kernel("cpu")(_kernel)
    _operation._disabled_kernel.add("cpu")  # but for the tests that ask for it


@pytest.fixture
def varlen_on_cpu() -> Iterator[None]:
    """torch's kernel for sequences of different lengths, which it has for CUDA only, by its formula."""
    with ExitStack() as stack:
        for operation in OPERATIONS:
            stack.enter_context(operation.set_kernel_enabled("cpu"))
        yield


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, tuple[int, ...], float]]:
    """A stand-in for the package, which needs CUDA; its calls: types, [heads, head size] and dropouts."""
    calls = []

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, dropout_p: float,
        deterministic: bool,
    ) -> Tensor:  # fmt: skip
        assert cu_q is cu_k and max_q == max_k and not deterministic
        if not torch.compiler.is_compiling():
            assert cu_q.dtype == torch.int32 and int(cu_q.diff().max()) <= max_q and cu_q[-1] == len(q)
            calls.append((q.dtype, tuple(q.shape[1:]), dropout_p))
        ids = torch.searchsorted(cu_q[1:], torch.arange(len(q), dtype=torch.int32, device=q.device), right=True)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, ids[:, None] == ids, dropout_p)[0].transpose(0, 1)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return calls


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parts are traced and differentiated as for a compiler, in one piece each, then run by torch's own kernels."""
    monkeypatch.setattr(trials, "COMPILER", "aot_eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def block(make_block: Callable[[list[int], list[int]], Block]) -> Block:
    return make_block([12] * 8, list(range(8)))


def make_model(**options: object) -> BertModel:
    """A small model for packs of 256 tokens, as a run makes it."""
    return BertModel(*tiny_configs(**{"dropout": 0.0, "pack_length": 256} | options), 200)


def agree(plain: BertModel, other: BertModel, batch: dict[str, Tensor]) -> None:
    """The same losses and gradients, in float64."""
    expected, terms = losses(plain, batch), losses(other, batch)
    for name, term in terms.items():
        torch.testing.assert_close(term.total, expected[name].total, rtol=1e-12, atol=0)
    theirs = gradients(plain, expected)
    for name, gradient in gradients(other, terms).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [64, 100, 256])
@pytest.mark.parametrize("backend", ["varlen", "flash_attn", "nested", "per_sequence"])
@pytest.mark.usefixtures("varlen_on_cpu", "flash_attn")
def test_every_backend_gives_the_same_losses_and_gradients(
    backend: str, length: int, block: Block, tokenizer: WordPieceTokenizer
) -> None:
    """In packs that are full, half empty, and no multiple of the longest sequence."""
    plain, other = (build(tokenizer, pack_length=length) for _ in range(2))
    plain.encoder.attention, other.encoder.attention = "masked", backend
    batch = batch_of(plain, block, tokenizer)
    agree(plain, other, batch)


def test_shapes_do_not_depend_on_the_sequences() -> None:
    shapes = set()
    for lengths in ([[64, 30, 0], [1, 1, 1]], [[0, 0, 0], [64, 64, 22]]):
        attend = packed_attention("varlen", torch.tensor(lengths), 150, 64)
        assert isinstance(attend, VarlenAttention)
        shapes.add(attend.cu_seqlens.shape)
        assert int(attend.cu_seqlens[-1]) == 300 and int(attend.cu_seqlens.diff().max()) <= 64
        assert set(range(0, 301, 150)) <= set(attend.cu_seqlens.tolist()), "no sequence goes on in the next row"
    assert len(shapes) == 1


def test_nested_tensors_may_take_torchs_fast_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although some sequences are empty, as slots of a pack are: its slow way waits for the device at each sequence."""
    select, allowed = sdpa._select_sdp_backend, []

    def spy(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        allowed.append(sdpa._check_for_seq_len_0_nested(SDPAParams(query, key, value, None, 0.0, False, False)))
        return select(query, key, value, *rest)

    monkeypatch.setattr(sdpa, "_select_sdp_backend", spy)
    attend = packed_attention("nested", torch.tensor([[64, 30, 0], [1, 0, 0]]), 100, 64)
    x = torch.randn(2, 100, 32)
    assert attend(x, x, x, num_heads=4, dropout=0.0).isfinite().all()
    assert allowed == [True]


@pytest.mark.usefixtures("varlen_on_cpu", "flash_attn")
def test_what_works_can_be_used() -> None:
    for backend in ("varlen", "flash_attn", "nested", "masked", "per_sequence"):
        assert attention_problem(backend, make_model(), FLOAT32) is None, backend


def test_what_does_not_work_says_why() -> None:
    problems = {backend: attention_problem(backend, make_model(), FLOAT32) for backend in BACKENDS_BY_SPEED}
    assert problems.pop("nested") is problems.pop("masked") is None
    assert problems == {
        "varlen_fa3": "ModuleNotFoundError: No module named 'flash_attn_interface'",
        "varlen": "NotImplementedError: Could not run 'aten::_flash_attention_forward' with arguments from the 'CPU' "
        "backend",
        "flash_attn": "ModuleNotFoundError: No module named 'flash_attn'",
    }


def _wrong(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    """Sequences that see each other."""
    return attend_per_sequence(q, k, v, cu_seqlens[[0, -1]])


def _wrong_gradient(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    return attend_per_sequence(q, k.detach(), v, cu_seqlens) + 0 * k


def _no_padding(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    """The output of padding is left as it was in memory."""
    output = attend_per_sequence(q, k, v, cu_seqlens)
    return torch.cat([output[:-1], output[-1:] * float("nan")])


@pytest.mark.parametrize("kernel", [_wrong, _wrong_gradient, _no_padding])
def test_a_kernel_that_is_wrong_cannot_be_used(kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "flash_attn", lambda: kernel)
    problem = attention_problem("flash_attn", make_model(), FLOAT32)
    assert problem is not None and "from masked attention" in problem


@pytest.mark.usefixtures("varlen_on_cpu", "flash_attn")
def test_dropout_is_not_lost() -> None:
    model = make_model(attention_dropout=0.1)
    problems = [attention_problem(backend, model, FLOAT32) for backend in ("varlen", "flash_attn", "nested")]
    assert problems == ["ValueError: it has no dropout", None, None]


def _without_dropout(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    return attend_per_sequence(q, k, v, cu_seqlens)


def test_a_kernel_that_ignores_dropout_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "flash_attn", lambda: _without_dropout)
    assert attention_problem("flash_attn", make_model(), FLOAT32) is None
    assert attention_problem("flash_attn", make_model(attention_dropout=0.1), FLOAT32) == "it has no dropout"


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds of the backends that work on a pretended GPU; a test may change them."""
    milliseconds = {"varlen": 0.8, "nested": 30.0, "masked": 2.13}

    def problem(backend: str, *_: object) -> str | None:
        return None if backend in milliseconds else "broken"

    def time(model: BertModel, backend: str, setting: Setting, *, compiled: bool) -> float:
        assert compiled == (backend != "nested"), "timed as it would be used"
        return milliseconds[backend]

    monkeypatch.setattr(backends, "attention_problem", problem)
    monkeypatch.setattr(backends, "compile_problem", lambda _, backend, *rest: "no" if backend == "nested" else None)
    monkeypatch.setattr(backends, "layer_milliseconds", time)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: ExitStack())
    return milliseconds


@pytest.mark.usefixtures("traced")
def test_on_cuda_the_fastest_backend_is_used(times: dict[str, float]) -> None:
    def selected(**options: Any) -> tuple[str, list[str]]:
        model = make_model()
        lines = select_backends(model, ComputeConfig(**options), CUDA, torch.bfloat16, 0)
        return model.encoder.attention, lines

    broken = [f"attention backend {backend} cannot be used: broken" for backend in ("varlen_fa3", "flash_attn")]
    assert selected() == (
        "varlen",
        [
            "attention backend: varlen (0.80 ms a layer; nested 30.00 ms, masked 2.13 ms)",
            *broken,
            "layers and heads are compiled",
        ],
    )
    del times["varlen"]
    assert selected()[0] == "masked", "faster than the slow way of nested tensors"
    times["nested"] = 2.3
    assert selected()[0] == "nested", "nearly as fast, and earlier in the order: so that ranks and restarts agree"
    assert selected(compile=True)[0] == "masked"
    assert selected(attention="masked") == ("masked", ["attention backend: masked", "layers and heads are compiled"])


@pytest.mark.usefixtures("traced")
def test_of_a_deterministic_run_no_time_decides(times: dict[str, float]) -> None:
    times |= {"flash_attn": 50.0}
    torch.use_deterministic_algorithms(True)
    try:
        model = make_model()
        lines = select_backends(model, ComputeConfig(), CUDA, torch.bfloat16, 0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert model.encoder.attention == "varlen" and lines[0] == "attention backend: varlen"


def test_a_slow_kernel_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        time.sleep(0.05)
        return attend_per_sequence(q, k, v, cu_seqlens)

    monkeypatch.setitem(KERNELS, "flash_attn", lambda: slow)
    monkeypatch.setattr(trials, "TRIAL_TOKENS", 512)
    model, state = make_model(), torch.get_rng_state()
    monkeypatch.setattr(backends, "backend_candidates", lambda *_: ("flash_attn", "masked"))
    tried = try_backends(model, ComputeConfig(), FLOAT32, compile=False)
    assert torch.equal(torch.get_rng_state(), state), "trials change nothing that the run draws"
    assert tried[0].milliseconds is not None and tried[0].milliseconds > 50
    assert choose(tried, ComputeConfig()).backend == "masked"


def test_the_config_is_followed_or_the_run_fails() -> None:
    def select(model: BertModel, zero_stage: int = 0, **options: Any) -> list[str]:
        return select_backends(model, ComputeConfig(**options), CPU, torch.float32, zero_stage)

    model = make_model()
    assert select(model) == ["attention backend: per_sequence"], "nothing is compiled on CPU unless it is asked for"
    assert model.encoder.attention == "per_sequence"
    assert select(model, attention="nested") == ["attention backend: nested"]
    assert model.encoder.attention == "nested"
    with pytest.raises(ConfigError, match=r"^compute.attention is varlen: NotImplementedError: .*CPU' backend$"):
        select(model, attention="varlen")
    with pytest.raises(ConfigError, match=r"^compute.compile is true: sharding.zero_stage is 3"):
        select(model, zero_stage=3, compile=True)
    for backend in ("nested", "per_sequence"):
        with pytest.raises(ConfigError, match=rf"^compute.compile is true: attention is {backend}$"):
            select(model, compile=True, attention=backend)
    assert select(make_model(packing=False, pack_length=None), compile=False) == []


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("packing", [True, False])
def test_on_cpu_compiled_layers_get_masked_packs(packing: bool) -> None:
    model = make_model() if packing else make_model(packing=False, pack_length=None)
    lines = select_backends(model, ComputeConfig(compile=True), CPU, torch.float32, 0)
    assert lines == ["attention backend: masked"] * packing + ["layers and heads are compiled"]
    assert model.encoder.attention == "masked"


@pytest.mark.usefixtures("traced")
def test_flash_attn_is_compiled(
    flash_attn: list[tuple[torch.dtype, tuple[int, ...], float]],
    block: Block,
    tokenizer: WordPieceTokenizer,
) -> None:
    """What is tried is what runs: the backend, widths and dropout, 16 bits by autocast."""
    setting = Setting(CPU, torch.bfloat16, zero_stage=1)
    options = {"hidden_size": 48, "pack_length": 256, "dropout": 0.1}
    plain, compiled = (make_model(**options) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    lines = select_backends(compiled, ComputeConfig(attention="flash_attn", compile=True), CPU, torch.bfloat16, 1)
    assert lines == ["attention backend: flash_attn", "layers and heads are compiled"]
    assert set(flash_attn) == {(torch.bfloat16, (4, 12), 0.0), (torch.bfloat16, (4, 12), 0.1)}
    batch = batch_of(plain, block, tokenizer)
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("masked_labels", "is_next")}
    expected, found = (loss_and_gradients(model.eval(), inputs, setting) for model in (plain, compiled))
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert loss_and_gradients(compiled.train(), inputs, setting).isfinite().all()
    assert all(layer._compiled_call_impl is not None for layer in compiled.encoder.layers)


@pytest.mark.usefixtures("traced")
def test_a_kernel_that_cannot_be_traced_is_found_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def untraceable(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        torch._dynamo.graph_break()
        return attend_per_sequence(q, k, v, cu_seqlens)

    monkeypatch.setitem(KERNELS, "flash_attn", lambda: untraceable)
    assert attention_problem("flash_attn", make_model(), FLOAT32) is None
    problem = compile_problem(make_model(), "flash_attn", FLOAT32)
    assert problem is not None and "\n" not in problem
    with pytest.raises(ConfigError, match=r"^compute.compile is true: "):
        select_backends(make_model(), ComputeConfig(attention="flash_attn", compile=True), CPU, torch.float32, 0)


@pytest.mark.parametrize("broken", ["Embeddings", "Layer", "MaskedWordHead"])
@pytest.mark.usefixtures("traced")
def test_every_part_that_will_be_compiled_is_tried(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretrain.models.bert import layers, model

    part = getattr(model, broken, None) or getattr(layers, broken)
    forward = part.forward

    def wrong(self: Any, *inputs: Any) -> Tensor:
        output: Tensor = forward(self, *inputs)
        return output.flip(-1) if torch.compiler.is_compiling() else output

    assert compile_problem(make_model(), "masked", FLOAT32) is None
    torch.compiler.reset()
    monkeypatch.setattr(part, "forward", wrong)
    problem = compile_problem(make_model(), "masked", FLOAT32)
    assert problem is not None and "from plain ones" in problem


@pytest.mark.parametrize("backend", ["masked", "varlen", "flash_attn"])
@pytest.mark.usefixtures("varlen_on_cpu", "flash_attn", "traced")
def test_compiled_parts_give_the_same_and_share_their_code(
    backend: str, block: Block, tokenizer: WordPieceTokenizer
) -> None:
    from torch._dynamo.utils import counters

    plain, compiled = (build(tokenizer, pack_length=256, num_layers=6) for _ in range(2))
    plain.encoder.attention = compiled.encoder.attention = backend
    names = list(compiled.state_dict())
    compile_parts(compiled)
    assert list(compiled.state_dict()) == names
    batch = batch_of(plain, block, tokenizer)
    counters.clear()
    agree(plain, compiled, batch)
    assert counters["stats"]["unique_graphs"] == 3, "embeddings, six layers, head"
    # Batches of a second size have graphs of their own, which take all others.
    for rows in (2, 4, 3):
        agree(plain, compiled, batch_of(plain, block, tokenizer, rows))
        assert counters["stats"]["unique_graphs"] == 6
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compiled_parts_agree_or_say_why_not() -> None:
    problem = compile_problem(make_model(dropout=0.1), "masked", Setting(CPU, torch.bfloat16, zero_stage=0))
    assert problem is None or "compiler" in problem.lower(), problem
    if problem is None:
        assert layer_milliseconds(make_model(), "masked", FLOAT32, compiled=True) > 0


def test_a_checkpointed_layer_keeps_less_and_learns_the_same(block: Block, tokenizer: WordPieceTokenizer) -> None:
    """With dropout at work, whose noise the second forward pass has to draw again."""
    results = []
    for checkpointing in (False, True):
        model = build(tokenizer, dropout=0.2, num_layers=4).train()
        model.encoder.activation_checkpointing = checkpointing
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
