"""Pronoun resolution (Winograd schemas) with the masked LM of roberta.large.wsc: which noun phrase a pronoun refers to.

Text, candidates and scores are those of fairseq (fairseq/examples/roberta/wsc/wsc_task.py, class WSCTask, and
wsc_utils.py). Each candidate replaces the pronoun and is masked; its score is the mean log-probability of its tokens.
The sequence begins without `<s>`, as in fairseq's recipe for this model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.nn import forward
from roberta_flax.tasks.base import Model, check_finite
from roberta_flax.text import batching
from roberta_flax.text.tokenizer import Tokenizer

DEFAULT_PIPELINE = "en_core_web_lg"  # wsc_utils.py, get_spacy_nlp
_PHRASES_PER_BATCH = 32
_FEWEST_MASKS = 4  # the number of masked positions is padded to this, or the next power of two, to compile few programs
_STRIPPED = '.,"'  # jsonl_iterator, strip_pronoun


@dataclass(frozen=True)
class Schema:
    """A sentence, split at its pronoun.

    Attributes:
      prefix, suffix: the text before and after the pronoun, without the spaces around it.
      leading_space, trailing_space: the spaces around the pronoun, each " " or "".
      pronoun: the pronoun.
      query: the phrase that the pronoun may refer to, or None to search for one.
    """

    prefix: str
    leading_space: str
    pronoun: str
    trailing_space: str
    suffix: str
    query: str | None = None

    def text(self, phrase: str | None = None) -> str:
        """The sentence, with `phrase` in place of the pronoun if it is given."""
        middle = self.pronoun if phrase is None else phrase
        return self.prefix + self.leading_space + middle + self.trailing_space + self.suffix


@dataclass(frozen=True)
class Disambiguation:
    """The answer for a pronoun, and the scores behind it.

    Attributes:
      answer: with a query, whether the pronoun refers to it, which is so if no candidate has a higher score; otherwise
        the candidate with the highest score.
      query: the query, or None.
      scores: the mean log-probability of each phrase: of the query, if there is one, and of all candidates.
    """

    answer: bool | str
    query: str | None
    scores: dict[str, float]


def read_schema(sentence: str) -> Schema:
    """Parses a sentence with its pronoun in [brackets] and, optionally, a query between _underscores_.

    The text is normalized as in fairseq. Words are joined by the Moses detokenizer ("Jane 's" becomes "Jane's"), any
    whitespace becomes one space, and a period, comma or double quote directly after the pronoun is dropped, as it was
    when roberta.large.wsc was trained. fairseq fails if the pronoun begins the sentence, has several words or touches
    other characters; here they are kept.

    Raises:
      InputError: the sentence is not text; it does not have exactly one pronoun and at most one query, not
        overlapping and not empty; or sacremoses is not installed.
    """
    before, pronoun, after, query = _split_at_marks(sentence)
    touching = re.match(r"\S*", after)
    assert touching is not None, "the pattern also matches the empty string"
    is_dropped = not touching[0].strip(_STRIPPED)
    rest = after[touching.end() :] if is_dropped else after
    prefix, suffix = _detokenized(before), _detokenized(rest)
    return Schema(
        prefix,
        " " if prefix and before[-1:].isspace() else "",
        _detokenized(pronoun),
        " " if rest and is_dropped and not suffix.startswith((".", ",")) else "",
        suffix,
        query,
    )


def _split_at_marks(sentence: str) -> tuple[str, str, str, str | None]:
    """The text before the pronoun, the pronoun, the text after it, and the query, all without marks."""
    if not isinstance(sentence, str):
        raise InputError(f"expected a sentence as str, got {type(sentence).__name__}: {str(sentence)[:60]!r}")
    quoted = repr(sentence[:200])
    if sentence.count("[") != 1 or sentence.count("]") != 1 or sentence.index("]") < sentence.index("["):
        raise InputError(f"mark one pronoun with [brackets], as in '... because [it] was too big.'; got {quoted}")
    if sentence.count("_") not in (0, 2):
        raise InputError(f"mark at most one query, with two underscores, as in 'The _trophy_ ...'; got {quoted}")
    before, _, rest = sentence.partition("[")
    pronoun, _, after = rest.partition("]")
    if "_" in pronoun or before.count("_") == 1:
        raise InputError(f"the query and the pronoun must not overlap; got {quoted}")
    query = sentence.split("_")[1] if "_" in sentence else None
    if query is not None and query.endswith((".", ",")):
        query = query[:-1]
    pronoun = pronoun.rstrip(_STRIPPED)
    if not pronoun.strip() or (query is not None and not query.strip()):
        raise InputError(f"the {'query' if pronoun.strip() else 'pronoun'} is empty; got {quoted}")
    return before.replace("_", ""), pronoun, after.replace("_", ""), query


def noun_phrases(doc: Any, query: str | None = None) -> list[str]:
    """Selects the candidates among the noun phrases of a parsed sentence, in their order.

    These are spaCy's noun chunks and all runs of nouns or of proper nouns (extended_noun_chunks), except those that
    consist of pronouns, contain the query or are contained in it (filter_noun_chunks).

    Args:
      doc: a spaCy Doc with dependencies and parts of speech.
      query: the query, or None.

    Raises:
      InputError: the Doc has no dependencies, or spaCy does not find noun chunks in its language.
    """
    try:
        borders = {(chunk.start, chunk.end) for chunk in doc.noun_chunks}
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise InputError(
            f"the pipeline finds no noun phrases ({' '.join(str(error).split())[:80]}): use one with a parser and a "
            f"tagger, such as {DEFAULT_PIPELINE}, or give the candidates"
        ) from None
    spans = [doc[begin:end] for begin, end in sorted(borders.union(_noun_runs(doc)))]
    texts = [span.text for span in spans if not all(token.pos_ == "PRON" for token in span)]
    if query is None:
        return texts
    lower_query = query.lower()
    return [text for text in texts if lower_query not in text.lower() and text.lower() not in lower_query]


def _noun_runs(doc: Any) -> Iterator[tuple[int, int]]:
    """The first token, and the one after the last, of every run of nouns or of proper nouns."""
    kinds = [token.pos_ if token.pos_ in ("NOUN", "PROPN") else "" for token in doc]
    begin = 0
    for kind, run in itertools.groupby(kinds):
        end = begin + len(list(run))
        if kind:
            yield begin, end
        begin = end


def pipeline(nlp: str | Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """Loads a spaCy pipeline by name, DEFAULT_PIPELINE if none is given. A pipeline itself is returned unchanged.

    Raises:
      InputError: spaCy or the named pipeline is not installed.
    """
    name = DEFAULT_PIPELINE if nlp is None else nlp
    return _named_pipeline(name) if isinstance(name, str) else name


def encode_with_phrase(
    schema: Schema, phrase: str, tokenizer: Tokenizer
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Encodes the sentence with a phrase in place of the pronoun.

    As in WSCTask.binarize_with_mask, the beginning of the phrase and its number of tokens are counted on the parts of
    the sentence, each encoded alone.

    Returns:
      Token ids, int32 [length], and the positions of the phrase, int32 [masked].
    """
    ids = np.append(tokenizer.encode_text(schema.text(phrase)), np.int32(tokenizer.eos_id))
    begin = len(tokenizer.encode_text(schema.prefix))
    size = len(tokenizer.encode_text(schema.leading_space + phrase))
    return ids, np.arange(begin, min(begin + size, len(ids)), dtype=np.int32)


def score_masked(model: Model, sequences: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> npt.NDArray[np.float64]:
    """Masks some positions of each sequence, and returns the mean log-probability of their tokens.

    Dropout is never used.

    Args:
      model: a model with a masked-LM head.
      sequences: for each sequence its token ids, [length], and one or more positions, [masked].

    Returns:
      [sequences].

    Raises:
      InputError: the model has no masked-LM head, or a sequence is too long.
    """
    config = model.config
    forward.check_lm_head(config)
    scores: list[float] = []
    for first in range(0, len(sequences), _PHRASES_PER_BATCH):
        ids, positions = zip(*sequences[first : first + _PHRASES_PER_BATCH], strict=True)
        tokens = batching.check_tokens(
            batching.collate_tokens(ids, config.pad_id), config.vocab_size, config.max_positions
        )
        tokens = batching.pad_to_bucket(tokens, config.pad_id, config.max_positions)
        counts = [len(row) for row in positions]
        width = max(_FEWEST_MASKS, 1 << (max(counts) - 1).bit_length())
        masks = batching.pad_rows(positions, (len(tokens), width), 0)
        targets = np.take_along_axis(tokens, masks, axis=1)
        for row_tokens, row in zip(tokens, positions, strict=False):
            row_tokens[row] = model.tokenizer.mask_id
        arrays = jax.device_put((tokens, masks, targets))
        log_probs = np.asarray(
            jax.device_get(
                forward.token_log_probs(model.params, *arrays, config=model.config, numerics=model.numerics)
            ),
            np.float64,
        )
        scores += [row[:count].mean() for row, count in zip(log_probs, counts, strict=False)]
    return np.array(scores)


def disambiguate(
    model: Model,
    sentence: str,
    candidates: Sequence[str] | None = None,
    nlp: str | Callable[[str], Any] | None = None,
) -> Disambiguation:
    """Scores the phrases that the pronoun of a sentence may refer to.

    Args:
      model: roberta.large.wsc, which was trained for this; any model with a masked-LM head can compute scores.
      sentence: a sentence in the form that `read_schema` parses.
      candidates: phrases; by default the noun phrases of the sentence, except the query (see `noun_phrases`).
      nlp: the spaCy pipeline that finds the noun phrases, or its name; by default DEFAULT_PIPELINE.

    Raises:
      InputError: as `read_schema`, `noun_phrases` and `score_masked`; there are no candidates; a score is NaN or
        infinite; or sacremoses, spaCy or the pipeline is not installed.
    """
    forward.check_lm_head(model.config)
    schema = read_schema(sentence)
    if candidates is None:
        candidates = noun_phrases(pipeline(nlp)(schema.text()), schema.query)
        if not candidates:
            but = "" if schema.query is None else f" but {schema.query!r}"
            raise InputError(f"there is no noun phrase{but} in {schema.text()[:200]!r}; give the candidates")
    elif isinstance(candidates, str) or not candidates or not all(isinstance(c, str) and c.strip() for c in candidates):
        raise InputError(f"candidates must be phrases, a non-empty list of str; got {candidates!r:.200}")
    phrases = list(dict.fromkeys([*([] if schema.query is None else [schema.query]), *candidates]))
    sequences = [encode_with_phrase(schema, phrase, model.tokenizer) for phrase in phrases]
    log_probabilities = score_masked(model, sequences)
    check_finite(log_probabilities)
    scores = dict(zip(phrases, log_probabilities.tolist(), strict=True))
    if schema.query is not None:
        return Disambiguation(all(scores[schema.query] >= score for score in scores.values()), schema.query, scores)
    ids, positions = sequences[int(np.argmax(list(scores.values())))]
    best = model.tokenizer.decode(ids[positions])
    return Disambiguation(str(best).strip(), None, scores)


def _detokenized(text: str) -> str:
    joined: str = _detokenizer().detokenize([text])
    return joined


@lru_cache(maxsize=1)
def _detokenizer() -> Any:
    return require("sacremoses", "wsc").MosesDetokenizer(lang="en")


@lru_cache(maxsize=2)
def _named_pipeline(name: str) -> Callable[[str], Any]:
    spacy = require("spacy", "wsc", "give the candidates")
    try:
        loaded: Callable[[str], Any] = spacy.load(name)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(
            f"cannot load the spaCy pipeline {name!r}, which finds noun phrases ({' '.join(str(error).split())[:80]}); "
            f"install one with: python -m spacy download {DEFAULT_PIPELINE}; or give the candidates"
        ) from None
    return loaded
