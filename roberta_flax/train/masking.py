"""Dynamic masking, as fairseq's MaskTokensDataset does it.

`Masking.apply` draws what fairseq draws, in its order: from the same random generator both make the same masks. The
generator is seeded otherwise: fairseq takes hash((seed, epoch, index)) % 1e6, of which there are some 15,000 different
values; here every (seed, epoch, index) has a stream of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.text.tokenizer import BOS, EOS, MASK, PAD, UNK, Tokenizer

Block = npt.NDArray[np.int32]  # one sequence of token ids, [length]

_SPECIALS = 4  # fairseq's Dictionary.nspecial: <s>, <pad>, </s>, <unk>
_LARGEST_RANDOM = 1 - 2**-53  # that Generator.random gives


def whole_word_begins(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Which token ids begin a word, bool [vocab_size] (fairseq/data/encoders/utils.py, get_whole_word_mask).

    Those whose text begins with a space; `<s>`, `<pad>`, `</s>`, `<unk>`; and symbols that are no pieces of the BPE. So
    `</s>` and the first word of the line after it, which has no space before it, are one word, as in fairseq.
    """
    pieces = tokenizer.bpe.symbols

    def begins(number: int, symbol: str) -> bool:
        if number < _SPECIALS or symbol in (BOS, PAD, EOS, UNK):
            return True
        return symbol != MASK and (symbol not in pieces or tokenizer.token_text(number).startswith(" "))

    return np.array([begins(number, symbol) for number, symbol in enumerate(tokenizer.dictionary.symbols)])


@dataclass(frozen=True, eq=False)
class Masking:
    """What is masked, and by what.

    Attributes:
      vocab_size, mask_id: of the tokenizer.
      mask_prob: the share of tokens, or of words, that are predicted, `<s>` and `</s>` among them.
      leave_unmasked_prob: the share of these that stay as they are.
      random_token_prob: the share of these that become another token: any but the four specials, each as likely.
      word_begins: bool [vocab_size], to mask whole words: which ids begin one. None to mask tokens.
    """

    vocab_size: int
    mask_id: int
    mask_prob: float = 0.15
    leave_unmasked_prob: float = 0.1
    random_token_prob: float = 0.1
    word_begins: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mask_prob < 1:
            raise InputError(f"mask_prob must be over 0 and under 1, got {self.mask_prob}")
        kept, random = self.leave_unmasked_prob, self.random_token_prob
        if kept < 0 or random < 0 or kept + random > 1:
            raise InputError(
                f"leave_unmasked_prob and random_token_prob must be 0 or more, and 1 together at most, got {kept} and "
                f"{random}"
            )

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, whole_words: bool = False, **probabilities: float) -> Self:
        """The masking for a tokenizer; `probabilities` are the attributes of that name."""
        begins = whole_word_begins(tokenizer) if whole_words else None
        return cls(tokenizer.vocab_size, tokenizer.mask_id, **probabilities, word_begins=begins)

    def apply(self, tokens: Block, random: np.random.Generator) -> tuple[Block, npt.NDArray[np.int64]]:
        """Masks one sequence.

        Args:
          tokens: int32 [length].
          random: where the draws come from.

        Returns:
          The sequence with masks, int32 [length], and the positions that are to be predicted, ascending: [masked].
        """
        word_of = None
        units = len(tokens)
        if self.word_begins is not None:
            begins = self.word_begins[tokens]
            begins[0] = True
            word_of = begins.cumsum() - 1
            units = int(word_of[-1]) + 1
        chosen = np.zeros(units, bool)
        # a random number is added for the rounding, so that the share is mask_prob on average
        chosen[random.choice(units, int(self.mask_prob * units + random.random()), replace=False)] = True
        kept, replaced = self._exceptions(chosen, random)
        masked = chosen & ~kept
        if word_of is not None:
            chosen, masked, replaced = chosen[word_of], masked[word_of], replaced[word_of]
        result = tokens.copy()
        result[masked] = self.mask_id
        if count := int(replaced.sum()):
            result[replaced] = self._replacements(count, random)
        return result, np.flatnonzero(chosen)

    def _exceptions(
        self, chosen: npt.NDArray[np.bool_], random: np.random.Generator
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Of the units that were chosen, which stay as they are, and which become another token."""
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

    def _replacements(self, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
        return _cumulative(self.vocab_size).searchsorted(random.random(count), side="right")

    def most(self, time: int) -> int:
        """The most positions that a row of `time` tokens can have masked, if words are not masked whole."""
        return min(int(self.mask_prob * time + _LARGEST_RANDOM), time)


@lru_cache(maxsize=4)
def _cumulative(vocab_size: int) -> npt.NDArray[np.float64]:
    """The cumulative distribution that Generator.choice makes, in every call, of fairseq's weights of replacements."""
    weights = np.ones(vocab_size)
    weights[:_SPECIALS] = 0
    cumulative: npt.NDArray[np.float64] = (weights / weights.sum()).cumsum()
    cumulative /= cumulative[-1]
    return cumulative


def mask_block(
    tokens: Block, masking: Masking, *, seed: int, epoch: int, index: int
) -> tuple[Block, npt.NDArray[np.int64]]:
    """`Masking.apply` with random numbers that depend on the seed, the epoch and the block's index alone."""
    return masking.apply(tokens, stream(seed, epoch, index))


def stream(seed: int, *numbers: int) -> np.random.Generator:
    """The random numbers of a seed that `numbers` name: other numbers, or more or fewer, other ones."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))
