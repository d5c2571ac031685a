"""Self-BLEU: how much each answer is like the others (Zhu et al., 2018); less is more diverse."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction
from lcc.methods.metrics import mean_columns, mean_of
from lcc.methods.metrics.bleu import WITHOUT_SPACES

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class SelfBleu:
    """sacreBLEU of each answer against the `references` that follow it, round to the first."""

    word: ClassVar[str] = "self_bleu"
    label: ClassVar[str] = "self-BLEU"
    order: ClassVar[int] = 120
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "BLEU"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = False

    references: Annotated[int, Field(ge=1)] = 50

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: the answer's BLEU against others, one."""
        from sacrebleu.metrics.bleu import BLEU

        scorer = BLEU(tokenize=_tokenizer(language), effective_order=True)
        said = [one.output or "" for one in answers]
        num = min(self.references, len(said) - 1)
        values = []
        for i, text in enumerate(said):
            others = [said[(i + k) % len(said)] for k in range(1, num + 1)]
            values.append(scorer.sentence_score(text, others).score if others and text else 0.0)
        return mean_columns(values)

    def score(self, sums: Floats) -> Floats:
        """Mean over answers, 0 to 100."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return (
            f"self_bleu|references:{self.references}|tok:{_tokenizer(language)}"
            f"|sacrebleu:{version('sacrebleu')}"
        )


def _tokenizer(language: str) -> str:
    if language not in WITHOUT_SPACES:
        return "13a"
    return "zh" if language == "zh" else "char"
