"""A model from a transformers config and a seed, with a tokenizer trained on a few sentences."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lcc.core.decode import card
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, transformers
from lcc.parts.checkpoint import AUTO_CLASSES, Head
from lcc.parts.tokenizer_training import Dress, Kind, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@card
class TokenizerRecipe:
    """A tokenizer trained on the card's own sentences; its other fields are those of `Dress`."""

    texts: tuple[str, ...]
    kind: Kind = "bpe"
    vocab_size: Annotated[int, Field(ge=257, le=65536)] = 400
    specials: dict[str, str] = field(default_factory=dict)
    single: str = "$A"
    pair: str | None = None
    sentinels: Annotated[int, Field(ge=0)] = 0
    chat_template: str = ""


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
    """The fast tokenizer of a recipe."""
    dress = Dress(recipe.specials, recipe.single, recipe.pair, recipe.sentinels)
    made = train_tokenizer(
        recipe.texts, kind=recipe.kind, vocab_size=recipe.vocab_size, dress=dress
    )
    if recipe.chat_template:
        made.chat_template = recipe.chat_template
    return made


def make_module(scratch: Scratch, head: Head, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The module with weights drawn from the card's seed, whatever was drawn before."""
    options = dict(scratch.config)
    family = options.pop("model_type")
    if family not in transformers.CONFIG_MAPPING:
        raise RecipeError(
            f"model.source.scratch.config.model_type: {family!r} is not known to transformers."
        )
    ids = {"vocab_size": len(tokenizer)} | special_ids(tokenizer)
    try:
        config = transformers.AutoConfig.for_model(family, **(ids | options))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scratch.seed)
            module = getattr(transformers, AUTO_CLASSES[head]).from_config(config)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.source.scratch.config: {error}") from None
    return module.eval()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids that a model's config names (padding, start, end), as this tokenizer has them."""
    roles = ("pad_token_id", "bos_token_id", "eos_token_id")
    found = {role: getattr(tokenizer, role) for role in roles}
    return {role: value for role, value in found.items() if value is not None}
