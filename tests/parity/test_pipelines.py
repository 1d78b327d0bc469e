"""pipeline() beside Transformers' pipelines on the same files."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roberta_flax import HeadConfig, InputError, Roberta, convert, load, pipeline
from tests.conftest import skip_or_fail
from tests.params import random_params

if find_spec("sentence_transformers") is None:
    skip_or_fail("sentence-transformers, the reference, is not installed; the README's test command installs it")

import transformers

from references.sentence_transformers import TEXTS, body, edit, shaken
from tests.parity.layouts import LAYOUTS

TOLERANCE = 1e-5  # float32: a unit in the last place of a score is 6e-8, through a layer
LONG = "The children are playing outside in the yard, and " * 14


def same(ours: Any, theirs: Any) -> bool:
    """Whether results have the same form and order, and their numbers agree."""
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, float):
        return isinstance(ours, float) and ours == pytest.approx(theirs, abs=TOLERANCE)
    return bool(ours == theirs)


HEADS: dict[str, dict[str, Any]] = {
    "three labels": {"id2label": dict(enumerate(("no", "perhaps", "yes")))},
    "labels without names": {"num_labels": 3},
    "one output": {"num_labels": 1},
    "a regression": {"num_labels": 1, "problem_type": "regression"},
    "one output of a single label": {"num_labels": 1, "problem_type": "single_label_classification"},
    "several labels at once": {"num_labels": 3, "problem_type": "multi_label_classification"},
}
PAIR = {"text": "A man is playing.", "text_pair": "Nobody plays."}
CALLS: list[tuple[Any, dict[str, Any]]] = [
    (TEXTS[0], {}),
    (TEXTS, {}),
    (TEXTS[0], {"top_k": None}),
    (TEXTS[:2], {"top_k": 2}),
    (PAIR, {}),
    ([PAIR, PAIR], {"top_k": 1}),
    (TEXTS[:2], {"function_to_apply": "none"}),
    (TEXTS[:2], {"function_to_apply": "sigmoid", "top_k": None}),
    (TEXTS[:2], {"batch_size": 2}),
    (LONG, {"truncation": True}),
    (LONG, {"truncation": True, "max_length": 20}),
    ({"text": LONG, "text_pair": "a dog " * 20}, {"truncation": True, "max_length": 33}),
]


@pytest.fixture(scope="module", params=HEADS)
def classifiers(request, tmp_path_factory) -> tuple[Any, Any]:
    """Both pipelines of a model."""
    path = body(tmp_path_factory.mktemp("head") / "model", "RobertaForSequenceClassification", **HEADS[request.param])
    theirs = transformers.pipeline("text-classification", model=str(path), device="cpu")
    return pipeline("text-classification", model=path), theirs


def test_texts_are_classified_as_by_transformers(classifiers):
    ours, theirs = classifiers
    for inputs, arguments in CALLS:
        expected = theirs(inputs, **arguments)
        found = ours(inputs, **arguments)
        assert same(found, expected), (inputs, arguments, found, expected)


@pytest.fixture(scope="module")
def nli(tmp_path_factory) -> Path:
    labels = {"id2label": dict(enumerate(("contradiction", "neutral", "ENTAILMENT")))}
    labels["label2id"] = {label: i for i, label in labels["id2label"].items()}
    return body(tmp_path_factory.mktemp("nli") / "model", "RobertaForSequenceClassification", **labels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"candidate_labels": ["music", "animals", "food"]},
        {"candidate_labels": "music, animals,food"},
        {"candidate_labels": ["music"]},
        {"candidate_labels": ["music", "animals"], "multi_label": True},
        {"candidate_labels": ["music", "animals"], "hypothesis_template": "It is about {}."},
    ],
)
def test_labels_are_chosen_in_the_call_as_by_transformers(arguments, nli):
    theirs = transformers.pipeline("zero-shot-classification", model=str(nli), device="cpu")
    ours = pipeline("zero-shot-classification", model=nli)
    for inputs in (TEXTS[0], [TEXTS[0], TEXTS[1], LONG]):
        assert same(ours(inputs, **arguments), theirs(inputs, **arguments)), inputs
    labels = arguments.pop("candidate_labels")
    assert same(ours(TEXTS[0], labels, **arguments), theirs(TEXTS[0], labels, **arguments))


def test_a_class_of_entailment_that_is_the_first_is_compared_with_the_last(nli):
    labels = ("entailment", "neutral", "contradiction")
    edit(nli / "config.json", id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    theirs = transformers.pipeline("zero-shot-classification", model=str(nli), device="cpu")
    arguments = {"candidate_labels": ["music", "animals"], "multi_label": True}
    expected = theirs(TEXTS[0], **arguments)
    assert same(pipeline("zero-shot-classification", model=nli)(TEXTS[0], **arguments), expected)
    edit(nli / "config.json", id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    with pytest.raises(InputError, match="needs a head with a class entailment; this one's are a, b, c"):
        pipeline("zero-shot-classification", model=nli)
    given = pipeline("zero-shot-classification", model=nli, entailment=0)
    assert same(given(TEXTS[0], **arguments), expected)


def test_features_are_those_of_transformers(tmp_path):
    path = body(tmp_path / "model")
    theirs = transformers.pipeline("feature-extraction", model=str(path), device="cpu")
    ours = pipeline("feature-extraction", model=path)
    for inputs, arguments in ((TEXTS[0], {}), (TEXTS, {}), (LONG, {"truncation": True})):
        assert same(ours(inputs, **arguments), theirs(inputs, **arguments)), inputs
    expected = theirs(TEXTS[0], return_tensors=True).numpy()
    np.testing.assert_allclose(ours(TEXTS[0], return_tensors=True), expected, rtol=0, atol=TOLERANCE)


MANY_TEXTS = [
    *TEXTS,
    "Barack Obama was born in Hawaii; it's 12,345 metres high, isn't it?",
    "L'été à la forêt, où est-elle allée? Größe und Übermut.",
    "👩‍👩‍👧‍👦 🏳️‍🌈 flies over 東京都 👍🏽!", "🇩🇪", "吾輩は猫である。名前はまだ無い。", "Мама мыла раму. Привет, мир!",
    " ", "\n", "a", "  a  b ", "New\tYork\nCity\r\nis  big", "e\u0301 a\u0308\u0323 ﬁ ½ Ⅷ", "a <unk> </s> b", "@USER :cry: #covid",
    "x" * 40, "\u200b\ufeff.", "Tôi là sinh_viên trường đại_học Công_nghệ .", "(Zoë) \"quoted\" 3.14-2",
]  # fmt: skip


def plain(result: Any) -> Any:
    """A result of Transformers with Python's numbers in place of numpy's."""
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items()}
    if isinstance(result, list):
        return [plain(value) for value in result]
    return result.item() if isinstance(result, np.generic) else result


def network(directory: Path, layout: str, kind: str, **settings: Any) -> Path:
    """A small model of Transformers' class `kind` with one of the layouts of tokenizers, which truncates at 32."""
    LAYOUTS[layout](directory)
    config = directory / "tokenizer_config.json"
    if not config.is_file():
        config.write_text("{}")
    edit(config, model_max_length=32, model_input_names=["input_ids", "attention_mask"])  # BERT's has segments too
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(directory))
    model_class = getattr(transformers, kind)
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 66, "layer_norm_eps": 1e-5, "type_vocab_size": 1,
    }  # fmt: skip
    model = shaken(model_class(model_class.config_class(**{**shape, **settings})), 0)
    model.save_pretrained(directory)
    return directory


NETWORKS = {
    "byte_level": "Roberta",
    "prefix_space": "Roberta",
    "wordpiece_cased": "Roberta",
    "xlm_roberta": "XLMRoberta",
}


@pytest.fixture(scope="module", params=NETWORKS)
def taggers(request, tmp_path_factory) -> tuple[Any, Any]:
    """Both token-classification pipelines of a model."""
    labels = {"id2label": dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")))}
    labels["label2id"] = {label: i for i, label in labels["id2label"].items()}
    kind = f"{NETWORKS[request.param]}ForTokenClassification"
    path = network(tmp_path_factory.mktemp("tagger") / "model", request.param, kind, **labels)
    theirs = transformers.pipeline("token-classification", model=str(path), device="cpu")
    return pipeline("token-classification", model=path), theirs


ENTITY_CALLS: list[dict[str, Any]] = [
    {},
    {"ignore_labels": []},
    {"ignore_labels": ["O", "PER", "B-LOC"]},
    *({"aggregation_strategy": strategy} for strategy in ("simple", "first", "average", "max")),
    *({"aggregation_strategy": strategy, "ignore_labels": []} for strategy in ("simple", "first", "average", "max")),
    {"aggregation_strategy": "simple", "ignore_labels": ["PER"], "stride": 4},
    {"aggregation_strategy": "first", "stride": 0},
    {"aggregation_strategy": "max", "ignore_labels": [], "stride": 11},
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_tokens_and_entities_are_those_of_transformers(taggers):
    ours, theirs = taggers
    for arguments in ENTITY_CALLS:
        expected = plain(theirs(MANY_TEXTS, **arguments))
        for text, one, other in zip(MANY_TEXTS, ours(MANY_TEXTS, **arguments), expected, strict=True):
            assert same(one, other), (text, arguments, one, other)
    assert same(ours(TEXTS[0]), plain(theirs(TEXTS[0])))


def test_entities_are_refused_what_they_cannot_use(taggers):
    ours, _ = taggers
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (TEXTS, {"aggregation_strategy": "longest"}, "aggregation_strategy must be one of none, simple, .* 'longest'"),
        (TEXTS, {"stride": 4}, "stride is for entities"),
        (TEXTS, {"stride": -1, "aggregation_strategy": "max"}, "stride must be an integer of at least 0, got -1"),
        (TEXTS, {"stride": 30, "aggregation_strategy": "max"}, "overlap by 30 tokens do not advance.* for 30 tokens"),
        (TEXTS, {"ignore_labels": "O"}, "ignore_labels must be a list of labels, got 'O'"),
        (TEXTS, {"is_split_into_words": True}, "TokenClassificationPipeline does not know is_split_into_words"),
        ([("a", "b")], {}, "expected a text, got tuple"),
    ]
    for inputs, arguments, message in refused:
        with pytest.raises(InputError, match=message):
            ours(inputs, **arguments)
    with pytest.raises(InputError, match="TextClassificationPipeline needs a model with one sentence head"):
        pipeline("text-classification", model=ours.model)


@pytest.fixture(scope="module", params=NETWORKS)
def fillers(request, tmp_path_factory) -> tuple[Any, Any, str]:
    """Both fill-mask pipelines of a model, and its mask."""
    kind = f"{NETWORKS[request.param]}ForMaskedLM"
    path = network(tmp_path_factory.mktemp("filler") / "model", request.param, kind)
    edit(path / "tokenizer_config.json", clean_up_tokenization_spaces=request.param == "byte_level")
    theirs = transformers.pipeline("fill-mask", model=str(path), device="cpu")
    return pipeline("fill-mask", model=path), theirs, theirs.tokenizer.mask_token


@pytest.mark.slow
def test_masks_are_filled_as_by_transformers(fillers):
    ours, theirs, mask = fillers
    texts = [
        f"A man is playing a {mask}.", f"{mask}", f"{mask} dogs , they 're here !", f"naïve{mask} 👩‍👩‍👧‍👦 {mask}",
        f"{mask}{mask} {mask}  {mask}\n{mask}", f" ﬁn {mask} 東京都 ", f"A {mask} , and a {mask} .",
    ]  # fmt: skip
    calls: list[dict[str, Any]] = [{}, {"top_k": 1}, {"top_k": 50}]
    calls += [{"targets": ["a", "and", "."], "top_k": 2}, {"targets": "the"}, {"targets": ["a man", "Hawaii", "zq"]}]
    for arguments in calls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = ours(texts, **arguments)
        for text, one, other in zip(texts, found, theirs(texts, **arguments), strict=True):
            assert same(one, other), (text, arguments, one, other)
    assert same(ours(texts[0]), theirs(texts[0]))
    assert same(ours(texts[:1]), theirs(texts[:1]))
    long = [f"a {mask} b " * 30, f"a {mask} b " + "and so on " * 40]
    kwargs = {"tokenizer_kwargs": {"truncation": True}}
    assert same(ours(long, **kwargs), theirs(long, **kwargs))


def test_masks_are_refused_what_they_cannot_use(fillers):
    ours, _, mask = fillers
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ("no mask", {}, "in the text: 'no mask'"),
        ("a b " * 40 + mask, {"tokenizer_kwargs": {"truncation": True}}, "in the first 32 tokens of the text"),
        ("a b " * 40 + mask, {}, "over the maximum length of 64"),
        (mask, {"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        (mask, {"top_k": 10**6}, "topk must be an integer from 1 to the vocabulary's"),
        (mask, {"targets": []}, "targets must have at least one token"),
        (mask, {"tokenizer_kwargs": {"stride": 2}}, "tokenizer_kwargs has stride; it takes"),
        (mask, {"topk": 2}, "FillMaskPipeline does not know topk"),
        ([7], {}, "got int: 7"),
    ]
    for inputs, arguments, message in refused:
        with pytest.raises(InputError, match=message):
            ours(inputs, **arguments)
    with pytest.warns(UserWarning, match="the vocabulary has no token 'Hawaii man', using "):
        ours(mask, targets=["Hawaii man"])


@pytest.fixture(scope="module", params=NETWORKS)
def answerers(request, tmp_path_factory) -> tuple[Any, Any]:
    """Both question-answering pipelines of a model."""
    kind = f"{NETWORKS[request.param]}ForQuestionAnswering"
    path = network(tmp_path_factory.mktemp("answerer") / "model", request.param, kind)
    theirs = transformers.pipeline("question-answering", model=str(path), device="cpu")
    return pipeline("question-answering", model=path), theirs


SUBWORD_TEXTS = [  # with pieces that have no id, words of one piece and of several, and two spaces
    "Tôi là sinh_viên trường đại_học Công_nghệ .",
    "SC has first two presumptive cases of coronavirus , DHEC confirms",
    "Zoë  plays xyz 東京都",
]


@pytest.mark.parametrize("layout", ["phobert"])
def test_tokens_of_tokenizers_in_python_are_those_of_transformers_with_their_places(layout, tmp_path):
    labels = {"id2label": dict(enumerate(("O", "B-PER", "I-PER", "MISC")))}
    labels["label2id"] = {label: i for i, label in labels["id2label"].items()}
    path = network(tmp_path / "model", layout, "RobertaForTokenClassification", **labels)
    theirs = transformers.pipeline("token-classification", model=str(path), device="cpu")
    ours = pipeline("token-classification", model=path)
    unknown = 0
    for text in SUBWORD_TEXTS:
        expected = plain(theirs(text, ignore_labels=[]))
        found = ours(text, ignore_labels=[])
        for one, other in zip(found, expected, strict=True):
            piece = text[one["start"] : one["end"]]
            assert one["word"].removesuffix("@@") == piece
            is_unknown = other["word"] == "<unk>"
            unknown += is_unknown
            for key in ("entity", "score", "index", *([] if is_unknown else ["word"])):
                assert same(one[key], other[key]), (text, key, one, other)
        assert "".join(text[one["start"] : one["end"]] for one in found) == "".join(text.split())
        groups = ours(text, ignore_labels=[], aggregation_strategy="simple")
        for group in groups:
            assert group["word"].removesuffix("@@") == " ".join(text[group["start"] : group["end"]].split())
    assert unknown


@pytest.mark.parametrize("layout", ["bertweet"])
def test_masks_are_filled_with_tokenizers_in_python_as_by_transformers(layout, tmp_path):
    path = network(tmp_path / "model", layout, "RobertaForMaskedLM")
    theirs, ours = transformers.pipeline("fill-mask", model=str(path), device="cpu"), pipeline("fill-mask", model=path)
    for text in ("Tôi là <mask> .", "Tôi <mask> sinh_viên <mask> ."):
        assert same(ours(text, top_k=3), theirs(text, top_k=3))
    targets = {"targets": ["là", "two", "T@@"]}
    assert same(ours("SC has <mask> two", **targets), theirs("SC has <mask> two", **targets))


@pytest.mark.parametrize("layout", ["phobert"])
def test_answers_with_tokenizers_in_python_are_the_likeliest_words(layout, tmp_path):
    """By hand from the outputs of Transformers, whose pipeline fails at unknown pieces and at several spaces."""
    path = network(tmp_path / "model", layout, "RobertaForQuestionAnswering")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(path)
    question = "first two cases"
    for context in SUBWORD_TEXTS:
        inputs = tokenizer(question, context, return_tensors="pt", truncation=False)
        outputs = model(**inputs)
        words = context.split()
        word_of_token = [i for i, word in enumerate(words) for _ in tokenizer.tokenize(word)]
        length = inputs["input_ids"].shape[1]
        first = length - 1 - len(word_of_token)
        allowed = [0, *range(first, length - 1)]  # <s> stands for no answer
        starts, ends = (logits[0, allowed].softmax(0)[1:] for logits in (outputs.start_logits, outputs.end_logits))
        scores = (starts[:, None] * ends[None, :]).triu().tril(14)
        likeliest: dict[tuple[int, int], float] = {}  # several spans may be the same words
        for score, index in zip(*scores.flatten().topk(12), strict=True):
            start, end = (word_of_token[i] for i in divmod(int(index), len(word_of_token)))
            likeliest[start, end] = likeliest.get((start, end), 0.0) + score.item()
        (start, end), score = max(likeliest.items(), key=lambda each: each[1])
        found = pipeline("question-answering", model=path, max_seq_len=64)(question=question, context=context)
        assert found["answer"] == context[found["start"] : found["end"]]
        assert found["answer"].split() == words[start : end + 1]
        assert found["score"] == pytest.approx(score, abs=TOLERANCE)


FAIRSEQ_TEXTS = ["Barack Obama's  dog, it's 12,345!", "L'été à 東京都 👍🏽 \n a", "naïve", "a dog sleeps. " * 30]


@pytest.fixture(scope="module")
def of_fairseq(one_layer, tmp_path_factory) -> Any:
    """A model of fairseq's tokenizer with one head, and the same model in Transformers' files."""

    def make(head: HeadConfig) -> tuple[Roberta, Path]:
        roberta = load(one_layer)
        config = dataclasses.replace(roberta.config, heads=(head,))
        model = Roberta(config, {**roberta.params, "heads": random_params(config)["heads"]}, roberta.tokenizer)
        folder = tmp_path_factory.mktemp("fairseq")
        model.save(folder / "saved")
        return model, convert.export(folder / "saved", folder / "transformers", to="huggingface")

    return make


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_entities_by_fairseqs_tokenizer_are_those_by_the_tokenizer_of_its_export(of_fairseq):
    labels = ("O", "B-PER", "I-PER", "MISC")
    model, exported = of_fairseq(HeadConfig("tags", 4, 0, "token", labels=labels))
    theirs = transformers.pipeline("token-classification", model=str(exported), device="cpu")
    ours = pipeline("token-classification", model=model)
    for arguments in ({"ignore_labels": []}, {"aggregation_strategy": "simple"}, {"aggregation_strategy": "max"}):
        for text, one, other in zip(
            FAIRSEQ_TEXTS, ours(FAIRSEQ_TEXTS, **arguments), theirs(FAIRSEQ_TEXTS, **arguments), strict=True
        ):
            assert same(one, plain(other)), (text, arguments, one, other)


@pytest.mark.slow
def test_answers_by_fairseqs_tokenizer_are_those_by_the_tokenizer_of_its_export(of_fairseq):
    model, exported = of_fairseq(HeadConfig("span", 2, 0, "span"))
    theirs = transformers.pipeline("question-answering", model=str(exported), device="cpu")
    ours = pipeline("question-answering", model=model)
    for text in FAIRSEQ_TEXTS:
        for arguments in ({"max_seq_len": 48, "doc_stride": 7, "top_k": 2}, {"align_to_words": False}):
            inputs = {"question": "Who?", "context": text}
            assert same(ours(**inputs, **arguments), plain(theirs(**inputs, **arguments))), (text, arguments)


@pytest.mark.slow
def test_masks_by_fairseqs_tokenizer_are_filled_as_by_the_tokenizer_of_its_export(of_fairseq):
    model, exported = of_fairseq(HeadConfig("span", 2, 0, "span"))
    theirs = transformers.pipeline("fill-mask", model=str(exported), device="cpu")
    ours = pipeline("fill-mask", model=model)
    texts = [
        "A man is <mask> the guitar.", "<mask>", "naïve <mask>, 👍🏽<mask>!  <mask>\n<mask> it's", "<mask> 東京都",
        "a <mask> " + "b " * 600,
    ]  # fmt: skip
    for arguments in ({}, {"top_k": 40}, {"targets": ["a", "Ġman", "zq"], "top_k": 2}):
        arguments = {**arguments, "tokenizer_kwargs": {"truncation": True}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for text, one, other in zip(texts, ours(texts, **arguments), theirs(texts, **arguments), strict=True):
                assert same(one, other), (text, arguments, one, other)


CONTEXTS = [text for text in MANY_TEXTS if text] + [LONG]
QUESTION_CALLS: list[dict[str, Any]] = [
    {"doc_stride": 4},
    {"doc_stride": 0, "top_k": 3},
    {"max_seq_len": 64, "doc_stride": 13, "handle_impossible_answer": True, "top_k": 2},
    {"doc_stride": 6, "max_answer_len": 3, "align_to_words": False, "top_k": 2},
]


def test_answers_are_those_of_transformers(answerers):
    ours, theirs = answerers
    for arguments in QUESTION_CALLS:
        inputs = {"question": ["Who? 👍🏽"] * len(CONTEXTS), "context": CONTEXTS}
        for context, one, other in zip(
            CONTEXTS, ours(**inputs, **arguments), theirs(**inputs, **arguments), strict=True
        ):
            assert same(one, plain(other)), (context, arguments, one, other)


@pytest.mark.filterwarnings("ignore:Passing a list of SQuAD examples")
def test_questions_are_asked_in_each_form_that_transformers_takes(answerers):
    ours, theirs = answerers
    example = {"question": "Who sings?", "context": CONTEXTS[0]}
    several = {"question": ["Who sings?", "Where?"], "context": CONTEXTS[0]}
    one_in_a_list = {"question": ["Who sings?"], "context": CONTEXTS[0]}
    for keywords in (example, several, one_in_a_list):
        assert same(ours(**keywords, doc_stride=2), plain(theirs(**keywords, doc_stride=2)))
    for given in (example, [example], [example, example]):
        assert same(ours(given, doc_stride=2), plain(theirs(given, doc_stride=2)))
    assert same(ours(*example.values(), doc_stride=2), plain(theirs(*example.values(), doc_stride=2)))
    assert list(ours(iter([example] * 2), doc_stride=2)) == ours([example] * 2, doc_stride=2)


def test_questions_are_refused_what_they_cannot_use(answerers):
    ours, _ = answerers
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "give question=... and context=..., or"),
        ({"question": "Who?"}, "the context must be a text that is not empty, got None"),
        ({"question": "", "context": "a"}, "the question must be a text that is not empty, got ''"),
        ({"question": ["a", "b"], "context": ["c"]}, "got 2 questions and 1 contexts"),
        ({"question": "a", "context": "b", "top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"question": "a", "context": "b", "max_answer_len": 0}, "max_answer_len must be an integer of at least 1"),
        ({"question": "a", "context": "b", "max_seq_len": 900}, "max_length must be from 8 to the model's 64, got 900"),
        ({"question": "a", "context": "b", "doc_stride": 40}, "windows that overlap by 40 tokens do not advance"),
        ({"question": "a " * 50, "context": "b" * 50}, "leaves room for 0 tokens beside the texts before the last"),
        ({"question": "a", "context": "b", "n_best": 2}, "QuestionAnsweringPipeline does not know n_best"),
        ({"inputs": [("a", "b")]}, 'expected {"question": ..., "context": ...}, got'),
    ]
    for arguments, message in refused:
        with pytest.raises(InputError, match=re.escape(message)):
            ours(**arguments)


def test_an_iterator_of_inputs_gives_an_iterator_of_results(classifiers):
    ours, _ = classifiers
    results = ours(iter(TEXTS))
    assert isinstance(results, Iterator)
    assert list(results) == ours(TEXTS)


def test_what_a_pipeline_does_not_know_is_refused_by_name(classifiers):
    ours, _ = classifiers
    with pytest.raises(InputError, match="task must be one of .*, got 'summarization'"):
        pipeline("summarization", model=ours.model)
    with pytest.raises(InputError, match="TextClassificationPipeline does not know stride; its calls take"):
        ours(TEXTS, stride=2)
    with pytest.raises(InputError, match="TextClassificationPipeline does not know the option device; it takes"):
        pipeline("text-classification", model=ours.model, device=0)
    with pytest.raises(InputError, match="function_to_apply must be one of sigmoid, softmax, none, got 'tanh'"):
        ours(TEXTS, function_to_apply="tanh")
    with pytest.raises(InputError, match="over the maximum length of 128"):
        ours(LONG * 2)
    with pytest.raises(InputError, match="expected a text, or"):
        ours([("a", "b")])
