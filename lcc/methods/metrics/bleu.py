"""Corpus BLEU as sacreBLEU computes it (Papineni et al., 2002; Post, 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

ORDER = 4
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my")


@card
class Bleu:
    """sacreBLEU's counts and smoothing; `tokenize: auto` is `zh` for Chinese, `13a` for most."""

    word: ClassVar[str] = "bleu"
    label: ClassVar[str] = "BLEU"
    order: ClassVar[int] = 10
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "BLEU"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    tokenize: Literal["auto", "13a", "zh", "intl", "char"] = "auto"

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: output length, reference length, 4 matches, 4 totals."""
        import numpy as np

        outputs = [answer.output or "" for answer in answers]
        references = [[answer.reference for answer in answers]]
        counts = self._scorer(language)._extract_corpus_statistics(outputs, references)
        return np.asarray(counts, dtype=np.float64).reshape(len(answers), 2 + 2 * ORDER)

    def score(self, sums: Floats) -> Floats:
        """Exponentially smoothed precisions under the brevity penalty, 0 to 100."""
        import numpy as np

        length, wanted = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + ORDER], sums[..., 2 + ORDER :]
        halvings = np.cumsum((matches == 0) & (totals > 0), axis=-1)
        smoothed = np.where(matches > 0, matches, 0.5**halvings)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(smoothed / totals).mean(axis=-1)
            brevity = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        # Without any 4-gram in the outputs BLEU is zero by definition.
        defined = (matches.sum(axis=-1) > 0) & (totals[..., -1] > 0)
        return np.where(defined, 100 * brevity * np.exp(np.where(defined, logs, 0.0)), 0.0)

    def signature(self, language: str) -> str:
        scorer = self._scorer(language)
        scorer.corpus_score(["a"], [["a"]])  # The signature counts references: it needs some.
        return f"BLEU|{scorer.get_signature()}"

    def _scorer(self, language: str) -> Any:
        from sacrebleu.metrics.bleu import BLEU

        chosen = self.tokenize
        if chosen == "auto":
            chosen = "13a"
            if language in WITHOUT_SPACES:
                chosen = "zh" if language == "zh" else "char"
        return BLEU(tokenize=chosen)
