"""How a corpus becomes pretraining samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from roberta_flax.train.progress import report

if TYPE_CHECKING:
    from roberta_flax.nn.config import RobertaConfig
    from roberta_flax.text.tokenizer import Tokenizer
    from roberta_flax.train.pretraining import MaskedBatches


@dataclass(frozen=True)
class Samples:
    """The options that say what is predicted of a file of tokens.

    Attributes:
      break_mode, tokens_per_sample: as in Corpus.blocks; as long as the model takes if not given.
      mask_prob, leave_unmasked_prob, random_token_prob, whole_words: as in Masking.
      seed: of order and masks.
    """

    break_mode: str
    tokens_per_sample: int | None
    mask_prob: float
    leave_unmasked_prob: float
    random_token_prob: float
    whole_words: bool
    seed: int

    def batches(
        self, path: Path, tokenizer: Tokenizer, config: RobertaConfig, rows: int, accumulate: int | None = None
    ) -> tuple[MaskedBatches, dict[str, int]]:
        """A file's batches for a model, and what tells the file from others; says on stderr what is left out."""
        from roberta_flax.errors import InputError
        from roberta_flax.train.corpus import Corpus
        from roberta_flax.train.masking import Masking
        from roberta_flax.train.pretraining import MaskedBatches

        corpus = Corpus(path)
        corpus.check_tokenizer(tokenizer)
        longest = config.max_positions if self.tokens_per_sample is None else self.tokens_per_sample
        if longest > config.max_positions:
            raise InputError(
                f"--tokens-per-sample must be at most the model's {config.max_positions} positions, got {longest}"
            )
        blocks = corpus.blocks(self.break_mode, longest, bos_id=tokenizer.bos_id)
        if blocks.dropped:
            report(
                f"{path}: {blocks.dropped} of {blocks.dropped + len(blocks)} samples are longer than {longest} tokens "
                "and left out; cut their lines, or take --sample-break-mode none"
            )
        masking = Masking.of(
            tokenizer,
            whole_words=self.whole_words,
            mask_prob=self.mask_prob,
            leave_unmasked_prob=self.leave_unmasked_prob,
            random_token_prob=self.random_token_prob,
        )
        batches = MaskedBatches(
            blocks, masking, rows=rows, max_positions=config.max_positions, seed=self.seed, accumulate=accumulate
        )
        return batches, {"tokens": corpus.header.tokens, "crc32": corpus.header.crc32}
