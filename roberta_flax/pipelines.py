"""pipeline(): tasks with the arguments and the results of Transformers' pipelines (4.57).

>>> classify = pipeline("text-classification", model="hf:org/name")
>>> classify(["a first text", {"text": "a premise", "text_pair": "a hypothesis"}], top_k=None)

A pipeline takes one input, a list of inputs, or an iterator, for which it returns an iterator of results. Inputs are
laid out in batches by their tokens (`Predictor`), so `batch_size` has no effect on results. Arguments that a pipeline
does not know are refused by name.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.special

from roberta_flax.encoders import load_with_predictor
from roberta_flax.errors import InputError
from roberta_flax.files import PathLike
from roberta_flax.hub import Roberta
from roberta_flax.nn.config import HeadConfig
from roberta_flax.tasks.answers import Answer
from roberta_flax.tasks.base import Task, check_count
from roberta_flax.tasks.embed import Embed
from roberta_flax.tasks.entities import AGGREGATIONS, Tag
from roberta_flax.tasks.fill_mask import Fillings, FillMasks
from roberta_flax.tasks.sentence_scores import SentenceScores
from roberta_flax.tasks.zero_shot import ZeroShot, entailment_class
from roberta_flax.text.encoding import OnLong

_FUNCTIONS = ("sigmoid", "softmax", "none")  # ClassificationFunction
_TRUNCATIONS = (False, True, "longest_first", "do_not_truncate")


def pipeline(task: str, model: PathLike | Roberta, **options: Any) -> Pipeline:
    """Loads a model for a task.

    Args:
      task: one of PIPELINES: "text-classification" (or "sentiment-analysis"), "zero-shot-classification",
        "feature-extraction", "token-classification" (or "ner"), "fill-mask" or "question-answering".
      model: what roberta_flax.load takes, or a model that is loaded already.
      options: of roberta_flax.load (dtype, quantize, ...), of roberta_flax.Predictor (devices, tokens_per_batch, ...),
        and arguments of the pipeline's calls, as their defaults.

    Returns:
      A function of inputs; see the class of the task.

    Raises:
      InputError: the task or an option is unknown, or the model cannot do the task.
      CheckpointError, DownloadError: as roberta_flax.load.
    """
    if task not in PIPELINES:
        raise InputError(f"task must be one of {', '.join(PIPELINES)}, got {task!r}")
    return PIPELINES[task](model, **options)


class Pipeline:
    """A task over a loaded model. `arguments` are the names of the arguments of its calls."""

    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: PathLike | Roberta, **options: Any) -> None:
        self._defaults = {name: value for name, value in options.items() if name in self._known}
        others = {name: value for name, value in options.items() if name not in self._known}
        self.model, self._predictor = load_with_predictor(model, others, type(self).__name__)

    @property
    def _known(self) -> tuple[str, ...]:
        return (*self.arguments, "batch_size")

    def _check_known(self, given: Iterable[str]) -> None:
        if unknown := [name for name in given if name not in self._known]:
            known = ", ".join(self._known)
            raise InputError(f"{type(self).__name__} does not know {', '.join(unknown)}; its calls take {known}")

    def __call__(self, inputs: Any, **arguments: Any) -> Any:
        """The result of an input, a list with that of each, or an iterator of them if `inputs` is an iterator."""
        self._check_known(arguments)
        given = {**self._defaults, **arguments}
        given.pop("batch_size", None)
        if self._is_single(inputs):
            (result,) = self._results(iter([inputs]), given)
            return self._single(inputs, result, arguments)
        results = self._results(iter(inputs), given)
        return results if isinstance(inputs, Iterator) else list(results)

    def _is_single(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _single(self, given: Any, result: Any, arguments: Mapping[str, Any]) -> Any:
        """What a call with one input returns."""
        return result

    def _results(self, inputs: Iterator[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        raise NotImplementedError

    def _run(self, task: Task, inputs: Iterable[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        """The results of a task. Without truncation, an input is only limited by the network's positions."""
        truncation = arguments.get("truncation", False)
        if truncation not in _TRUNCATIONS:
            raise InputError(f"truncation must be True or False, got {truncation!r}")
        if truncation in (False, "do_not_truncate"):
            return self._predictor.with_task(task, on_long="error", max_length=self.model.max_positions)(inputs)
        limit = arguments.get("max_length") or self._max_length
        return self._predictor.with_task(task, on_long="truncate", max_length=limit)(inputs)

    def _one_head(self, kind: str) -> HeadConfig:
        heads = [head for head in self.model.config.heads if head.kind == kind]
        if len(heads) != 1:
            names = ", ".join(head.name for head in heads) or "none"
            raise InputError(f"{type(self).__name__} needs a model with one {kind} head; this one's are: {names}")
        return heads[0]

    @property
    def _max_length(self) -> int:
        """The maximum length of an input in tokens."""
        return self.model.usage.max_length or self.model.max_positions


class TextClassificationPipeline(Pipeline):
    """Classifies texts, or pairs {"text": ..., "text_pair": ...}.

    Arguments of a call: top_k (how many labels, None for all), function_to_apply ("sigmoid", "softmax" or "none"; by
    default as the head's problem requires), truncation and max_length (without truncation, longer texts are errors),
    padding (without effect: batches are padded in any case).

    Returns {"label", "score"} of each input, for a single text in a list of one; with top_k a list of them, the best
    first.
    """

    arguments = ("top_k", "function_to_apply", "truncation", "max_length", "padding")

    def __init__(self, model: PathLike | Roberta, **options: Any) -> None:
        super().__init__(model, **options)
        self._head = self._one_head("sentence")

    def _single(self, given: Any, result: Any, arguments: Mapping[str, Any]) -> Any:
        return [result] if isinstance(given, str) and "top_k" not in arguments else result

    def _results(self, inputs: Iterator[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        function = self._function(arguments.get("function_to_apply"))
        labels = label_names(self._head)
        several, top_k = "top_k" in arguments, arguments.get("top_k")
        for logits in self._run(SentenceScores(self._head.name), map(_texts_of, inputs), arguments):
            scores = function(logits)
            if not several:
                yield {"label": labels[int(scores.argmax())], "score": scores.max().item()}
                continue
            named = [{"label": label, "score": score.item()} for label, score in zip(labels, scores, strict=True)]
            named.sort(key=lambda each: float(each["score"]), reverse=True)
            yield named[:top_k]

    def _function(self, name: Any) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
        if name is None:
            scoring = self.model.usage.scoring_of(self._head.name)
            if self._head.problem == "regression":
                name = "none" if scoring is None or scoring.is_regression else "sigmoid"
            else:
                name = "sigmoid" if self._head.problem == "multi_label" else "softmax"
        if not isinstance(name, str) or name.lower() not in _FUNCTIONS:
            raise InputError(f"function_to_apply must be one of {', '.join(_FUNCTIONS)}, got {name!r}")
        if name.lower() == "softmax":
            return lambda logits: np.asarray(scipy.special.softmax(logits))
        return scipy.special.expit if name.lower() == "sigmoid" else np.asarray


class ZeroShotClassificationPipeline(Pipeline):
    """Classifies texts by labels that are chosen in the call, with a head that knows entailment.

    Arguments of a call: candidate_labels (a list, or a text with commas), hypothesis_template ("This example is {}."),
    multi_label (whether any number of labels may apply). A text over the maximum length is truncated, a hypothesis is
    not.

    Returns {"sequence", "labels", "scores"} of each text, the likeliest label first.
    """

    arguments = ("candidate_labels", "hypothesis_template", "multi_label")

    def __init__(self, model: PathLike | Roberta, **options: Any) -> None:
        super().__init__(model, **options)
        self._head = self._one_head("sentence")
        entailment_class(self._head)

    def __call__(self, inputs: Any, candidate_labels: Any = None, **arguments: Any) -> Any:
        if candidate_labels is not None:
            arguments["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **arguments)

    def _results(self, inputs: Iterator[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        labels = arguments.get("candidate_labels") or []
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        if not labels:
            raise InputError("candidate_labels must have at least one label")
        template = arguments.get("hypothesis_template", "This example is {}.")
        task = ZeroShot(tuple(labels), template, bool(arguments.get("multi_label")), self._head.name)
        given, texts = itertools.tee(inputs)
        for scores, text in zip(self._run(task, given, {"truncation": True}), texts, strict=True):
            order = scores.argsort()[::-1]
            yield {"sequence": text, "labels": [labels[i] for i in order], "scores": scores[order].tolist()}


class FeatureExtractionPipeline(Pipeline):
    """Extracts the features of texts' tokens.

    Arguments of a call: truncation, max_length, return_tensors (True for an array in place of nested lists).

    Returns [1, tokens, hidden] of each text, as nested lists.
    """

    arguments = ("truncation", "max_length", "padding", "return_tensors", "tokenize_kwargs")

    def _results(self, inputs: Iterator[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        settings = {**(arguments.get("tokenize_kwargs") or {}), **arguments}
        self._check_known(settings)
        for features in self._run(Embed("tokens"), inputs, settings):
            yield features[None] if arguments.get("return_tensors") else [features.tolist()]


class TokenClassificationPipeline(Pipeline):
    """Classifies the tokens of texts, or finds entities. A text over the maximum length is truncated.

    Arguments of a call: aggregation_strategy ("none" for tokens; "simple", "first", "average" or "max" for entities,
    see tasks.entities), ignore_labels (["O"]), stride (in place of truncation, windows that share so many tokens; with
    entities only).

    Returns a list for each text, of {"entity", "score", "index", "word", "start", "end"} for each token, or of
    {"entity_group", "score", "word", "start", "end"} for each entity.
    """

    arguments = ("aggregation_strategy", "ignore_labels", "stride")

    def __init__(self, model: PathLike | Roberta, **options: Any) -> None:
        super().__init__(model, **options)
        self._head = self._one_head("token")

    def _results(self, inputs: Iterator[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        aggregation = arguments.get("aggregation_strategy") or "none"
        if not isinstance(aggregation, str) or aggregation.lower() not in AGGREGATIONS:
            raise InputError(f"aggregation_strategy must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
        ignored = arguments.get("ignore_labels")
        if isinstance(ignored, str):
            raise InputError(f"ignore_labels must be a list of labels, got {ignored!r}")
        stride = arguments.get("stride")
        if stride is not None and aggregation.lower() == "none":
            raise InputError("stride is for entities: choose an aggregation_strategy other than none")
        task = Tag(
            self._head.name,
            stride,
            aggregation.lower(),
            ("O",) if ignored is None else tuple(ignored),
            tuple(label_names(self._head)),
        )
        on_long: OnLong = "truncate" if stride is None else "window"
        return self._predictor.with_task(task, on_long=on_long, max_length=self._max_length)(inputs)


class FillMaskPipeline(Pipeline):
    """Fills the masks of texts, each independently of the others.

    Arguments of a call: top_k (5), targets (a text or a list of texts, the only tokens to choose from; of a text that
    is no token, the first one, with a warning), tokenizer_kwargs (truncation and max_length; without truncation, texts
    over the maximum length are errors).

    Returns a list of {"score", "token", "token_str", "sequence"} for each text, the likeliest token first; for a text
    with several masks, a list of such lists. For a list with one text, its result alone.
    """

    arguments = ("top_k", "targets", "tokenizer_kwargs")

    def __call__(self, inputs: Any, **arguments: Any) -> Any:
        results = super().__call__(inputs, **arguments)
        return results[0] if isinstance(inputs, list) and len(inputs) == 1 else results

    def _results(self, inputs: Iterator[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        settings = arguments.get("tokenizer_kwargs") or {}
        if unknown := [name for name in settings if name not in ("truncation", "max_length", "padding")]:
            raise InputError(f"tokenizer_kwargs has {', '.join(unknown)}; it takes truncation, max_length and padding")
        top_k = arguments.get("top_k")
        top_k = 5 if top_k is None else top_k
        check_count("top_k", top_k)
        targets = arguments.get("targets")
        task = FillMasks(top_k, () if targets is None else self._target_ids(targets))
        for fillings in self._run(task, inputs, settings):
            filled = [list(self._filled(fillings, mask)) for mask in range(len(fillings.positions))]
            yield filled[0] if len(filled) == 1 else filled

    def _filled(self, fillings: Fillings, mask: int) -> Iterator[dict[str, Any]]:
        tokenizer = self.model.tokenizer
        ids, several = fillings.ids.copy(), len(fillings.positions) > 1
        for score, token in zip(fillings.probabilities[mask].tolist(), fillings.tokens[mask].tolist(), strict=True):
            ids[fillings.positions[mask]] = token
            kept = ids[ids != tokenizer.pad_id].tolist()
            yield {
                "score": score,
                "token": token,
                "token_str": tokenizer.plain_text([token], with_specials=True),
                "sequence": tokenizer.plain_text(kept, with_specials=several),
            }

    def _target_ids(self, targets: str | Sequence[str]) -> tuple[int, ...]:
        tokenizer, found = self.model.tokenizer, set[int]()
        for target in [targets] if isinstance(targets, str) else targets:
            token = tokenizer.named_token(target)
            if token is None:
                ids = tokenizer.encode_text(target).tolist()
                used = repr(tokenizer.token_name(ids[0])) if ids else "nothing"
                warnings.warn(f"the vocabulary has no token {target!r}, using {used}", stacklevel=2)
                found.update(ids[:1])
            else:
                found.add(token)
        if not found:
            raise InputError("targets must have at least one token of the vocabulary")
        return tuple(sorted(found))


class QuestionAnsweringPipeline(Pipeline):
    """Finds the answers to questions in contexts.

    Takes question=..., context=...: two texts, a list of questions about one context, or two lists of one length; or in
    their place {"question": ..., "context": ...}, a list or an iterator of these.

    Arguments of a call: top_k (1), max_answer_len (15, in tokens), max_seq_len (384, of question and context together;
    a longer context is split into windows), doc_stride (128 or half of max_seq_len, how many tokens two windows share),
    handle_impossible_answer (whether no answer is one, the empty text), align_to_words (True, answers are whole words),
    padding and max_question_len (without effect).

    Returns {"score", "start", "end", "answer"} for each question, or if there are several answers, a list of them, the
    likeliest first; for a list with one question, its result alone.
    """

    arguments = (
        "top_k", "doc_stride", "max_answer_len", "max_seq_len", "handle_impossible_answer", "align_to_words", "padding",
        "max_question_len",
    )  # fmt: skip

    def __init__(self, model: PathLike | Roberta, **options: Any) -> None:
        super().__init__(model, **options)
        self._head = self._one_head("span")

    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **arguments: Any) -> Any:
        if isinstance(inputs, str) and question is None:
            inputs, question = None, inputs
        if (inputs is None) == (question is None and context is None):
            raise InputError(
                'give question=... and context=..., or {"question": ..., "context": ...}, or a list of these'
            )
        results = super().__call__(_questions(question, context) if inputs is None else inputs, **arguments)
        return results[0] if isinstance(results, list) and self._is_one(inputs, question) else results

    def _is_one(self, inputs: Any, question: Any) -> bool:
        given = question if inputs is None else inputs
        return isinstance(given, list | tuple) and len(given) == 1

    def _results(self, inputs: Iterator[Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
        given = {name: value for name, value in arguments.items() if value is not None}
        for name in ("max_seq_len", "top_k", "max_answer_len"):
            check_count(name, given.get(name, 1))
        check_count("doc_stride", given.get("doc_stride", 0), smallest=0)
        task = Answer(
            self._head.name,
            given.get("doc_stride"),
            given.get("top_k", 1),
            given.get("max_answer_len", 15),
            bool(given.get("handle_impossible_answer", False)),
            bool(given.get("align_to_words", True)),
            given.get("max_seq_len"),
        )
        for answers in self._predictor.with_task(task)(map(_question_and_context, inputs)):
            yield answers[0] if len(answers) == 1 else answers


def label_names(head: HeadConfig) -> Sequence[str]:
    """The names of a head's classes, as Transformers names those that have none."""
    if head.labels or head.label_names != tuple(map(str, range(head.num_classes))):
        return head.label_names
    return [f"LABEL_{i}" for i in range(head.num_classes)]


def _texts_of(given: Any) -> Any:
    """A text, or the pair of a dict."""
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping) and "text" in given and given.keys() <= {"text", "text_pair"}:
        return (given["text"], given["text_pair"]) if given.get("text_pair") else given["text"]
    raise InputError(f'expected a text, or {{"text": ..., "text_pair": ...}}, got {given!r:.80}')


def _questions(question: Any, context: Any) -> Any:
    """The input that a question and a context are, or the inputs that lists of them are."""
    if not isinstance(question, list):
        return {"question": question, "context": context}
    contexts = context if isinstance(context, list) else [context] * len(question)
    if len(contexts) != len(question):
        raise InputError(
            f"got {len(question)} questions and {len(contexts)} contexts; give one context for each, or one"
        )
    return [{"question": each, "context": of_each} for each, of_each in zip(question, contexts, strict=True)]


def _question_and_context(given: Any) -> tuple[str, str]:
    if not isinstance(given, Mapping) or given.keys() != {"question", "context"}:
        raise InputError(f'expected {{"question": ..., "context": ...}}, got {given!r:.80}')
    return given["question"], given["context"]


PIPELINES: dict[str, type[Pipeline]] = {
    "text-classification": TextClassificationPipeline,
    "sentiment-analysis": TextClassificationPipeline,
    "zero-shot-classification": ZeroShotClassificationPipeline,
    "feature-extraction": FeatureExtractionPipeline,
    "token-classification": TokenClassificationPipeline,
    "fill-mask": FillMaskPipeline,
    "question-answering": QuestionAnsweringPipeline,
    "ner": TokenClassificationPipeline,
}
