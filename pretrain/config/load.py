"""A config from its YAML file and `section.option=value` overrides; every problem in one message."""

import difflib
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pretrain.config.base import option_paths
from pretrain.config.objectives import BEFORE_IT_EXISTED
from pretrain.config.problems import describe_problems
from pretrain.config.run import RunConfig, with_kinds
from pretrain.errors import ConfigError

log = logging.getLogger(__name__)

SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
"""The configs of an installed package, and of a checkout."""

FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Numbers such as `1e-4`, which YAML 1.1 takes for words."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error and only `true` and `false` are truth values (`off` is a word)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Puts quotation marks around text that `_Loader` would take for a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"'{key_node.value}' stands twice", key_node.start_mark)
        seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else "")
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _integral(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    """A float; `1e5` is a whole number, which counts may be given as."""
    value: float = loader.construct_yaml_float(node)
    return int(value) if "e" in node.value.lower() and value.is_integer() and "." not in node.value else value


_Loader.add_constructor("tag:yaml.org,2002:float", _integral)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError: a date such as 2024-02-31
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def find_config(path: str | Path) -> Path:
    """The file of a config: as given, or one of the shipped ones (`configs/<family>/demo.yaml`), which the log says.

    Raises ConfigError, saying where it was looked for, and what there is.
    """
    given = Path(path)
    if given.is_file():
        return given
    shipped = shipped_configs()
    if given.as_posix() in shipped:
        log.info("using the shipped %s", given)
        return shipped[given.as_posix()]
    if (given / "config.yaml").is_file():  # a run's own
        return given / "config.yaml"
    if given.is_dir():
        raise ConfigError(f"{path}: a folder, not a config file")
    where = "" if given.is_absolute() else f" in {Path.cwd()}, nor among the shipped ones"
    raise ConfigError(f"{path}: no such config file{where}; {_shipped_like(given, shipped)}")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by the path that a command takes: `configs/<family>/<name>.yaml`."""
    roots = [root for root in reversed(SHIPPED) if root.is_dir()]
    return {f"configs/{file.relative_to(root).as_posix()}": file for root in roots for file in root.rglob("*.yaml")}


def _shipped_like(given: Path, shipped: dict[str, Path]) -> str:
    """The shipped config that was probably meant; else all of them."""
    family = [name for name in shipped if given.parent.name in name.split("/")]
    by_stem = difflib.get_close_matches(given.stem, [Path(name).stem for name in family or shipped], 1, 0.7)
    close = [name for name in family or shipped if Path(name).stem in by_stem]
    if close:
        return f"did you mean {' or '.join(sorted(close))}?"
    return f"shipped are {', '.join(sorted(shipped))}"


def _override(values: dict[str, Any], override: str) -> None:
    """Puts one override into `values`."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"{override!r} is not of the form section.option=value: put quotes around an option that has spaces"
        )
    section = values
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(keys[:depth])} is not a section of options")
    section[keys[-1]] = _parse(text, f"override {override!r}")


def build_config(values: dict[str, Any], where: str) -> RunConfig:
    """A validated config; raises ConfigError with one line per problem, each with its dotted path."""
    values = with_kinds(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = describe_problems(values, error.errors(), list(option_paths(RunConfig)))
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run of a YAML file with overrides; raises ConfigError with every problem at once."""
    file = find_config(path)
    values = _read_values(file)
    if Path(path).is_dir():
        values = _as_the_run_began(values)
    problems = []
    for override in overrides:
        try:
            _override(values, override)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return build_config(values, str(path))


def load_run_config(file: Path) -> RunConfig:
    """The config of a run folder; raises ConfigError."""
    return build_config(_as_the_run_began(_read_values(file)), str(file))


def _as_the_run_began(values: dict[str, Any]) -> dict[str, Any]:
    """A run's own options; those that are younger than the run as it was before, and not as new runs are by default."""
    objective = values.get("objective")
    if not isinstance(objective, dict):
        return values
    return values | {"objective": BEFORE_IT_EXISTED.get(str(objective.get("kind")), {}) | objective}


def _read_values(file: Path) -> dict[str, Any]:
    """The options of a YAML file, unchecked."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}, line {line}: not UTF-8: convert it: iconv -f LATIN1 -t UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    values = _parse(text, str(file))
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: not a config: expected sections and options, found {type(values).__name__}")
    return values


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; loading it gives the same config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
