"""RoBERTa-family encoders in JAX: load a model, encode text, extract features, classify pairs, fill masks.

>>> import roberta_flax
>>> roberta = roberta_flax.load("roberta.large.mnli")
>>> tokens = roberta.encode("Roberta is a heavily optimized version of BERT.", "Roberta is based on BERT.")
>>> roberta.predict("mnli", tokens).argmax()  # 2: entailment
"""

from roberta_flax.errors import CheckpointError, DownloadError, InputError, RobertaFlaxError
from roberta_flax.hub import Roberta, load, load_tokenizer
from roberta_flax.inference.predictor import Predictor
from roberta_flax.nn import forward
from roberta_flax.nn.config import HeadConfig, RobertaConfig
from roberta_flax.nn.model import RobertaModel
from roberta_flax.nn.numerics import Numerics
from roberta_flax.tasks.classify import Classify
from roberta_flax.tasks.embed import Embed
from roberta_flax.tasks.fill_mask import FillMask
from roberta_flax.text.batching import collate_tokens
from roberta_flax.text.encoding import Rejected
from roberta_flax.text.tokenizer import Tokenizer

__all__ = [
    "CheckpointError",
    "Classify",
    "DownloadError",
    "Embed",
    "FillMask",
    "HeadConfig",
    "InputError",
    "Numerics",
    "Predictor",
    "Rejected",
    "Roberta",
    "RobertaConfig",
    "RobertaFlaxError",
    "RobertaModel",
    "Tokenizer",
    "collate_tokens",
    "forward",
    "load",
    "load_tokenizer",
]
__version__ = "0.1.0"
