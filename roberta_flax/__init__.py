"""RoBERTa-family encoders in JAX: load a model, encode text, extract features, classify pairs, fill masks.

>>> import roberta_flax
>>> roberta = roberta_flax.load("roberta.large.mnli")
>>> tokens = roberta.encode("Roberta is a heavily optimized version of BERT.", "Roberta is based on BERT.")
>>> roberta.predict("mnli", tokens).argmax()  # 2: entailment

Names are imported when they are first used: `roberta-flax --help` waits for no JAX.
"""

from typing import TYPE_CHECKING

from roberta_flax import lazy

if TYPE_CHECKING:
    from roberta_flax import convert, datasets, parity, train
    from roberta_flax.checkpoint import stablehlo
    from roberta_flax.encoders import CrossEncoder, SentenceEncoder, maxsim
    from roberta_flax.errors import CheckpointError, DownloadError, InputError, RobertaFlaxError
    from roberta_flax.hub import Roberta, load, load_tokenizer
    from roberta_flax.inference import beam, ray, spark
    from roberta_flax.inference.predictor import Predictor
    from roberta_flax.nn import forward, sharding
    from roberta_flax.nn.config import HeadConfig, RobertaConfig
    from roberta_flax.nn.model import RobertaModel
    from roberta_flax.nn.numerics import Numerics
    from roberta_flax.pipelines import pipeline
    from roberta_flax.tasks.answers import Answer
    from roberta_flax.tasks.choose import Choose
    from roberta_flax.tasks.classify import Classify
    from roberta_flax.tasks.embed import Embed
    from roberta_flax.tasks.entities import Tag
    from roberta_flax.tasks.fill_mask import FillMask
    from roberta_flax.tasks.rank import Rank
    from roberta_flax.tasks.sentence_scores import Score
    from roberta_flax.tasks.zero_shot import ZeroShot
    from roberta_flax.text.batching import collate_tokens
    from roberta_flax.text.encoding import Rejected
    from roberta_flax.text.tokenizer import Tokenizer

__all__ = [
    "Answer",
    "CheckpointError",
    "Choose",
    "Classify",
    "CrossEncoder",
    "DownloadError",
    "Embed",
    "FillMask",
    "HeadConfig",
    "InputError",
    "Numerics",
    "Predictor",
    "Rank",
    "Rejected",
    "Roberta",
    "RobertaConfig",
    "RobertaFlaxError",
    "RobertaModel",
    "Score",
    "SentenceEncoder",
    "Tag",
    "Tokenizer",
    "ZeroShot",
    "beam",
    "collate_tokens",
    "convert",
    "datasets",
    "forward",
    "load",
    "load_tokenizer",
    "maxsim",
    "parity",
    "pipeline",
    "ray",
    "sharding",
    "spark",
    "stablehlo",
    "train",
]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "tasks.answers",
    "CheckpointError": "errors",
    "Choose": "tasks.choose",
    "Classify": "tasks.classify",
    "CrossEncoder": "encoders",
    "DownloadError": "errors",
    "Embed": "tasks.embed",
    "FillMask": "tasks.fill_mask",
    "HeadConfig": "nn.config",
    "InputError": "errors",
    "Numerics": "nn.numerics",
    "Predictor": "inference.predictor",
    "Rank": "tasks.rank",
    "Rejected": "text.encoding",
    "Roberta": "hub",
    "RobertaConfig": "nn.config",
    "RobertaFlaxError": "errors",
    "RobertaModel": "nn.model",
    "Score": "tasks.sentence_scores",
    "SentenceEncoder": "encoders",
    "Tag": "tasks.entities",
    "Tokenizer": "text.tokenizer",
    "ZeroShot": "tasks.zero_shot",
    "beam": "inference.beam",
    "collate_tokens": "text.batching",
    "forward": "nn.forward",
    "load": "hub",
    "load_tokenizer": "hub",
    "maxsim": "encoders",
    "pipeline": "pipelines",
    "ray": "inference.ray",
    "sharding": "nn.sharding",
    "spark": "inference.spark",
    "stablehlo": "checkpoint.stablehlo",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attach(__name__, __all__, _HOMES)
