"""A config from its YAML file and `section.option=value` overrides; every problem in one message."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError

SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
"""The configs of an installed package, and of a checkout."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error and only `true` and `false` are truth values (`off` is a word)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands twice", key_node.start_mark)
        seen.add(key)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as a string; here it is a number."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "0123456789.-+":
        return _number(value)
    return value


def _parse(text: str, where: str) -> Any:
    try:
        return _numbers(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def find_config(path: str | Path) -> Path:
    """The file of a config: as given, or one of the shipped ones (`configs/elmo/demo.yaml`)."""
    given = Path(path)
    if given.is_file():
        return given
    if given.parts[:1] == ("configs",):
        for root in SHIPPED:
            if (root / Path(*given.parts[1:])).is_file():
                return root / Path(*given.parts[1:])
    raise ConfigError(f"{path}: no such config file")


def _override(values: dict[str, Any], override: str) -> str | None:
    """Puts one override into `values`; returns what is wrong with it."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return f"{override!r} is not an override of the form section.option=value"
    section = values
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            return f"{override!r}: {'.'.join(keys[:depth])} is not a section"
    section[keys[-1]] = _parse(text, f"override {override!r}")
    return None


UNIONS = {
    "words",
    "wordpiece",
    "elmo",
    "bert",
    "adamw",
    "adagrad",
    "text",
    "json",
    "parquet",
    "arrow",
    "hub",
    "python_docs",
}
"""The kinds that pydantic inserts into the path of an error; no option has such a name at that place."""


def _problem(error: Any) -> str:
    """One line for one of pydantic's errors."""
    location = [str(part) for part in error["loc"] if not (isinstance(part, str) and (part in UNIONS or "[" in part))]
    path = ".".join(location)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "no such option"
    elif error["type"] == "missing":
        return f"{path}: missing"
    given = error["input"]
    shown = "" if isinstance(given, dict) or error["type"] == "value_error" else f" (given: {given!r})"
    return f"{path}: {message}{shown}" if path else f"{message}{shown}"


def build_config(values: dict[str, Any], where: str) -> RunConfig:
    """A validated config; raises ConfigError with one line per problem, each with its dotted path."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = list(dict.fromkeys(_problem(e) for e in error.errors()))
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def load_config(path: str | Path, overrides: Sequence[str] | Iterable[str] = ()) -> RunConfig:
    """The run of a YAML file with overrides; raises ConfigError with every problem at once."""
    file = find_config(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    values = _parse(text, str(file))
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: not a config: expected sections and options, found {type(values).__name__}")
    problems = [problem for override in overrides if (problem := _override(values, override))]
    if problems:
        raise ConfigError("\n".join(problems))
    return build_config(values, str(path))


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; loading it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
