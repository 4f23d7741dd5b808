"""YAML as recipes use it: scalars by YAML 1.2, values no deeper than a flat list, and what is wrong with a text in words."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .collection import no_collection

_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset(("null", "bool", "int", "float", "str"))
STRING_TAG = f"{_CORE}str"
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_DEEPEST = 50
"""Nodes within nodes; recipes have three."""
_LONG = 50_000
"""Characters of a file that is no recipe that somebody wrote."""


class NotYAML(Exception):
    """A text cannot be read as YAML: at which line (0 if unknown), and what is wrong."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """Reads plain scalars by YAML 1.2's core rules."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (the base class's own form)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same rules by the parser in C, where there is one."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text, and keeps lists on one line."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True))


def dump(document: dict[str, Any]) -> str:
    """A document as YAML that loads back equal."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def compose(text: str) -> yaml.Node | None:
    """The node tree of a text; None when it is empty. Raises NotYAML."""
    try:
        node: yaml.Node | None = _compose_long(text) if len(text) > _LONG else yaml.compose(text, Loader=_Loader)
        return node
    except RecursionError:
        raise NotYAML(0, "nested too deeply") from None
    except yaml.reader.ReaderError as error:
        problem = f"a character that YAML does not allow, #x{error.character:04x}"
        # The parser in C counts bytes.
        before = text[: error.position] if error.encoding != "?" else text.encode()[: error.position].decode(errors="replace")
        raise NotYAML(before.count("\n") + 1, problem) from None
    except yaml.MarkedYAMLError as error:
        at_end = re.search("end of stream|<stream end>", error.problem or "")  # what was left open is the place to look at
        mark = error.context_mark if at_end and error.context_mark else error.problem_mark
        problem = f"not YAML: {' '.join(filter(None, (error.context, error.problem)))}"
        if "'\\t'" in problem:
            problem = "not YAML: a tab; indent with spaces"
        raise NotYAML(mark.line + 1 if mark else 0, problem) from None


def _compose_long(text: str) -> yaml.Node | None:
    """The node tree of a long text, in a twentieth of the time. Raises RecursionError and yaml.YAMLError."""
    with no_collection():
        depth = 0
        for event in yaml.parse(text, Loader=_FastLoader):
            # The parser in C goes down without a look at the stack, until the process dies.
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise RecursionError
        node: yaml.Node | None = yaml.compose(text, Loader=_FastLoader)
        return node


def value_of(node: yaml.Node | None) -> Any:
    """A scalar, or a flat list as a tuple; no field holds more, so nothing recurses.

    Raises:
        ValueError: another kind of node, or a scalar that its tag does not fit.
    """
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise ValueError("expected a list of single values")
        return tuple(value_of(item) for item in node.value)
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("expected a single value or a list")
    if node.tag.removeprefix(_CORE) not in _TAGS:
        raise ValueError(f"the tag {node.tag.replace(_CORE, '!!')[:80]} is not allowed here")
    try:
        return _Loader("").construct_object(node)
    except (ValueError, KeyError):
        raise ValueError(f"'{node.value[:40]}' cannot be read as {node.tag.removeprefix(_CORE)}") from None


def plain(text: str) -> yaml.ScalarNode:
    """The node of a plain scalar, whatever is in it."""
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return yaml.ScalarNode(tag, text)
