"""Types that every package names: an array, the form of a checkpoint and the head of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]  # whose shape and dtype a docstring says

# How a checkpoint holds its weights; every stage says which forms it accepts, so that a plan whose
# steps do not fit one another is refused before anything runs:
#   dense     as floats, which any step may change
#   packed    on a grid or as factors, which a step may only read or wrap
#   adapter   the changes of a dense or packed parent, without the parent's own weights
#   adapted   a parent and an adapter beside it in one folder, which no step can merge
Form = Literal["dense", "packed", "adapter", "adapted"]

# What a model has on top of its body:
#   causal      the next token of a text
#   seq2seq     the next token of an answer, beside an encoded text
#   classify    the class of a text
#   embed       nothing: the body's hidden states
#   masked      the hidden tokens of a text
#   paired      the hidden tokens, and whether two sentences follow each other
#   extract     the first and the last token of an answer within a passage
#   transcribe  the next token of what was heard
Head = Literal["causal", "seq2seq", "classify", "embed", "masked", "paired", "extract", "transcribe"]

# A new head of these kinds knows nothing before it is trained.
UNTRAINED: tuple[Head, ...] = ("classify", "extract")

# The class of transformers that loads a model with this head; a card that names any other is refused,
# as loading must not run code of a checkpoint.
AUTO_CLASSES: dict[Head, str] = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classify": "AutoModelForSequenceClassification",
    "embed": "AutoModel",
    "masked": "AutoModelForMaskedLM",
    "paired": "AutoModelForPreTraining",  # BERT's two heads
    "extract": "AutoModelForQuestionAnswering",
    "transcribe": "AutoModelForSpeechSeq2Seq",
}
