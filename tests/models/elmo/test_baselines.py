"""The baselines of `pretrain bench`: that they compute the same model, and do the work that they stand for."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.models.baselines import Baseline, Part, Tensors, Work
from pretrain.models.elmo.baselines import SteppedLayer, build_baselines, build_parts
from pretrain.models.elmo.model import build_model
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer, character_ids, trim_characters
from pretrain.models.family import ModelFolder
from pretrain.models.loss import Batch

ROWS, POSITIONS = 3, 6
WORDS = ("a", "few", "words", "of", "several", "lengths", "and", "é")


def config(clip: float = 3.0, activation: str = "relu") -> ElmoConfig:
    return ElmoConfig(
        filters=((1, 8), (2, 8), (3, 16)),
        num_highways=2,
        activation=activation,  # type: ignore[arg-type]
        cell_size=24,
        projection_size=12,
        cell_clip=clip,
        projection_clip=clip,
        dropout=0.0,
    )


def batch() -> Batch:
    rng = torch.Generator().manual_seed(1)
    characters = trim_characters(character_ids(WORDS, 50), 3).astype("int64")
    indices = [torch.randint(len(WORDS), (ROWS, POSITIONS), generator=rng) for _ in range(2)]
    return {
        "characters": torch.from_numpy(characters),
        "forward_index": indices[0],
        "backward_index": indices[1],
    }


def models(of: ElmoConfig) -> tuple[nn.Module, list[Baseline], list[Part]]:
    tokenizer = WordTokenizer([*SPECIAL_WORDS, *WORDS])
    torch.manual_seed(3)
    objective = ElmoObjectiveConfig(softmax="full")
    model = build_model(of, objective, tokenizer.vocabulary_size)
    folder = ModelFolder(model, tokenizer, of, objective)
    baselines = [baseline for baseline in build_baselines(folder, compiled=False) if isinstance(baseline, Baseline)]
    return model, baselines, build_parts(model)


def outputs_and_gradients(work: Work, model: nn.Module, inputs: Tensors) -> list[Tensor]:
    """The part's outputs, and what the gradients of its floating-point inputs are for fixed ones of the outputs."""
    wanted = [tensor for tensor in inputs if tensor.is_floating_point()]
    outputs = work(model, inputs)
    torch.manual_seed(4)
    if not wanted:
        return list(outputs)
    return [*outputs, *torch.autograd.grad(outputs, wanted, [torch.randn(output.shape) for output in outputs])]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_parts_agree(activation: str) -> None:
    model, baselines, parts = models(config(activation=activation))
    for part in parts:
        inputs = part.inputs(model, batch())
        ours = outputs_and_gradients(part.ours, model, inputs)
        exact = [baseline for baseline in baselines if part.name in baseline.parts]
        assert exact
        for baseline in exact:
            theirs = outputs_and_gradients(baseline.parts[part.name], baseline.model, inputs)
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_who_respects_the_clips() -> None:
    model, baselines, (_, recurrence) = models(config(clip=0.02))
    inputs = recurrence.inputs(model, batch())
    ours = outputs_and_gradients(recurrence.ours, model, inputs)
    close = {}
    for baseline in baselines:
        theirs = outputs_and_gradients(baseline.parts[recurrence.name], baseline.model, inputs)
        close[baseline.name] = all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(theirs, ours, strict=True)
        )
    assert close == {"AllenNLP's way": True, "nn.LSTM without clips": False}


def test_whole_models_carry_their_state() -> None:
    model, baselines, _ = models(config())
    tensors = batch()
    with torch.no_grad():
        state: dict[str, Tensor | None] = dict.fromkeys(["ours", *(baseline.name for baseline in baselines)])
        for _ in range(2):
            forward, backward, state["ours"] = model.encoder(**tensors, carried=state["ours"])  # type: ignore[operator]
            for baseline in baselines:
                *tops, state[baseline.name] = baseline.model.encoder(  # type: ignore[operator]
                    **tensors, carried=state[baseline.name]
                )
                torch.testing.assert_close(tops, [forward, backward], rtol=1e-4, atol=1e-5)


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched, views left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("positions", [20, 40])
def test_kernels_of_a_time_step(positions: int) -> None:
    """AllenNLP's own cell (2.10) dispatches 25 a position forward and 60 backward, counted so."""
    sizes = config()
    shapes = [(96, 12), (96, 12), (96,), (12, 24)]
    layer = SteppedLayer(sizes, tuple(torch.randn(shape) for shape in shapes))
    inputs = torch.randn(ROWS, positions, 12, requires_grad=True)
    with Kernels() as forward:
        outputs, *_ = layer(inputs, torch.zeros(ROWS, 12), torch.zeros(ROWS, 24))
    with Kernels() as backward:
        outputs.sum().backward()
    assert round(forward.count / positions) == 25
    assert round(backward.count / positions) in (60, 61)
