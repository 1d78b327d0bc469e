"""How a corpus becomes pretraining samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.text.tokenizer import Tokenizer
from roberta_flax.train.corpus import Corpus
from roberta_flax.train.masked_batches import MaskedBatches
from roberta_flax.train.masking import Masking
from roberta_flax.train.progress import report


@dataclass(frozen=True)
class Samples:
    """What is predicted of a file of tokens.

    Attributes:
      break_mode, tokens_per_sample: as in Corpus.blocks; as long as the model takes if not given.
      mask_prob, leave_unmasked_prob, random_token_prob, whole_words: as in Masking.
      seed: of order and masks.
    """

    break_mode: str = "complete"
    tokens_per_sample: int | None = None
    mask_prob: float = 0.15
    leave_unmasked_prob: float = 0.1
    random_token_prob: float = 0.1
    whole_words: bool = False
    seed: int = 1

    def batches(
        self, path: Path, tokenizer: Tokenizer, config: RobertaConfig, rows: int, accumulate: int | None = None
    ) -> tuple[MaskedBatches, dict[str, int]]:
        """A file's batches for a model, and what tells the file from others; says on stderr what is left out.

        Args:
          path: a file that corpus.write made.
          tokenizer: of the model, and of the file.
          config: of the model.
          rows: of a batch.
          accumulate: batches of a step, as in MaskedBatches.

        Raises:
          InputError: a file that cannot be read, tokens of another tokenizer, or samples or masks that cannot be.
        """
        corpus = Corpus(path)
        corpus.check_tokenizer(tokenizer)
        longest = config.max_positions if self.tokens_per_sample is None else self.tokens_per_sample
        if longest > config.max_positions:
            raise InputError(
                f"tokens_per_sample must be at most the model's {config.max_positions} positions, got {longest}"
            )
        blocks = corpus.blocks(self.break_mode, longest, bos_id=tokenizer.bos_id)
        if blocks.dropped:
            report(
                f"{path}: {blocks.dropped} of {blocks.dropped + len(blocks)} samples are over {longest} tokens and "
                "left out; split their lines, or use --sample-break-mode none"
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
