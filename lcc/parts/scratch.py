"""A model from a transformers config and a seed, with a tokenizer trained on a few sentences."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lcc.core.decode import card
from lcc.core.errors import RecipeError
from lcc.core.lazy import tokenizers, torch, transformers
from lcc.parts.checkpoint import AUTO_CLASSES, Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@card
class TokenizerRecipe:
    """A byte-level BPE: every text can be written in it, whatever it was trained on.

    `specials` are roles of transformers (`pad_token`, `bos_token` …) → the token; `single` and
    `pair` say where they stand around the text, in the notation of tokenizers (`<s> $A`).
    """

    texts: tuple[str, ...]
    vocab_size: Annotated[int, Field(ge=257, le=65536)] = 400
    specials: dict[str, str] = field(default_factory=dict)
    single: str = "$A"
    pair: str | None = None


@card
class Scratch:
    """`config` goes to transformers as it is; its vocabulary and special ids are filled in."""

    config: dict[str, Any]
    tokenizer: TokenizerRecipe
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs model_type, the family's name in transformers")


def make_tokenizer(recipe: TokenizerRecipe) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a recipe; ids of specials come first, in their order."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    specials = list(dict.fromkeys(recipe.specials.values()))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(recipe.texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=recipe.single,
        pair=recipe.pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in specials],
    )
    made: PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **recipe.specials
    )
    return made


def make_module(scratch: Scratch, head: Head, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The module with weights drawn from the card's seed, whatever was drawn before."""
    options = dict(scratch.config)
    family = options.pop("model_type")
    if family not in transformers.CONFIG_MAPPING:
        raise RecipeError(
            f"model.source.scratch.config.model_type: {family!r} is not known to transformers."
        )
    ids = {"vocab_size": len(tokenizer)} | _special_ids(tokenizer)
    try:
        config = transformers.AutoConfig.for_model(family, **(ids | options))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scratch.seed)
            module = getattr(transformers, AUTO_CLASSES[head]).from_config(config)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.source.scratch.config: {error}") from None
    return module.eval()


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    roles = ("pad_token_id", "bos_token_id", "eos_token_id")
    found = {role: getattr(tokenizer, role) for role in roles}
    return {role: value for role, value in found.items() if value is not None}
