"""Which noun phrase a pronoun stands for (Winograd schemas), by a masked-LM's scores, as roberta.large.wsc answers.

Text, candidates and scores are those of fairseq (fairseq/examples/roberta/wsc/wsc_task.py, class WSCTask, and
wsc_utils.py): each candidate stands in the pronoun's place, masked, and scores the mean log-probability of its tokens.
The sequence begins without `<s>`, as in fairseq's recipe for this model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from roberta_flax.errors import InputError
from roberta_flax.extras import require
from roberta_flax.nn import forward
from roberta_flax.tasks.base import Model
from roberta_flax.text import batching
from roberta_flax.text.tokenizer import Tokenizer

PIPELINE = "en_core_web_lg"  # wsc_utils.py, get_spacy_nlp
_ROWS = 32  # candidates that are scored at once
_FEWEST_MASKS = 4  # masked positions of a row, at least: few programs are compiled
_STRIPPED = '.,"'  # jsonl_iterator, strip_pronoun


@dataclass(frozen=True)
class Schema:
    """A sentence with a hole where its pronoun is.

    Attributes:
      prefix, suffix: the text before and after, without the spaces around the pronoun.
      leading_space, trailing_space: these: " " or "".
      pronoun: what was in the hole.
      query: the phrase that the pronoun may stand for, or None.
    """

    prefix: str
    leading_space: str
    pronoun: str
    trailing_space: str
    suffix: str
    query: str | None = None

    def text(self, phrase: str | None = None) -> str:
        """The sentence with a phrase in the hole; with its pronoun if not given."""
        inside = self.pronoun if phrase is None else phrase
        return self.prefix + self.leading_space + inside + self.trailing_space + self.suffix


@dataclass(frozen=True)
class Disambiguation:
    """What the scores say.

    Attributes:
      answer: whether the pronoun stands for the query: it scores at least as much as every candidate; or without a
        query, the text of the candidate that scores most.
      query: or None.
      scores: mean log-probability by phrase: of the query, where there is one, and of the candidates.
    """

    answer: bool | str
    query: str | None
    scores: dict[str, float]


def read_schema(sentence: str) -> Schema:
    """A sentence with its pronoun in [brackets], and a query between _underscores_ or none.

    The text is what fairseq makes of it: words are put together as Moses does ("Jane 's" is "Jane's"), whitespace is
    one space, and a full stop, comma or double quote that directly follows the pronoun is left out, as when
    roberta.large.wsc was trained. fairseq stops at a pronoun that begins the sentence, has several words or touches
    other characters; here they stay where they are.

    Raises:
      InputError: not text; not one pronoun and at most one query, both with something in them, apart from each other;
        or sacremoses is missing.
    """
    if not isinstance(sentence, str):
        raise InputError(f"expected a sentence as str, got {type(sentence).__name__}: {str(sentence)[:60]!r}")
    quoted = repr(sentence[:200])
    if sentence.count("[") != 1 or sentence.count("]") != 1 or sentence.index("]") < sentence.index("["):
        raise InputError(f"mark one pronoun with [brackets], eg. '... because [it] was too big.'; got {quoted}")
    if sentence.count("_") not in (0, 2):
        raise InputError(f"mark at most one query, with two underscores, eg. 'The _trophy_ ...'; got {quoted}")
    before, _, rest = sentence.partition("[")
    pronoun, _, after = rest.partition("]")
    if "_" in pronoun or before.count("_") == 1:
        raise InputError(f"the query and the pronoun are marked apart from each other; got {quoted}")
    query = sentence.split("_")[1] if "_" in sentence else None
    if query is not None and query.endswith((".", ",")):
        query = query[:-1]
    pronoun = pronoun.rstrip(_STRIPPED)
    if not pronoun.strip() or (query is not None and not query.strip()):
        raise InputError(f"there is nothing in the {'query' if pronoun.strip() else 'pronoun'}'s marks; got {quoted}")

    before, after = before.replace("_", ""), after.replace("_", "")
    touching = re.match(r"\S*", after)
    assert touching is not None, "it matches nothing, too"
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


def noun_phrases(doc: Any, query: str | None = None) -> list[str]:
    """The candidates among a parsed sentence's noun phrases, in their order.

    spaCy's noun chunks, and every run of nouns or of proper nouns (extended_noun_chunks); without those that are
    pronouns only, and those in which the query is or which are in it (filter_noun_chunks).

    Args:
      doc: a spaCy Doc with dependencies and parts of speech.
      query: or None.

    Raises:
      InputError: no dependencies, or a language whose noun chunks spaCy does not know.
    """
    try:
        found = {(chunk.start, chunk.end) for chunk in doc.noun_chunks}
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise InputError(
            f"the pipeline finds no noun phrases ({' '.join(str(error).split())[:80]}): use one with a parser and a "
            f"tagger, {PIPELINE} say, or give the candidates"
        ) from None
    kinds = [token.pos_ if token.pos_ in ("NOUN", "PROPN") else "" for token in doc]
    begin = 0
    for kind, run in itertools.groupby(kinds):
        end = begin + len(list(run))
        if kind:
            found.add((begin, end))
        begin = end
    spans = [doc[begin:end] for begin, end in sorted(found)]
    texts = [span.text for span in spans if not all(token.pos_ == "PRON" for token in span)]
    if query is None:
        return texts
    query = query.lower()
    return [text for text in texts if query not in text.lower() and text.lower() not in query]


def pipeline(nlp: str | Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """A spaCy pipeline: the one that is given, or that of a name; PIPELINE if not given.

    Raises:
      InputError: spaCy or the named pipeline is not installed.
    """
    name = PIPELINE if nlp is None else nlp
    return _named_pipeline(name) if isinstance(name, str) else name


def masked(schema: Schema, phrase: str, tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Token ids, [length], of the sentence with a phrase in the hole, and the phrase's positions, [masked].

    By WSCTask.binarize_with_mask: where the phrase begins and how many tokens it has is counted on the parts, each
    encoded alone.
    """
    ids = np.append(tokenizer.encode_text(schema.text(phrase)), np.int32(tokenizer.eos_id))
    begin = len(tokenizer.encode_text(schema.prefix))
    size = len(tokenizer.encode_text(schema.leading_space + phrase))
    return ids, np.arange(begin, min(begin + size, len(ids)), dtype=np.int32)


def scores(model: Model, sequences: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> npt.NDArray[np.float64]:
    """The mean log-probability of the tokens at some positions of each sequence, these masked. Never uses dropout.

    Args:
      model: with a masked-LM head.
      sequences: for each its token ids, [length], and positions, [masked], at least one.

    Returns:
      [sequences].

    Raises:
      InputError: no masked-LM head, or a sequence that is too long.
    """
    config = model.config
    forward.check_lm_head(config)
    found: list[float] = []
    for first in range(0, len(sequences), _ROWS):
        ids, positions = zip(*sequences[first : first + _ROWS], strict=True)
        tokens = batching.check_tokens(
            batching.collate_tokens(ids, config.pad_id), config.vocab_size, config.max_positions
        )
        tokens = batching.pad_to_bucket(tokens, config.pad_id, config.max_positions)
        counts = [len(row) for row in positions]
        width = max(_FEWEST_MASKS, 1 << (max(counts) - 1).bit_length())
        masks = batching.pad_rows(positions, (len(tokens), width), 0)
        targets = np.take_along_axis(tokens, masks, axis=1)
        for tokens_of, row in zip(tokens, positions, strict=False):
            tokens_of[row] = model.tokenizer.mask_id
        found_here = np.asarray(
            forward.token_log_probs(model.params, tokens, masks, targets, config=model.config, numerics=model.numerics),
            np.float64,
        )
        found += [row[:count].mean() for row, count in zip(found_here, counts, strict=False)]
    return np.array(found)


def disambiguate(
    model: Model,
    sentence: str,
    candidates: Sequence[str] | None = None,
    nlp: str | Callable[[str], Any] | None = None,
) -> Disambiguation:
    """Scores what a sentence's pronoun may stand for.

    Args:
      model: one trained for it, roberta.large.wsc; any with a masked-LM head has scores.
      sentence: as read_schema takes it.
      candidates: phrases; the sentence's noun phrases (noun_phrases) if not given, without the query.
      nlp: a spaCy pipeline that finds these, or its name; PIPELINE if not given.

    Raises:
      InputError: as read_schema, noun_phrases and scores; no candidates; or sacremoses, spaCy or the pipeline is not
        installed.
    """
    forward.check_lm_head(model.config)
    schema = read_schema(sentence)
    if candidates is None:
        candidates = noun_phrases(pipeline(nlp)(schema.text()), schema.query)
        if not candidates:
            but = "" if schema.query is None else f" but {schema.query!r}"
            raise InputError(f"no noun phrase{but} in {schema.text()[:200]!r}; give the candidates")
    elif isinstance(candidates, str) or not candidates or not all(isinstance(c, str) and c.strip() for c in candidates):
        raise InputError(f"candidates are phrases, a non-empty list of str, got {candidates!r:.200}")
    phrases = list(dict.fromkeys([*([] if schema.query is None else [schema.query]), *candidates]))
    sequences = [masked(schema, phrase, model.tokenizer) for phrase in phrases]
    found = dict(zip(phrases, scores(model, sequences).tolist(), strict=True))
    if schema.query is not None:
        return Disambiguation(all(found[schema.query] >= score for score in found.values()), schema.query, found)
    ids, positions = sequences[int(np.argmax(list(found.values())))]
    best = model.tokenizer.decode(ids[positions])
    return Disambiguation(str(best).strip(), None, found)


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
            f"install one with: python -m spacy download {PIPELINE}; or give the candidates"
        ) from None
    return loaded
