"""What a worker of any engine (Ray, Beam, Spark) does: it loads a model once, and makes a record of each input."""

from __future__ import annotations

import inspect
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roberta_flax import hub
from roberta_flax.checkpoint import converted
from roberta_flax.checkpoint import usage as usages
from roberta_flax.convert import cache
from roberta_flax.datasets import tables
from roberta_flax.errors import InputError, did_you_mean
from roberta_flax.inference import jobs
from roberta_flax.inference.predictor import Predictor, windows_of
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.tasks.base import Task, TaskOfModel, as_done_by
from roberta_flax.text.encoding import Rejected
from roberta_flax.text.tokenizer import Tokenizer

REASON = "rejected"  # the field with the reason why an input has no result
TRUNCATED = "truncated"  # the field that tells whether an input was over the maximum length and lost tokens
_FILES = ("cache_dir", "sha256", "checkpoint_file", "bpe_dir")  # arguments of load that find a model's files
_OTHER_FIELDS: jobs.Schema = {REASON: "text", TRUNCATED: "boolean"}


@dataclass(frozen=True)
class Assignment:
    """What workers are asked to do, as it is sent to them. It holds no parameters.

    Attributes:
      model: a model that roberta_flax.load accepts. A path must exist on every worker.
      task: a task whose results jobs.result_format knows, as all of roberta_flax's are.
      load: options of roberta_flax.load.
      options: options of roberta_flax.Predictor.
    """

    model: str
    task: Task | TaskOfModel
    load: Mapping[str, Any]
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str],
        task: Task | TaskOfModel,
        load: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Assignment:
        """An assignment whose options have names that exist. Raises InputError for others, before a worker starts."""
        for function, given in ((hub.load, load or {}), (Predictor, options)):
            parameters = inspect.signature(function).parameters.values()
            known = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
            if unknown := next((name for name in given if name not in known), None):
                raise InputError(
                    f"{function.__name__} has no option {unknown!r}; it has {', '.join(known)}"
                    f"{did_you_mean(unknown, known)}"
                )
        return cls(str(model), task, dict(load or {}), dict(options))

    def directory(self) -> Path:
        """The converted model, which is made in the cache if necessary."""
        return cache.resolve(self.model, **{name: self.load[name] for name in _FILES if name in self.load})

    def schema(self) -> jobs.Schema:
        """The fields of a record and the kind of each, from the model's files other than its parameters.

        Raises:
          InputError: the model cannot do the task, or its results cannot be written.
        """
        directory = self.directory()
        config, tokenizer = converted.read_config(directory), Tokenizer.from_directory(directory)
        model = hub.Roberta(config, {}, tokenizer, usage=usages.read(directory, config))
        task = as_done_by(model, self.task)
        task.check(config)
        return {**jobs.result_format(_Described(task, config, tokenizer))[0], **_OTHER_FIELDS}


@dataclass(frozen=True)
class _Described:
    """What jobs.result_format reads of a predictor."""

    task: Task
    config: RobertaConfig
    tokenizer: Tokenizer


class Worker:
    """A loaded model that makes a record of each input. Threads may share it.

    Attributes:
      schema: the fields of a record and the kind of each: those of the task's results, "rejected" and "truncated".
    """

    def __init__(self, assignment: Assignment) -> None:
        """Loads the model. Errors are those of load, Predictor and jobs.result_format."""
        self._name, self._directory = assignment.model, assignment.directory()
        load = {name: value for name, value in assignment.load.items() if name not in _FILES}
        self._predictor = Predictor(hub.load(self._directory, **load), assignment.task, **assignment.options)
        results, self._to_record = jobs.result_format(self._predictor)
        self._no_result = dict.fromkeys(results)
        self.schema: jobs.Schema = {**results, **_OTHER_FIELDS}
        self._lock = threading.Lock()

    def metadata(self) -> dict[str, str]:
        """The model, the SHA-256 of its files and all settings, for the metadata of a Parquet file."""
        contents = jobs.model_contents(self._name, self._directory)
        return {jobs.METADATA: json.dumps(jobs.settings_of(self._predictor, contents), sort_keys=True)}

    def records(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """A record of each input, in order.

        Returns:
          Dicts with the fields of `schema`. If an input is rejected, "rejected" has the reason and the fields of the
          result are None; if not, it is None. Fields of several numbers are arrays (tables.Kind).
        """
        records: list[dict[str, Any]] = []
        with self._lock:
            for results in self._predictor.windows(windows_of(inputs, self._predictor.window)):
                truncated = set(results.truncated)
                records += (self._record(result, number in truncated) for number, result in enumerate(results))
        return records

    def plain_records(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """As `records`, of values that any library takes (tables.plain_record)."""
        return [tables.plain_record(record, self.schema) for record in self.records(inputs)]

    def _record(self, result: Any, is_truncated: bool) -> dict[str, Any]:
        if isinstance(result, Rejected):
            return {**self._no_result, REASON: result.reason, TRUNCATED: False}
        return {**self._to_record(result), REASON: None, TRUNCATED: is_truncated}
