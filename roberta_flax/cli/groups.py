"""Options in groups: a dataclass whose fields are options, declared once for every command that has them.

>>> @dataclass(frozen=True)
... class DeviceOptions(Group, panel="Devices"):
...     tensor_parallel: Annotated[int, typer.Option(help="Number of devices that share each layer.")] = 1
>>> @grouped
... def command(devices: DeviceOptions = DeviceOptions(tensor_parallel=2)) -> None:
...     run(devices.tensor_parallel)

`--help` shows a group's options under its panel, and in panels at the end those that few people need: `advanced`
groups, and options marked ADVANCED. A command that wants other defaults gives an instance with them. A group's field
may be a group itself. What `show_default=` says of an option is what None stands for. An option whose metavar lists its
values, "a|b|c", takes no others; completion offers them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo, ParameterInfo

from roberta_flax.errors import did_you_mean, printable
from roberta_flax.remote import to_path

_UsageError: Any = typer.BadParameter.__base__  # of click, or of the copy of it in newer versions of typer
ADVANCED = object()  # marks an option that few people need
_ADVANCED = " (advanced)"  # ends the title of a panel with such options


class Group:
    """Base of the dataclasses. A subclass's options stand before those of its base, each in the panel of its class."""

    panel: ClassVar[str | None] = None

    def __init_subclass__(cls, *, panel: str | None = None, advanced: bool = False) -> None:
        if panel is not None:
            cls.panel = f"{panel}{_ADVANCED}" if advanced else panel

    def given(self, *names: str) -> dict[str, Any]:
        """The options that are not None, all or those named, as arguments of a function with defaults of its own."""
        values = vars(self)
        return {name: values[name] for name in names or values if values[name] is not None}


class Formerly(tuple[str, ...]):
    """Marks an option or argument that had other names: Formerly(("--updates",)). They are accepted, and not shown."""


class Command(TyperCommand):
    """A command of the program; an option's former names are read as its name, and an argument's are left out.

    Attributes:
      former: the name now of each former name.
      defaults: the defaults that help shows, by the parameters' names, for these arguments.
      hints: what to use in place of options that other programs have.
    """

    former: ClassVar[dict[str, str | None]] = {}
    defaults: ClassVar[Callable[[list[str]], dict[str, Any]] | None] = None
    hints: ClassVar[dict[str, str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        renamed = [part for arg in args[:end] for part in self._renamed(arg)] + args[end:]
        try:
            with self._defaults_shown(renamed[:end]):
                return super().parse_args(ctx, renamed)
        except _UsageError as error:
            hint = self.hints.get(getattr(error, "option_name", None) or "", "")
            error.message = printable(f"{error.message}{hint and f' {hint}'}")
            raise

    def _renamed(self, arg: str) -> list[str]:
        name, equals, value = arg.partition("=")
        if name.startswith("--") and "_" in name:
            name = name.replace("_", "-")
            arg = f"{name}{equals}{value}"
        if name not in self.former:
            return [arg]
        now = self.former[name]
        return [f"{now}{equals}{value}"] if now else [value] if equals else []

    @contextmanager
    def _defaults_shown(self, args: list[str]) -> Iterator[None]:
        """While arguments ask for help: the defaults that they lead to, in place of what is said in general."""
        params = self.params
        if (defaults := type(self).defaults) is not None and {"-h", "--help"} & set(args):
            shown = defaults(args)
            self.params = [copy(param) for param in params]
            for param in self.params:
                if param.name in shown:
                    param.show_default = str(shown[param.name])  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.params = params


def add(
    app: typer.Typer,
    name: str,
    command: Callable[..., None],
    example: str,
    *,
    panel: str | None = None,
    defaults: Callable[[list[str]], dict[str, Any]] | None = None,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Adds what `grouped` has made to a program, with an example for its help; other arguments as in Command."""
    attributes = {
        "former": vars(command)["former"],
        "defaults": None if defaults is None else staticmethod(defaults),
        "hints": dict(hints or {}),
    }
    text = f"{command.__doc__}\n\nExample: {_escaped(example)}"
    app.command(name, cls=type("Command", (Command,), attributes), help=text, rich_help_panel=panel)(command)


def value_of(option: str, arguments: list[str]) -> str | None:
    """The value of an option among arguments that are not parsed; None where it is not there."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[place + 1 :]), None)
    return None


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer, of a function whose parameters are groups, options and arguments."""
    hints = get_type_hints(function, include_extras=True)
    shown: list[inspect.Parameter] = []
    former: dict[str, str | None] = {}
    names: set[str] = set()
    paths: set[str] = set()
    parameters = inspect.signature(function).parameters

    for parameter in parameters.values():
        for name, hint, default, panel in _options(parameter.name, hints[parameter.name], parameter.default):
            if name in names:
                raise ValueError(f"{function.__module__} declares {name} twice")
            names.add(name)
            if get_args(hint)[0] in (Path, Path | None, list[Path]):
                paths.add(name)
            kind, info, others = _split(name, hint, panel, default)
            former |= dict.fromkeys(others, info.default if isinstance(info, OptionInfo) else None)
            annotation = Annotated[kind, info]  # type: ignore[valid-type]
            shown.append(inspect.Parameter(name, parameter.KEYWORD_ONLY, annotation=annotation, default=default))
    shown.sort(key=_is_advanced)  # stable: help shows panels in this order

    def command(**values: Any) -> None:
        values |= {name: _to_paths(values[name]) for name in paths}
        function(**{name: _argument(name, hints[name], values) for name in parameters})

    command.__doc__, command.__module__ = _escaped(inspect.getdoc(function)), function.__module__
    command.__annotations__ = {one.name: one.annotation for one in shown}
    command.__dict__ |= {"__signature__": inspect.Signature(shown), "former": former}
    return command


def _options(
    name: str, hint: Any, default: Any, panel: str | None = None
) -> Iterator[tuple[str, Any, Any, str | None]]:
    """An option's name, annotation, default and panel; of a group, those of each of its options."""
    if not _is_group(hint):
        yield name, hint, default, panel
        return
    panels: dict[str, str | None] = {}
    for kind in hint.__mro__:
        if issubclass(kind, Group) and kind is not Group:
            panels = panels | {name: kind.panel for name in inspect.get_annotations(kind) if name not in panels}
    defaults = {field.name: getattr(default, field.name, field.default) for field in fields(hint)}
    annotations = get_type_hints(hint, include_extras=True)
    for field, its_panel in panels.items():
        its_default = inspect.Parameter.empty if defaults[field] is MISSING else defaults[field]
        yield from _options(field, annotations[field], its_default, its_panel)


def _argument(name: str, hint: Any, values: Mapping[str, Any]) -> Any:
    """An option's value, or a group of the values of its options."""
    if not _is_group(hint):
        return values[name]
    hints = get_type_hints(hint)
    return hint(**{field.name: _argument(field.name, hints[field.name], values) for field in fields(hint)})


def _is_advanced(parameter: inspect.Parameter) -> bool:
    panel = get_args(parameter.annotation)[1].rich_help_panel
    return isinstance(panel, str) and panel.endswith(_ADVANCED)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Group)


def _split(name: str, hint: Any, panel: str | None, default: Any) -> tuple[Any, ParameterInfo, Formerly]:
    """An annotation's type, its typer.Option or Argument as it is shown, and its former names."""
    kind, *marks = get_args(hint)
    info = copy(next(mark for mark in marks if isinstance(mark, ParameterInfo)))
    info.help = _escaped(info.help)
    info.rich_help_panel = info.rich_help_panel or panel
    if ADVANCED in marks and not (panel or "").endswith(_ADVANCED):
        info.rich_help_panel = f"{panel or 'Options'}{_ADVANCED}"
    if re.fullmatch(r"[\w-]+(\|[\w-]+)+|[a-z]\w*", info.metavar or ""):
        _limit_to_choices(info, str(info.metavar).split("|"))
    if isinstance(info.show_default, str) and default is not None:
        info.show_default = True
    if isinstance(info, OptionInfo) and info.default is ...:
        info.default = f"--{name.replace('_', '-')}"  # of flags too, which would have a --no-... otherwise
    return kind, info, next((mark for mark in marks if isinstance(mark, Formerly)), Formerly())


def _to_paths(value: Any) -> Any:
    """The paths as functions take them: those of URLs are of a kind of their own."""
    if value is None or isinstance(value, Path):
        return value if value is None else to_path(value)
    return [to_path(path) for path in value]


def _limit_to_choices(info: ParameterInfo, choices: list[str]) -> None:
    """Has an option take only the choices, however they are spelled: capitals, underscores, and "bf16" for a dtype."""
    by_key = {_key(choice): choice for choice in choices}
    then = info.callback

    def chosen(given: str) -> str:
        if (choice := by_key.get(_key(given)) or by_key.get(_of_dtype(given))) is None:
            known = f"is not one of {', '.join(choices)}" if len(choices) > 1 else f"can only be {choices[0]}"
            raise typer.BadParameter(f"{given!r} {known}{did_you_mean(given, choices)}")
        return choice

    def convert(value: Any) -> Any:
        if value is not None:
            value = chosen(value) if isinstance(value, str) else [chosen(each) for each in value]
        return value if then is None else then(value)

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    info.callback, info.autocompletion = convert, complete


def _key(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()


def _of_dtype(text: str) -> str:
    """The name of the dtype that has this short name ("bf16"), or else the text."""
    from roberta_flax.nn.numerics import DTYPE_NAMES

    return DTYPE_NAMES.get(text.casefold(), text)


def _escaped(text: str | None) -> str | None:
    """Help that rich shows as it is written: [brackets] are no markup."""
    if text is None or "[" not in text:
        return text
    from rich.markup import escape

    return escape(text)
