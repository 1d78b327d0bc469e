"""Answers to questions in a context, as Transformers' pipeline finds them by the outputs of a span head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.special

from roberta_flax.errors import InputError
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Model, Task, check_count
from roberta_flax.tasks.token_logits import TokenLogits, WindowLogits, windows_of
from roberta_flax.text.encoding import EncodedSequence, OnLong
from roberta_flax.text.windows import TokenWindow

_CONTEXT = 1  # the number of the context among the texts; the question's is 0
EXCLUDED = -10000.0  # the logit of tokens that are in no answer
_MAX_LENGTH = 384  # of a window, as in Transformers' question-answering pipeline


@dataclass(frozen=True)
class Answer(TokenLogits):
    """Finds the answers to each question in its context, with a span head.

    An input is a question and its context. The result is that of `find_answers`, a list of dicts. By default a long
    context is split into windows, of 384 tokens or the model's maximum length.

    Attributes:
      head, stride: as in TokenLogits.
      top_k, max_answer_length, handle_impossible_answer, align_to_words: as in `find_answers`.
      max_length: the default maximum length of a window in tokens, the question included.
    """

    top_k: int = 1
    max_answer_length: int = 15
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    max_length: int | None = None

    kind: ClassVar[str] = "span"
    on_long: ClassVar[OnLong] = "window"

    def of(self, model: Model) -> Task:
        """The task as `model` does it, with the length of its windows."""
        longest = model.usage.max_length or model.config.max_positions
        return self if self.max_length else replace(self, max_length=min(longest, _MAX_LENGTH))

    def check(self, config: RobertaConfig) -> None:
        super().check(config)
        check_count("top_k (--topk)", self.top_k)
        check_count("max_answer_length", self.max_answer_length)

    def texts_of(self, given: Any) -> Sequence[str]:
        if not isinstance(given, list | tuple) or len(given) != 2:
            raise InputError(f"expected a question and its context, got {given!r:.80}")
        for name, text in zip(("question", "context"), given, strict=True):
            if not isinstance(text, str) or not text:
                raise InputError(f"the {name} must be a text that is not empty, got {text!r:.80}")
        return given

    def result(
        self, text_input: Any, sequences: Sequence[EncodedSequence], results: Sequence[Any], model: Model
    ) -> Any:
        return find_answers(
            text_input[_CONTEXT],
            windows_of(sequences, results),
            first_id=model.tokenizer.backend.bos_id,
            top_k=self.top_k,
            max_answer_length=self.max_answer_length,
            handle_impossible_answer=self.handle_impossible_answer,
            align_to_words=self.align_to_words,
        )


def find_answers(
    context: str,
    windows: Sequence[WindowLogits],
    *,
    first_id: int | None,
    top_k: int = 1,
    max_answer_length: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> list[dict[str, Any]]:
    """Finds the likeliest answers to a question.

    Args:
      context: the second text of the pair, after the question.
      windows: the outputs of a span head, [length, 2], for windows over the context.
      first_id: the id of the token that begins an input, which stands for no answer.
      top_k: how many answers to find.
      max_answer_length: maximum length of an answer in tokens.
      handle_impossible_answer: whether no answer, the empty text, is an answer.
      align_to_words: whether to extend an answer to the beginning and the end of its words.

    Returns:
      {"score", "start", "end", "answer"} for each answer, the likeliest first. Answers with the same text, in upper or
      lower case, are one, whose score is the sum of theirs.
    """
    answers: dict[str, dict[str, Any]] = {}
    lowest_null_score = np.inf
    # spans that differ may be the same words
    candidates = top_k * 2 + 10 if align_to_words else top_k
    for tokens, logits in windows:
        allowed = (tokens.texts == _CONTEXT) | (tokens.ids == first_id)
        starts, ends = scipy.special.softmax(np.where(allowed[:, None], logits, EXCLUDED), axis=0).T
        lowest_null_score = min(lowest_null_score, float(starts[0] * ends[0]))
        starts[0] = ends[0] = 0.0
        for first, last, score in likeliest_spans(starts, ends, allowed, candidates, max_answer_length):
            start, end = _characters(tokens, first, last, align_to_words)
            answer: dict[str, Any] = {"score": score, "start": start, "end": end, "answer": context[start:end]}
            known = answers.setdefault(answer["answer"].lower(), answer)
            if known is not answer:
                known["score"] += score
    found = list(answers.values())
    if handle_impossible_answer:
        found.append({"score": lowest_null_score, "start": 0, "end": 0, "answer": ""})
    return sorted(found, key=lambda answer: float(answer["score"]), reverse=True)[:top_k]


def likeliest_spans(
    starts: npt.NDArray[Any], ends: npt.NDArray[Any], allowed: npt.NDArray[np.bool_], count: int, max_length: int
) -> list[tuple[int, int, float]]:
    """The first token, the last token and the probability of the `count` likeliest spans, the likeliest first.

    Spans that begin or end at tokens that are not allowed are left out.
    """
    joint = np.tril(np.triu(np.outer(starts, ends)), max_length - 1)
    scores = joint.ravel()
    if count == 1:
        order = np.array([scores.argmax()])
    elif len(scores) <= count:
        order = (-scores).argsort()
    else:
        likeliest = np.argpartition(-scores, count)[:count]
        order = likeliest[(-scores[likeliest]).argsort()]
    firsts, lasts = np.unravel_index(order, joint.shape)
    return [
        (int(first), int(last), joint[first, last].item())
        for first, last in zip(firsts, lasts, strict=True)
        if allowed[first] and allowed[last]
    ]


def _characters(tokens: TokenWindow, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """The characters of a span of tokens in their text, or if they are in words of the context, of these words."""
    if align_to_words:
        first_word, last_word = (
            np.flatnonzero((tokens.texts == _CONTEXT) & (tokens.words == tokens.words[i]) & (tokens.words[i] >= 0))
            for i in (first, last)
        )
        if len(first_word) and len(last_word):
            return int(tokens.spans[first_word[0], 0]), int(tokens.spans[last_word[-1], 1])
    return int(tokens.spans[first, 0]), int(tokens.spans[last, 1])
