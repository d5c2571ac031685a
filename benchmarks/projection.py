"""On paper: what training 7B and 70B parameters needs on named GPUs, from ratios measured here."""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9
FREE_SHARE = 0.9  # of a GPU's memory; the rest is the allocator's and the library's
MICRO_TOKENS = 4096  # that go through a GPU at once
TOKENS = 1e9  # the projected run
RANK = 16
CHUNK = 256  # targets whose logits are held at a time


@dataclass(frozen=True)
class Model:
    """A Llama-like model; `kv_share` of its heads have keys and values of their own."""

    name: str
    depth: int
    width: int
    inner: int
    vocabulary: int
    kv_share: float

    @property
    def block(self) -> float:
        return self.width**2 * (2 + 2 * self.kv_share) + 3 * self.width * self.inner

    @property
    def adapters(self) -> float:
        """LoRA of RANK on every linear layer of the blocks."""
        channels = self.width * (4 + 2 * (1 + self.kv_share)) + 3 * (self.width + self.inner)
        return self.depth * RANK * channels

    @property
    def outside(self) -> float:
        return 2.0 * self.vocabulary * self.width

    @property
    def parameters(self) -> float:
        return self.depth * self.block + self.outside


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 FLOP/s, bytes of memory, bytes/s to its neighbours: their data sheets'."""

    name: str
    flops: float
    memory: float
    link: float


@dataclass(frozen=True)
class Method:
    """Bytes kept for every parameter, and the multiples of 2N FLOPs that a token costs.

    `trains_all`: else only LoRA's 16 bytes for each of its own. What FSDP here refuses to cut
    (`shardable`) must fit one GPU.
    """

    name: str
    kept: float
    passes: float
    trains_all: bool
    shardable: bool


MODELS = [Model("7B", 32, 4096, 11008, 32000, 1.0), Model("70B", 80, 8192, 28672, 32000, 0.125)]
GPUS = [
    Gpu("RTX 4090 24 GB", 165e12, 24 * GB, 32e9),
    Gpu("A100 80 GB", 312e12, 80 * GB, 300e9),
    Gpu("H100 SXM 80 GB", 989e12, 80 * GB, 450e9),
    Gpu("H200 141 GB", 989e12, 141 * GB, 450e9),
]
METHODS = [
    # float32 weights and gradients, two moments; recomputing the forward adds a pass to three.
    Method("full, AdamW", 4 + 4 + 8, 4, trains_all=True, shardable=True),
    Method("full, 8-bit AdamW", 4 + 4 + 2, 4, trains_all=True, shardable=False),
    # No gradients of the frozen weights.
    Method("LoRA on float32", 4, 3, trains_all=False, shardable=True),
    Method("QLoRA", 0.516, 3, trains_all=False, shardable=False),
]


def bytes_on_each(model: Model, method: Method, num_gpus: int) -> float:
    """Peak bytes of one GPU under FSDP with bfloat16 weights gathered block by block."""
    own = 0.0 if method.trains_all else 16 * model.adapters
    own += max(0.0, 4 - method.kept) * model.outside  # embeddings and heads are never packed
    state = (method.kept * model.parameters + own) / num_gpus
    if num_gpus > 1:
        working = 2 * (2 * model.block + model.outside)
        working += 4 * max(model.block, model.outside) if method.trains_all else 0.0
    else:  # autocast keeps bfloat16 copies of what is trained
        working = 2 * model.parameters if method.trains_all else 0.0
    # Checkpointed: a block's input for each layer, and inside one block 34 numbers a channel
    # (Korthikanti et al., 2022); logits of a few targets in float32 and their gradient.
    activations = MICRO_TOKENS * model.width * (2 * model.depth + 34)
    logits = 8 * CHUNK * model.vocabulary
    return state + working + activations + logits


def gpus_needed(model: Model, method: Method, gpu: Gpu) -> int | None:
    """The least power of two, up to 1024, that holds the run; None where none does."""
    for power in range(11 if method.shardable else 1):
        num = 2**power
        if bytes_on_each(model, method, num) <= FREE_SHARE * gpu.memory:
            return num
    return None


def hours(model: Model, method: Method, gpu: Gpu, num_gpus: int, utilisation: float) -> float:
    """Of TOKENS tokens: multiplications alone, at `utilisation` of the data sheet's FLOP/s."""
    flops = 2 * model.parameters * method.passes * TOKENS
    return flops / (num_gpus * gpu.flops * utilisation) / 3600


def talking_share(model: Model, method: Method, gpu: Gpu, utilisation: float) -> float:
    """Seconds of gathers and scatters over seconds of multiplications, if nothing overlaps.

    A micro-batch gathers bfloat16 weights twice and reduces float32 gradients of what is trained.
    """
    trained = model.parameters if method.trains_all else model.adapters
    sent = 2 * 2 * model.parameters + 4 * trained
    work = 2 * model.parameters * method.passes * MICRO_TOKENS / (gpu.flops * utilisation)
    return sent / gpu.link / work


def rows(utilisation: float) -> list[list[str]]:
    """A line for each model, method and GPU that can run it."""
    found = []
    for model in MODELS:
        for method in METHODS:
            for gpu in GPUS:
                num = gpus_needed(model, method, gpu)
                if num is None:
                    continue
                share = talking_share(model, method, gpu, utilisation) if num > 1 else 0.0
                found.append(
                    [
                        model.name,
                        method.name,
                        f"{num} × {gpu.name}",
                        f"{bytes_on_each(model, method, num) / GB:.0f} GB",
                        f"{hours(model, method, gpu, num, utilisation):,.0f} h",
                        f"{share:.0%}" if num > 1 else "–",
                    ]
                )
    return found
