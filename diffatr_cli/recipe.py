"""Recipes from YAML files and `section.field=value` overrides, with every problem reported at once and at its place.

A recipe may extend another (`extends: base`) and states only what differs. Plain scalars follow YAML 1.2: `3e-4` is a
number, `yes` and `1:30` are text. Values are never coerced, except that whole numbers serve as floats.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .errors import UsageError
from .recipe_schema import Recipe
from .recipe_yaml import STRING_TAG, NotYAML, compose, dump, plain, value_of

SECTIONS = {name: tuple(type(info.default).model_fields) for name, info in Recipe.model_fields.items()}
"""Section name to its field names, in the schema's order."""

_FIELDS = [f"{section}.{name}" for section, names in SECTIONS.items() for name in names]
_SUFFIXES = (".yaml", ".yml")
_LONGEST_CHAIN = 100
_MANY, _SHOWN = 40, 20
"""Of more than so many problems, so many are told."""


class RecipeError(UsageError):
    """One or more problems in a recipe; `problems` holds a line for each, `file:line: field: problem`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(*problems)
        self.problems = tuple(problems)


# --- finding ---------------------------------------------------------------------------------------------------------


def list_recipes() -> dict[str, Path]:
    """The recipes that can be named: those in `./recipes`, then those that ship with the package and are not shadowed."""
    return {path.stem: path for folder in reversed(_recipe_folders()) for path in sorted(folder.glob("*.yaml")) if path.is_file()}


def find_recipe(name: str) -> Path:
    """The file of a recipe named by path or by bare name.

    Raises:
        RecipeError: no such file or name; the known names are listed.
    """
    if _is_bare(name) and (found := list_recipes().get(name)):
        return found
    if os.path.isfile(name):  # which is False for any text that cannot be a path
        return Path(name)
    known = list_recipes()
    near = get_close_matches(_cut(Path(name).stem), known, n=1)
    problem = f"no recipe named '{name}'" if _is_bare(name) else "no such recipe file"
    raise RecipeError([f"{name}: {problem}{_did_you_mean(near)}; the known recipes are {', '.join(sorted(known)) or 'none'}"])


def _recipe_folders() -> list[Path]:
    package = Path(__file__).parent
    shipped = package / "recipes"  # in a wheel; in a checkout they lie beside the package
    return [Path("recipes"), shipped if shipped.is_dir() else package.parent / "recipes"]


def _is_bare(name: str) -> bool:
    return not name.endswith(_SUFFIXES) and "/" not in name and os.sep not in name


def _cut(name: str) -> str:
    """A name that is shown; comparing a very long one with others would take minutes."""
    return name if len(name) <= 80 else f"{name[:77]}..."


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML that loads back equal: what a run folder keeps."""
    return dump(recipe.model_dump())


def differing_fields(one: Recipe, other: Recipe) -> list[str]:
    """The fields, `section.field`, in which two recipes differ."""
    ours, theirs = one.model_dump(), other.model_dump()
    return [
        f"{section}.{name}"
        for section, names in SECTIONS.items()
        for name in names
        if ours[section][name] != theirs[section][name]
    ]


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a value was given; `order` sorts problems: the recipe's own file, its bases, then the command line."""

    order: int
    name: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name


@dataclass
class _Reading:
    """What has been read so far: each field's value and place, and the problems met.

    `complete` is False when a file could not be read: then problems between fields may be only apparent.
    """

    values: dict[tuple[str, str], tuple[Any, _Place]] = field(default_factory=dict)
    problems: list[tuple[_Place, str, str | Callable[[], str]]] = field(default_factory=list)
    unlisted: int = 0
    """Problems that were only counted, because too many of their kind came before."""
    complete: bool = True
    unread: _Place | None = None
    """Behind which a file of very many values was not read."""

    def add(self, place: _Place, name: str, problem: str | Callable[[], str]) -> None:
        """Note a problem with a field. One whose words take time to find is a function, called if it is told."""
        self.problems.append((place, name, problem))

    def told(self) -> list[str]:
        """A line for each problem in the order of their places, or the first of many and how many more there are."""
        ordered = sorted(self.problems, key=lambda problem: (problem[0].order, problem[0].line))
        shown = ordered if len(ordered) + self.unlisted <= _MANY else ordered[:_SHOWN]
        lines = []
        for place, name, problem in shown:
            words = problem if isinstance(problem, str) else problem()
            lines.append(f"{place}: {name}: {words}" if name else f"{place}: {words}")
        more = len(ordered) - len(shown) + self.unlisted
        if more:
            lines.append(f"and {more} more problems like these")
        if self.unread:
            lines.append(f"{self.unread}: nothing was read behind this line, since no recipe has so many values")
        return lines


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, all that it extends, and the overrides (`pretrain.epochs=2`, the later one winning).

    Raises:
        RecipeError: every problem of every file and override at once, or the first twenty of very many.
    """
    path = find_recipe(str(name_or_path))
    reading = _Reading()
    _read_file(path, reading, chain=())
    for override in overrides:
        _read_override(override, reading)
    recipe = _validate(reading, _Place(0, _shown(path)))
    if reading.problems or reading.unread or recipe is None:
        raise RecipeError(reading.told())
    return recipe


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _read_file(path: Path, reading: _Reading, chain: tuple[Path, ...]) -> None:
    """Add the file's values over those of the recipe that it extends; `chain` holds the files that led here."""
    chain = (*chain, path.resolve())
    place = _Place(len(chain) - 1, _shown(path))
    root = _compose(path, place, reading)
    if root is None:
        return
    sections: list[tuple[str, yaml.Node, _Place]] = []
    for name, node, at in _items(root, place, "", ("extends", *SECTIONS), reading):
        if name == "extends":
            _read_base(node, path, at, reading, chain)
        else:
            sections.append((name, node, at))
    for section, node, at in sections:
        for name, value_node, at_field in _items(node, at, section, SECTIONS[section], reading):
            try:
                reading.values[section, name] = (value_of(value_node), at_field)
            except ValueError as error:
                reading.add(at_field, f"{section}.{name}", str(error))


def _compose(path: Path, place: _Place, reading: _Reading) -> yaml.Node | None:
    """The file's node tree; None when it is empty or, with a problem noted, cannot be read."""
    line = 0
    try:
        root, unread = compose(path.read_bytes().decode("utf-8-sig"))
        if unread is not None:
            reading.unread, reading.complete = _Place(place.order, place.name, unread), False
        return root
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line, problem = error.object.count(b"\n", 0, error.start) + 1, "not UTF-8 text; save the file as UTF-8"
    except NotYAML as error:
        line, problem = error.line, error.problem
    reading.complete = False
    reading.add(_Place(place.order, place.name, line), "", problem)
    return None


def _items(
    node: yaml.Node, place: _Place, section: str, names: Collection[str], reading: _Reading
) -> Iterator[tuple[str, yaml.Node, _Place]]:
    """The keys of a mapping that are among `names`, with their value nodes and places; all others are noted as problems."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return  # a section whose fields are all commented out
    if not isinstance(node, yaml.MappingNode):
        expected = "fields, each `name: value`" if section else f"sections ({', '.join(SECTIONS)})"
        reading.add(_Place(place.order, place.name, place.line or node.start_mark.line + 1), section, f"expected {expected}")
        return
    first: dict[str, int] = {}
    noted = 0
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        known = name in names and name not in first
        noted += not known
        if not known and noted > _MANY:  # there are enough of them to tell, in the order of their lines
            reading.unlisted += 1
            continue
        at = _Place(place.order, place.name, key.start_mark.line + 1)
        if known:
            first[name] = at.line
            yield name, value, at
            continue
        full = _cut(f"{section}.{name}" if section else name)
        if not isinstance(key, yaml.ScalarNode):
            reading.add(at, section, "a name must be a single word")
        elif name == "<<":
            reading.add(at, full, "merge keys are not read; use `extends`")
        elif name in first:
            reading.add(at, full, f"given twice, first on line {first[name]}")
        else:
            first[name] = at.line
            reading.add(at, full, partial(_unknown_field, section, name) if section else partial(_unknown_section, name))


def _read_base(node: yaml.Node, path: Path, at: _Place, reading: _Reading, chain: tuple[Path, ...]) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.tag != STRING_TAG:
        reading.complete = False
        reading.add(at, "extends", "expected one recipe, as a bare name or a path relative to this file")
        return
    beside = path.parent / (f"{node.value}.yaml" if _is_bare(node.value) else node.value)
    if os.path.isfile(beside):
        base = beside
    elif _is_bare(node.value) and node.value in list_recipes():
        base = list_recipes()[node.value]
    else:
        known = sorted({*list_recipes(), *(p.stem for p in path.parent.glob("*.yaml"))} - {path.stem})
        near = get_close_matches(_cut(Path(node.value).stem), known, n=1)
        reading.complete = False
        missing = f"no recipe '{_cut(node.value)}'{_did_you_mean(near)}"
        reading.add(at, "extends", f"{missing}; the known recipes are {', '.join(known)}")
        return
    if base.resolve() in chain:
        circle = [*chain[chain.index(base.resolve()) :], base.resolve()]
        reading.complete = False
        reading.add(at, "extends", f"goes in a circle: {' -> '.join(p.name for p in circle)}")
        return
    if len(chain) >= _LONGEST_CHAIN:
        reading.complete = False
        reading.add(at, "extends", f"the {len(chain)}th recipe in a chain, which is too long")
        return
    _read_file(base, reading, chain)


def _unknown_section(name: str) -> str:
    near = get_close_matches(_cut(name), [*SECTIONS, "extends"], n=1)
    return f"unknown section{_did_you_mean(near)}; the sections are {', '.join(SECTIONS)}"


def _unknown_field(section: str, name: str) -> str:
    return f"unknown field{_did_you_mean(_near_fields(section, _cut(name)))}"


def _near_fields(section: str, name: str) -> list[str]:
    """The likeliest meant fields: of that section by spelling, else of that name in any section, else any by spelling."""
    if near := get_close_matches(name, SECTIONS.get(section, ()), n=1):
        return [f"{section}.{near[0]}"]
    same = [full for full in _FIELDS if full.partition(".")[2] == name]
    return same or get_close_matches(f"{section}.{name}", _FIELDS, n=1)


def _read_override(override: str, reading: _Reading) -> None:
    place = _Place(10**6, "command line")
    full, equals, text = override.partition("=")
    full, text = full.strip(), text.strip()
    section, _, name = full.partition(".")
    if not equals or not full:
        reading.add(place, _cut(override), "expected an override such as pretrain.epochs=2")
        return
    if name not in SECTIONS.get(section, ()):
        reading.add(place, _cut(full), partial(_unknown_field, section if name else "", name or full))
        return
    try:
        # Quotes and brackets are YAML; anything else is one plain scalar, so that a path may hold `: ` or ` #`.
        node = compose(text).node if text.startswith(("[", "'", '"')) else plain(text)
        reading.values[section, name] = (value_of(node), place)
    except NotYAML as error:
        reading.add(place, full, f"'{_cut(text)}' is {error.problem}")
    except ValueError as error:
        reading.add(place, full, str(error))


# --- validating ------------------------------------------------------------------------------------------------------


def _validate(reading: _Reading, recipe_file: _Place) -> Recipe | None:
    """The recipe, or None with problems noted.

    The schema checks fields first and how they fit together only when they are all right. So a field at fault is noted
    and left out, and the rest is validated again; what the schema then says about a field left out is no news.
    """
    values = dict(reading.values)
    left_out: set[str] = set()
    while True:
        document: dict[str, dict[str, Any]] = {}
        for (section, name), (value, _) in values.items():
            document.setdefault(section, {})[name] = value
        try:
            return Recipe.model_validate(document)
        except ValidationError as error:
            problems = _by_field(error.errors(include_url=False))
        before = len(left_out)
        for full, (problem, between_fields) in problems.items():
            section, _, name = full.partition(".")
            known_wrong = any(re.search(rf"\b{re.escape(out)}\b", f"{full}: {problem}") for out in left_out)
            if not between_fields or (reading.complete and not known_wrong):
                _, place = values.get((section, name), (None, recipe_file))
                reading.add(place, full, problem)
            values.pop((section, name), None)
            left_out.add(full)
        if len(left_out) == before:
            return None


def _by_field(errors: Sequence[ErrorDetails]) -> dict[str, tuple[str, bool]]:
    """`section.field` to its problem, and whether that lies between fields: the schema's validators name the field first."""
    grouped: dict[str, list[ErrorDetails]] = {}
    found: dict[str, tuple[str, bool]] = {}
    for error in errors:
        if error["type"] == "value_error":
            full, _, problem = str(error["ctx"]["error"]).partition(": ")
            found[full] = (problem, True)
        else:
            grouped.setdefault(".".join(map(str, error["loc"][:2])), []).append(error)
    return found | {full: (_explain(details), False) for full, details in grouped.items()}


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "string_too_short": "text that is not empty",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "literal_error": "{expected}",
}


def _explain(errors: Sequence[ErrorDetails]) -> str:
    """One phrase for what the schema says about one field; a union of types says one thing for each of them."""
    in_range = [error for error in errors if error["type"].startswith(("greater_", "less_"))]
    chosen = in_range or errors
    expected = [
        _EXPECTED[error["type"]].format_map(error.get("ctx", {})) if error["type"] in _EXPECTED else error["msg"]
        for error in chosen
    ]
    index = chosen[0]["loc"][2] if len(chosen[0]["loc"]) > 2 else None
    item = f"item {index + 1}: " if isinstance(index, int) else ""
    return f"{item}expected {' or '.join(dict.fromkeys(expected))}, got {_told(chosen[0]['input'])}"


def _told(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"the list [{', '.join(map(_told, value))}]"
    text = str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
    return f"the text '{text}'" if isinstance(value, str) else text
