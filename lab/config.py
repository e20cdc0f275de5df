"""Reading YAML configs strictly: what is wrong is named by its key, with what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import yaml

from lab.ops.operator import is_finite

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that is not what it must be; the message names the key."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, which YAML 1.1 takes for a text, and refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"the key in line {key.start_mark.line + 1} is a {key.id}; expected a text")
            if key.value in seen:
                raise ConfigError(f"{key.value} is given twice, again in line {key.start_mark.line + 1}; expected once")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(path: Path, parse: Callable[[object], T]) -> T:
    """What `parse` makes of the content of a YAML file. Raises ConfigError naming the file, and the key if it is one's
    fault."""
    try:
        return parse(yaml.load(path.read_text(), _Loader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:  # PyYAML's own too, such as for a day that no month has
        raise ConfigError(f"{path}: {error}") from None


def mapping(value: object, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict:
    """`value`, a mapping that has the required keys and no others than these and the optional ones."""
    required, known = set(required), {*required, *optional}
    require(isinstance(value, dict), where, value, f"a mapping with the keys {', '.join(sorted(known))}")
    assert isinstance(value, dict)
    if unknown := set(value) - known:
        raise ConfigError(f"{where}.{min(map(str, unknown))} is not a key; expected {', '.join(sorted(known))}")
    if missing := required - set(value):
        raise ConfigError(f"{where}.{min(missing)} is missing")
    return value


def sequence(value: object, where: str, empty: bool = False) -> list:
    require(isinstance(value, list) and (empty or bool(value)), where, value, "a list with something in it")
    assert isinstance(value, list)
    return value


def integer(value: object, where: str, least: int) -> int:
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(valid, where, value, f"a whole number of at least {least}")
    assert isinstance(value, int)
    return value


def seed(value: object, where: str) -> int:
    """One that PyTorch takes."""
    valid = integer(value, where, 0)
    require(valid < 2**63, where, value, "a whole number below 2^63")
    return valid


def number(value: object, where: str, allowed: Callable[[float], bool], expected: str) -> float:
    """A finite number that is allowed; `expected` says which are."""
    require(is_finite(value) and allowed(value), where, value, expected)
    assert isinstance(value, (int, float))
    return float(value)


def boolean(value: object, where: str) -> bool:
    require(isinstance(value, bool), where, value, "true or false")
    assert isinstance(value, bool)
    return value


def text(value: object, where: str, expected: str) -> str:
    require(isinstance(value, str) and bool(value), where, value, expected)
    assert isinstance(value, str)
    return value


def require(true: bool, where: str, value: object, expected: str) -> None:
    if not true:
        raise ConfigError(f"{where} is {value!r}; expected {expected}")
