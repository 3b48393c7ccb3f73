"""How a model is computed: the result is the same, but for rounding."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pretrain.config.base import Section

AttentionBackend = Literal["auto", "varlen_fa3", "varlen", "flash_attn", "nested", "masked", "per_sequence"]


class ComputeConfig(Section):
    """How the model is computed: the result is the same, but for rounding."""

    attention: AttentionBackend = "auto"
    """BERT's attention within packs. `auto` takes the fastest that works on this device; a backend you name is used, or
    the run fails. `varlen_fa3` and `varlen`: torch's kernels for variable-length sequences, with FlashAttention 3 or 2
    (16 bits, no dropout); `flash_attn`: the package of that name (16 bits); `nested`: torch's nested tensors; `masked`:
    whole packs under a mask; `per_sequence`: each sequence by itself, the fastest on CPU."""
    compile: bool | None = None
    """Whether BERT's layers and heads are compiled with `torch.compile`; `null`: on CUDA where it works, except with
    `sharding.zero_stage` 3 and `nested` attention, which break the graphs."""
    activation_checkpointing: bool = False
    """Whether the inside of BERT's layers is computed again in the backward pass instead of being kept: less memory, a
    third more work."""
    threads: Annotated[
        Annotated[Annotated[int, Field(gt=0)], Tag("number")] | Annotated[Literal["auto"], Tag("word")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "number"),
    ] = "auto"
    """Threads of each rank on CPU. `auto`: `OMP_NUM_THREADS` where it is set, else what a trial of a second finds
    fastest on this machine now. More threads than idle cores make training many times slower."""

    def given(self, *options: str) -> Iterator[tuple[str, Any, Any]]:
        """(option, value, default) of those options that are not at their default."""
        for option in options:
            value, default = getattr(self, option), type(self).model_fields[option].default
            if value != default:
                yield option, value, "null" if default is None else str(default).lower()
