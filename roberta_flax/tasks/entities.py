"""Entities in texts, as Transformers' token-classification pipeline finds them by the outputs of a token head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.special

from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Model, one_head
from roberta_flax.tasks.token_logits import TokenLogits, WindowLogits, windows_of
from roberta_flax.text.encoding import EncodedSequence
from roberta_flax.text.tokenizer import Tokenizer

AGGREGATIONS = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class Tag(TokenLogits):
    """Finds the entities of each text, or labels its tokens, with a token head.

    The result is that of `find_entities`, a list of dicts. If on_long is "window", the entities are those of all
    windows of a text over the maximum length.

    Attributes:
      head, stride: as in TokenLogits.
      aggregation, ignored: as in `find_entities`.
      labels: names of the head's classes, in place of its own.
    """

    aggregation: str = "simple"
    ignored: tuple[str, ...] = ("O",)
    labels: tuple[str, ...] = ()

    kind: ClassVar[str] = "token"

    def check(self, config: RobertaConfig) -> None:
        super().check(config)
        if self.aggregation not in AGGREGATIONS:
            raise InputError(
                f"aggregation (--aggregation) must be one of {', '.join(AGGREGATIONS)}, got {self.aggregation!r}"
            )

    def texts_of(self, given: Any) -> Sequence[str]:
        if not isinstance(given, str):
            raise InputError(f"expected a text, got {type(given).__name__}: {given!r:.80}")
        return [given]

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        labels = self.labels or one_head(model.config, self.kind, self.head).label_names
        windows = windows_of(sequences, results)
        return find_entities(model.tokenizer, text_input, windows, labels, self.aggregation, self.ignored)


class _Part(NamedTuple):
    """A token, or a word of several.

    Attributes:
      position: of the token in its window.
      name: the token as its vocabulary writes it, or the text of a word.
      scores: [classes], the probability of each class.
      start, end: its characters.
      continues: whether it continues the word of the token before.
    """

    position: int
    name: str
    scores: npt.NDArray[Any]
    start: int
    end: int
    continues: bool = False


def find_entities(
    tokenizer: Tokenizer,
    text: str,
    windows: Sequence[WindowLogits],
    labels: Sequence[str],
    aggregation: str = "none",
    ignored: Collection[str] = ("O",),
) -> list[dict[str, Any]]:
    """Finds the entities of a text.

    Args:
      tokenizer: the model's tokenizer.
      text: the text.
      windows: the outputs of a token head for the text.
      labels: the names of the head's classes. `B-` begins an entity, and `I-` continues one.
      aggregation: one of AGGREGATIONS: "none" for each token by itself, "simple" for neighbors with the same label
        together; "first", "average" or "max" also give all tokens of a word the label of the first of them, of their
        average, or of the one with the highest score.
      ignored: the labels to leave out.

    Returns:
      For each token, without aggregation: entity, score, index, word, start, end. Otherwise for each entity:
      entity_group, score, word, start, end. Of entities in several windows that overlap, the longest is kept.
    """
    found: list[dict[str, Any]] = []
    for window in windows:
        tokens = list(_tokens(tokenizer, text, window))
        if aggregation == "none":
            key, entities = "entity", [_entity_of_token(token, labels) for token in tokens]
        else:
            words = tokens if aggregation == "simple" else _words(tokenizer, tokens, aggregation)
            groups = label_groups([_label(word, labels) for word in words])
            key = "entity_group"
            entities = [_entity(tokenizer, words[group], labels) for group in groups]
        found += [entity for entity in entities if entity[key] not in ignored]
    return _without_overlaps(found) if len(windows) > 1 else found


def _tokens(tokenizer: Tokenizer, text: str, window: WindowLogits) -> Iterator[_Part]:
    """The tokens of the text, without the special tokens around it."""
    tokens, scores = window.tokens, scipy.special.softmax(window.logits, axis=-1)
    for index in np.flatnonzero(tokens.texts >= 0).tolist():
        token_id, (start, end) = int(tokens.ids[index]), tokens.spans[index].tolist()
        name = tokenizer.token_name(token_id)
        if token_id == tokenizer.backend.unk_id:
            is_part = bool(text[end : end + 1].strip())
            name, continues = text[start:end] + tokenizer.continuation_mark * is_part, False
        elif tokenizer.marks_continuations:
            continues = len(name) != end - start
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        yield _Part(index, name, scores[index], start, end, continues)


def _words(tokenizer: Tokenizer, tokens: Sequence[_Part], aggregation: str) -> list[_Part]:
    """Joins the tokens of each word, with the scores that `aggregation` makes of theirs."""
    words: list[list[_Part]] = []
    for token in tokens:
        if token.continues and words:
            words[-1].append(token)
        else:
            words.append([token])
    return [
        _Part(
            word[0].position,
            tokenizer.join_names([token.name for token in word]),
            _word_scores([token.scores for token in word], aggregation),
            word[0].start,
            word[-1].end,
        )
        for word in words
    ]


def _word_scores(scores: Sequence[npt.NDArray[Any]], aggregation: str) -> npt.NDArray[Any]:
    if aggregation == "average":
        return np.asarray(np.mean(scores, axis=0))
    return scores[0] if aggregation == "first" else max(scores, key=lambda each: float(each.max()))


def label_groups(labels: Sequence[str]) -> list[slice]:
    """Groups neighbors with the same tag; `B-` begins a group."""
    tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    begins = [i for i, label in enumerate(labels) if i == 0 or tags[i] != tags[i - 1] or label.startswith("B-")]
    return [slice(begin, end) for begin, end in zip(begins, [*begins[1:], len(labels)], strict=True)]


def _label(part: _Part, labels: Sequence[str]) -> str:
    return labels[int(part.scores.argmax())]


def _entity_of_token(token: _Part, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "entity": _label(token, labels),
        "score": token.scores.max().item(),
        "index": token.position,
        "word": token.name,
        "start": token.start,
        "end": token.end,
    }


def _entity(tokenizer: Tokenizer, parts: Sequence[_Part], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "entity_group": _label(parts[0], labels).split("-", 1)[-1],
        "score": np.mean([part.scores.max() for part in parts]).item(),
        "word": tokenizer.join_names([part.name for part in parts]),
        "start": parts[0].start,
        "end": parts[-1].end,
    }


def _without_overlaps(entities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that overlap the one kept so far, keeps the longest, and of several such the likeliest."""
    ordered = sorted(entities, key=lambda each: int(each["start"]))
    kept = ordered[:1]
    for entity in ordered:  # the first too: without characters, it overlaps nothing, and Transformers gives it twice
        if not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif _length_and_score(entity) > _length_and_score(kept[-1]):
            kept[-1] = entity
    return kept


def _length_and_score(entity: dict[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
