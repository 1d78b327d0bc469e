"""Sentences with a pronoun, and a spaCy pipeline for them that is built by rules: no model is downloaded."""

from __future__ import annotations

from typing import Any

_OF = {
    "PRON": "it he she they him her them his i who",
    "DET": "the a an this some every",
    "ADJ": "brown big small old tall red tired young heavy long",
    "NOUN": "trophy suitcase sheriff city council demonstrators permit violence town car race sister lawyer witness truck "
    "school bus fish worm table delivery pie oven paper mayor desk lamp anyone help",
    "PROPN": "joan susan paul george anna emma zoë new york smith",
    "VERB": "fit refused feared gave thanked ate was were would won asked zoomed lifted saw told has said baked hid moved "
    "leaving want",
}
_POS = {word: pos for pos, words in _OF.items() for word in words.split()}


def rules(doc: Any) -> Any:
    """A noun or proper noun that ends a run is a subject, with what stands before it; a pronoun is one, too."""
    for token in doc:
        token.pos_ = _POS.get(token.lower_, "PUNCT" if token.is_punct else "X")
    root = next((token.i for token in doc if token.pos_ == "VERB"), 0)
    heads, deps = [root] * len(doc), ["dep"] * len(doc)
    deps[root] = "ROOT"
    for token in doc:
        following = doc[token.i + 1].pos_ if token.i + 1 < len(doc) else ""
        names = token.pos_ in ("NOUN", "PROPN")
        if token.pos_ == "PRON" or (names and following not in ("NOUN", "PROPN")):
            deps[token.i] = "nsubj"
            begin = token.i
            # of a run that mixes nouns and proper nouns spaCy's chunk is longer than fairseq's runs of one kind
            while names and begin and doc[begin - 1].pos_ in ("NOUN", "PROPN", "ADJ", "DET"):
                begin -= 1
                heads[begin] = token.i
                deps[begin] = {"DET": "det", "ADJ": "amod"}.get(doc[begin].pos_, "compound")
    return type(doc)(
        doc.vocab, words=[t.text for t in doc], spaces=[bool(t.whitespace_) for t in doc],
        pos=[t.pos_ for t in doc], heads=heads, deps=deps,
    )  # fmt: skip


def pipeline() -> Any:
    """English words, parts of speech from a list, dependencies by the rules above."""
    from spacy.lang.en import English
    from spacy.language import Language

    Language.component("rules", func=rules)
    nlp = English()
    nlp.add_pipe("rules")
    return nlp


SENTENCES = [
    "The _trophy_ would not fit in the brown suitcase because [it] was too big.",
    "The trophy would not fit in the brown _suitcase_ because [it] was too big.",
    "The _city council_ refused the demonstrators a permit because [they] feared violence.",
    "Joan thanked _Susan_ for all the help [she] had given.",
    "Paul saw George, and the old _mayor_ told [him], that the race was won.",
    "Anna asked Emma 's _sister_ whether [she] saw the lawyer or a tall witness .",
    "The New York _school bus_ zoomed past the truck. \" [It] was heavy \" , Paul said.",
    "The fish ate the worm. \"Was [it] tired?\", asked Zoë's young sister.",
    "The _delivery truck_ moved past the red lamp, so that [it], was hid.",
    "Susan 's _pie_ was in the oven ; Paul baked [it] .",
    "After the mayor said that_lamp_was old, the town council moved [it] to a desk",
    "Some paper hid the small  _table_ lamp; every witness  saw [it] twice.",
    "_Joan Smith_, told the (young) lawyer at the race that [she] won.",
    "The sheriff told Paul's sister about the race [he] won .",
    "A 50% pie &amp; a worm: which of them would Anna want, [it] or the fish?",
]  # fmt: skip
