"""YAML as recipes use it: scalars by YAML 1.2, values no deeper than a flat list, and what is wrong with a text in words."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

from .collection import no_collection

_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset(("null", "bool", "int", "float", "str"))
STRING_TAG = f"{_CORE}str"
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_DEEPEST = 50
"""Nodes within nodes; recipes have three."""
_LONG = 50_000
"""Characters of a file that is no recipe that somebody wrote."""
_MOST = 10_000
"""Nodes of one that are looked at; recipes have some two hundred."""


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


class Composed(NamedTuple):
    """A text as a tree."""

    node: yaml.Node | None
    """None when the text is empty."""
    unread: int | None = None
    """The line behind which a text of very many values was not looked at."""


def compose(text: str) -> Composed:
    """The node tree of a text. Raises NotYAML."""
    try:
        return _compose_long(text) if len(text) > _LONG else Composed(yaml.compose(text, Loader=_Loader))
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


def _compose_long(text: str) -> Composed:
    """The node tree of a long text, or of its beginning, in a fraction of the time. Raises RecursionError and yaml.YAMLError."""
    events: list[yaml.Event] = []
    unread = None
    open_: list[list[Any]] = []  # of each collection: the event that ends it, how many nodes are in it
    with no_collection():
        for event in yaml.parse(text, Loader=_FastLoader):
            events.append(event)
            if isinstance(event, yaml.NodeEvent) and open_:
                open_[-1][1] += 1
            if isinstance(event, yaml.CollectionStartEvent):
                in_mapping = isinstance(event, yaml.MappingStartEvent)
                open_.append([yaml.MappingEndEvent() if in_mapping else yaml.SequenceEndEvent(), 0])
                # The parser in C goes down without a look at the stack, until the process dies.
                if len(open_) > _DEEPEST:
                    raise RecursionError
            elif isinstance(event, yaml.CollectionEndEvent):
                open_.pop()
            if len(events) > _MOST:
                assert event.end_mark is not None  # the parser tells of each event where it stands
                unread = event.end_mark.line + 1
                events += _ended(open_, event.end_mark)
                break
    return Composed(_Composer(events).get_single_node(), unread)


def _ended(open_: list[list[Any]], mark: Any) -> Iterator[yaml.Event]:
    """The events that end a text in the midst of some collections: each that ends one, and how many nodes are in that."""
    for end, nodes in reversed(open_):
        if isinstance(end, yaml.MappingEndEvent) and nodes % 2:  # a name without a value
            yield yaml.ScalarEvent(None, None, (True, False), "", mark, mark)
        end.start_mark = end.end_mark = mark
        yield end
    yield yaml.DocumentEndEvent(mark, mark)
    yield yaml.StreamEndEvent(mark, mark)


class _Composer(Composer, Resolver):
    """The node tree of events, by the same rules."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def __init__(self, events: list[yaml.Event]) -> None:
        Composer.__init__(self)
        Resolver.__init__(self)
        self._events = deque(events)

    def peek_event(self) -> yaml.Event:
        return self._events[0]

    def get_event(self) -> yaml.Event:
        return self._events.popleft()

    def check_event(self, *kinds: type[yaml.Event]) -> bool:
        return not kinds or isinstance(self._events[0], kinds)


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
