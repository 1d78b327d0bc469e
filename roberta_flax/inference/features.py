"""Features of one input, with what they are of, as a file has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.hub import Roberta

SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class TextFeatures:
    """Features of one input.

    Attributes:
      of: "tokens" or "words".
      inputs: the token ids, int32 [time], or the words, str [words].
      features: float32 [1, time, hidden] or [words, hidden]; of all layers with an axis of [layers + 1] before.
    """

    of: str
    inputs: npt.NDArray[Any]
    features: npt.NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Writes .npy, the features alone, or .npz, with the inputs under "tokens" or "words".

        Raises:
          InputError: another suffix, or the file cannot be written.
        """
        check_suffix(path)
        try:
            with path.open("wb") as file:
                if path.suffix == ".npy":
                    np.save(file, self.features)
                else:
                    np.savez(file, allow_pickle=False, **{self.of: self.inputs}, features=self.features)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None


def check_suffix(path: Path) -> None:
    """Raises InputError for a file that TextFeatures.save does not write."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the output file must end in {' or '.join(SUFFIXES)}")


def text_features(
    roberta: Roberta, texts: Sequence[str], *, all_layers: bool = False, words: bool = False
) -> TextFeatures:
    """Features of a text, or of several that are one input, by token or by word.

    Args:
      roberta: the model.
      texts: one, or several that Roberta.encode joins.
      all_layers: whether those of the embeddings and of every layer, not of the last alone.
      words: whether by spaCy's words in place of tokens; of one text.

    Raises:
      InputError: words of several texts, or as Roberta.extract_features and Roberta.word_features.
    """
    if words:
        if len(texts) != 1:
            raise InputError(f"features of words are of one text, got {len(texts)}")
        aligned = roberta.word_features(texts[0], return_all_hiddens=all_layers)
        return TextFeatures("words", np.array(aligned.words), np.asarray(aligned.features, np.float32))
    tokens = roberta.encode(*texts)
    found = roberta.extract_features(tokens, True) if all_layers else roberta.extract_features(tokens)
    return TextFeatures("tokens", tokens, np.asarray(found, np.float32))
