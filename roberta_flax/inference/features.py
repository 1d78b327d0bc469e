"""Extracts the features of one input, and saves them with its tokens or words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.files import replacing
from roberta_flax.hub import Roberta
from roberta_flax.tasks.base import check_finite

SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class TextFeatures:
    """Features of one input.

    Attributes:
      of: what the features belong to, "tokens" or "words".
      inputs: the token ids, int32 [time], or the words, str [words].
      features: float32 [1, time, hidden] or [words, hidden]; for all layers, with a leading axis of layers + 1.
    """

    of: str
    inputs: npt.NDArray[Any]
    features: npt.NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Saves the features alone as .npy, or as .npz together with the inputs under "tokens" or "words".

        The file is replaced only when the new one is complete.

        Raises:
          InputError: the file has another suffix or cannot be written.
        """
        check_suffix(path)
        content = io.BytesIO()  # numpy's own writing to a file loses the reason of an error
        if path.suffix == ".npy":
            np.save(content, self.features)
        else:
            np.savez(content, allow_pickle=False, **{self.of: self.inputs}, features=self.features)
        with replacing(path) as file:
            file.write(content.getbuffer())


def check_suffix(path: Path) -> None:
    """Raises InputError unless TextFeatures.save writes files with this suffix."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the output file must end in {' or '.join(SUFFIXES)}")


def text_features(
    roberta: Roberta, texts: Sequence[str], *, all_layers: bool = False, words: bool = False
) -> TextFeatures:
    """Extracts the features of one input, for its tokens or its words.

    Args:
      roberta: the model.
      texts: one text, or several that Roberta.encode joins.
      all_layers: whether to return the embeddings and every layer, instead of only the last layer.
      words: whether to return features of spaCy's words instead of tokens. This takes one text.

    Raises:
      InputError: `words` is given with several texts, the features are NaN or infinite, or as in
        Roberta.extract_features and Roberta.word_features.
    """
    extracted = _extract(roberta, texts, all_layers=all_layers, words=words)
    check_finite(extracted.features)
    return extracted


def _extract(roberta: Roberta, texts: Sequence[str], *, all_layers: bool, words: bool) -> TextFeatures:
    if words:
        if len(texts) != 1:
            raise InputError(f"features of words take one text, got {len(texts)}")
        aligned = roberta.word_features(texts[0], return_all_hiddens=all_layers)
        return TextFeatures("words", np.array(aligned.words), np.asarray(aligned.features, np.float32))
    tokens = roberta.encode(*texts)
    found = roberta.extract_features(tokens, True) if all_layers else roberta.extract_features(tokens)
    return TextFeatures("tokens", tokens, np.asarray(found, np.float32))
