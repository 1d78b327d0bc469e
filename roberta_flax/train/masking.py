"""Dynamic masking, as in fairseq's MaskTokensDataset.

`Masking.apply` draws the same random numbers as fairseq, in the same order, so that the same generator gives the same
masks. The generator is seeded differently: fairseq's seed is hash((seed, epoch, index)) % 1e6, which has only some
15,000 distinct values. Here every (seed, epoch, index) has its own stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.text.fairseq_tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from roberta_flax.text.tokenizer import Tokenizer

Block = npt.NDArray[np.int32]  # one sequence of token ids, [length]

_LARGEST_RANDOM = 1 - 2**-53  # the largest number that Generator.random returns


def whole_word_begins(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Returns which token ids begin a word, bool [vocab_size] (fairseq/data/encoders/utils.py, get_whole_word_mask).

    These are the ids whose text begins with a space; `<s>`, `<pad>`, `</s>`, `<unk>`; and symbols that are not pieces
    of the BPE. As in fairseq, `</s>` and the first word of the next line, which has no space before it, are one word.

    Raises:
      InputError: the pieces of the tokenizer do not say where a word begins.
    """
    return tokenizer.word_begins()


@dataclass(frozen=True, eq=False)
class Masking:
    """How tokens are masked.

    Attributes:
      vocab_size, mask_id: the tokenizer's.
      mask_prob: the share of tokens, or of words, to predict, including `<s>` and `</s>`.
      leave_unmasked_prob: the share of these that are left unchanged.
      random_token_prob: the share of these that are replaced by a random token, drawn uniformly from all but those of
        special_ids.
      word_begins: bool [vocab_size]: which ids begin a word, to mask whole words. None masks tokens.
      special_ids: the tokenizer's; by default fairseq's four.
    """

    vocab_size: int
    mask_id: int
    mask_prob: float = 0.15
    leave_unmasked_prob: float = 0.1
    random_token_prob: float = 0.1
    word_begins: npt.NDArray[np.bool_] | None = None
    special_ids: frozenset[int] = frozenset({BOS_ID, PAD_ID, EOS_ID, UNK_ID})

    def __post_init__(self) -> None:
        if not 0 < self.mask_prob < 1:
            raise InputError(f"mask_prob must be over 0 and under 1, got {self.mask_prob}")
        kept, random = self.leave_unmasked_prob, self.random_token_prob
        if not (kept >= 0 and random >= 0 and kept + random <= 1):
            raise InputError(
                f"leave_unmasked_prob and random_token_prob must be 0 or more, and at most 1 together, got {kept} and "
                f"{random}"
            )

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, whole_words: bool = False, **probabilities: float) -> Self:
        """Returns the masking for a tokenizer. `probabilities` are attributes."""
        begins = whole_word_begins(tokenizer) if whole_words else None
        return cls(
            tokenizer.vocab_size,
            tokenizer.mask_id,
            **probabilities,
            word_begins=begins,
            special_ids=tokenizer.special_ids,
        )

    def apply(self, tokens: Block, random: np.random.Generator) -> tuple[Block, npt.NDArray[np.int64]]:
        """Masks one sequence.

        Args:
          tokens: int32 [length].
          random: the random generator.

        Returns:
          The masked sequence, int32 [length], and the positions to predict, int64 [masked], ascending.
        """
        word_of = None
        units = len(tokens)
        if self.word_begins is not None:
            begins = self.word_begins[tokens]
            begins[0] = True
            word_of = begins.cumsum() - 1
            units = int(word_of[-1]) + 1
        chosen = np.zeros(units, bool)
        # A random number is added before rounding down, so that the mean share is mask_prob.
        chosen[random.choice(units, int(self.mask_prob * units + random.random()), replace=False)] = True
        kept, replaced = self._draw_exceptions(chosen, random)
        masked = chosen & ~kept
        if word_of is not None:
            chosen, masked, replaced = chosen[word_of], masked[word_of], replaced[word_of]
        result = tokens.copy()
        result[masked] = self.mask_id
        if count := int(replaced.sum()):
            result[replaced] = self._draw_replacements(count, random)
        return result, np.flatnonzero(chosen)

    def _draw_exceptions(
        self, chosen: npt.NDArray[np.bool_], random: np.random.Generator
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Draws which of the chosen units are left unchanged, and which are replaced by a random token."""
        exceptional = self.leave_unmasked_prob + self.random_token_prob
        none = np.zeros_like(chosen)
        if exceptional == 0:
            return none, none
        exceptions = chosen & (random.random(len(chosen)) < exceptional)
        if self.random_token_prob == 0:
            return exceptions, none
        if self.leave_unmasked_prob == 0:
            return none, exceptions
        stays = random.random(len(chosen)) < self.leave_unmasked_prob / exceptional
        return exceptions & stays, exceptions & ~stays

    def _draw_replacements(self, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
        return _replacement_distribution(self.vocab_size, self.special_ids).searchsorted(
            random.random(count), side="right"
        )

    def most(self, time: int) -> int:
        """Returns the maximum number of masked positions in a row of `time` tokens, unless whole words are masked."""
        return min(int(self.mask_prob * time + _LARGEST_RANDOM), time)


@lru_cache(maxsize=4)
def _replacement_distribution(vocab_size: int, special_ids: frozenset[int]) -> npt.NDArray[np.float64]:
    """Returns the cumulative distribution of replacements, which Generator.choice computes from fairseq's weights."""
    weights = np.ones(vocab_size)
    weights[[i for i in special_ids if i < vocab_size]] = 0
    cumulative: npt.NDArray[np.float64] = (weights / weights.sum()).cumsum()
    cumulative /= cumulative[-1]
    return cumulative


def mask_block(
    tokens: Block, masking: Masking, *, seed: int, epoch: int, index: int
) -> tuple[Block, npt.NDArray[np.int64]]:
    """Applies a masking with random numbers that depend only on the seed, the epoch and the block's index."""
    return masking.apply(tokens, stream(seed, epoch, index))


def stream(seed: int, *numbers: int) -> np.random.Generator:
    """Returns a random generator that is independent for each seed and each tuple of `numbers`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))
