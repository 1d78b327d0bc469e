"""The options that turn a corpus into pretraining samples."""

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
    """How a file of token ids is split into samples and masked.

    Attributes:
      break_mode: as in Corpus.blocks.
      tokens_per_sample: as in Corpus.blocks; the default is the model's maximum length.
      mask_prob, leave_unmasked_prob, random_token_prob: as in Masking.
      whole_words: whether to mask whole words.
      seed: the seed of the order and the masks.
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
        """Returns the batches of a file for a model, and values that identify the file. Dropped samples are reported.

        Args:
          path: a file that corpus.write made.
          tokenizer: the tokenizer of the model and the file.
          config: the model's configuration.
          rows: number of rows in a batch.
          accumulate: number of batches in a step, as in MaskedBatches.

        Raises:
          InputError: the file cannot be read, it was encoded with another tokenizer, or these options are out of range.
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
                "are dropped; split their lines, or use --sample-break-mode none"
            )
        masking = Masking.of(
            tokenizer,
            whole_words=self.whole_words,
            mask_prob=self.mask_prob,
            leave_unmasked_prob=self.leave_unmasked_prob,
            random_token_prob=self.random_token_prob,
        )
        batches = MaskedBatches(
            blocks,
            masking,
            rows=rows,
            max_positions=config.max_positions,
            seed=self.seed,
            accumulate=accumulate,
            pad_id=config.pad_id,
        )
        return batches, {"tokens": corpus.header.tokens, "crc32": corpus.header.crc32}
