"""Reading recipes: inheritance, overrides, types, and problems reported at their place, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffatr_cli.recipe import RecipeError, dump_recipe, find_recipe, list_recipes, load_recipe
from diffatr_cli.recipe_schema import (
    AudioSection,
    DataSection,
    DiffusionSection,
    EvaluationSection,
    PretrainSection,
    Recipe,
    TextSection,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str | bytes, overrides: tuple[str, ...] = ()) -> list[str]:
    """Write the recipe x.yaml into the working directory, read it, and return what is wrong with it."""
    Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load_recipe("x.yaml", overrides)
    except RecipeError as error:
        return list(error.problems)
    return []


def load(text: str, *overrides: str) -> Recipe:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load_recipe("x.yaml", overrides)


@pytest.mark.usefixtures("folder")
class TestValues:
    def test_an_empty_recipe_is_the_defaults(self) -> None:
        assert load("# nothing yet\n") == Recipe() == load("pretrain:\n  # all commented out\n")

    @pytest.mark.parametrize(
        ("text", "value"), [("3e-4", 3e-4), ("3E-4", 3e-4), ("1.", 1.0), (".5", 0.5), ("2", 2.0), ("1e3", 1000.0)]
    )
    def test_numbers_in_files_and_overrides(self, text: str, value: float) -> None:
        for recipe in (load(f"pretrain:\n  lr: {text}\n"), load("", f"pretrain.lr={text}")):
            assert recipe.pretrain.lr == value
            assert type(recipe.pretrain.lr) is float

    def test_lists_null_booleans_and_text(self) -> None:
        recipe = load("audio: {channels: [8, 16], encoder: small, spec_augment: false, weights: null}\ndata: {name: yes}\n")
        assert recipe.audio.channels == (8, 16)
        assert recipe.audio.spec_augment is False
        assert recipe.audio.weights is None
        assert recipe.data.name == "yes"  # YAML 1.1 would say true
        assert load("", "evaluation.fusion_weights=[0, 3e-1]").evaluation.fusion_weights == (0.0, 0.3)

    def test_text_in_overrides_needs_no_quoting(self) -> None:
        assert load("", "audio.weights=a/b: c #d=e.pth").audio.weights == "a/b: c #d=e.pth"
        assert load("", "audio.weights='12'").audio.weights == "12"

    def test_anchors_and_aliases(self) -> None:
        recipe = load("pretrain: {batch_size: &n 24}\ndiffusion: {batch_size: *n}\n")
        assert recipe.diffusion.batch_size == 24

    def test_line_ends_and_byte_order_mark(self) -> None:
        assert problems(b"\xef\xbb\xbfpretrain:\r\n  lr: 3e-4\r\n") == []

    def test_later_overrides_win_over_earlier_ones_and_the_file(self) -> None:
        assert load("pretrain: {epochs: 5}", "pretrain.epochs=2", "pretrain.epochs=3").pretrain.epochs == 3

    @given(
        st.builds(
            Recipe,
            data=st.builds(
                DataSection, name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), seconds=st.just(10.0)
            ),
            audio=st.builds(
                AudioSection,
                encoder=st.just("small"),
                hop=st.just(320),
                weights=st.sampled_from(
                    [None, "3e-4", "1:30", "null", "yes", "~", "012", "2024-01-01", "a: b #c", " x ", "<<", "*a"]
                ),
                channels=st.lists(st.integers(1, 999), min_size=1).map(tuple),
                dropout=st.floats(0, 1, exclude_max=True),
            ),
            text=st.just(TextSection()),
            pretrain=st.builds(PretrainSection, lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
            diffusion=st.builds(DiffusionSection, candidates=st.just("batch") | st.integers(2, 99), steps=st.just(50)),
            evaluation=st.builds(
                EvaluationSection, steps=st.none() | st.integers(1, 50), fusion_weights=st.just((0.0, 1e-7, 1e22))
            ),
        )
    )
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_what_is_dumped_loads_back_equal(self, recipe: Recipe) -> None:
        assert load(dump_recipe(recipe)) == recipe


@pytest.mark.usefixtures("folder")
class TestProblems:
    def test_all_at_once_each_at_its_place(self) -> None:
        text = """\
extends: recipes/none.yaml
pretrian: {epochs: 3}
pretrain:
  epochs: "32"
  batch_size: 1
  batch_size: 4
  clip_norm: true
  lr_stepp: 4
  lr_decay: .inf
  lr_step: 2.0
audio:
  dropout: 2
  channels: [3, x]
  spec_augment: yes
diffusion:
  encoder: small
  candidates: some
  views: null
evaluation:
  draws: {a: 1}
  shortlist: !!python/object:os.system x
text: 3
"""
        found = problems(text, ("pretrain.epchs=2", "batch_size=3", "model.dim", "model.dim=1.5", "data.seconds=[1"))
        expected = [
            ("x.yaml:1: extends: no recipe 'recipes/none.yaml'", ""),
            ("x.yaml:2: pretrian: unknown section", "did you mean pretrain?"),
            ("x.yaml:4: pretrain.epochs: expected a whole number, got the text '32'", ""),
            ("x.yaml:5: pretrain.batch_size: expected a number of at least 2, got 1", ""),
            ("x.yaml:6: pretrain.batch_size: given twice, first on line 5", ""),
            ("x.yaml:7: pretrain.clip_norm: expected a number, got true", ""),
            ("x.yaml:8: pretrain.lr_stepp: unknown field", "did you mean pretrain.lr_step?"),
            ("x.yaml:9: pretrain.lr_decay: expected a number, got the text '.inf'", ""),
            ("x.yaml:10: pretrain.lr_step: expected a whole number, got 2.0", ""),
            ("x.yaml:12: audio.dropout: expected a number below 1, got 2", ""),
            ("x.yaml:13: audio.channels: item 2: expected a whole number, got the text 'x'", ""),
            ("x.yaml:14: audio.spec_augment: expected true or false, got the text 'yes'", ""),
            ("x.yaml:16: diffusion.encoder: unknown field", "did you mean audio.encoder or text.encoder?"),
            ("x.yaml:17: diffusion.candidates: expected 'batch' or a whole number, got the text 'some'", ""),
            ("x.yaml:18: diffusion.views: expected a whole number, got null", ""),
            ("x.yaml:20: evaluation.draws: expected a single value", ""),
            ("x.yaml:21: evaluation.shortlist: the tag !!python/object:os.system is not allowed", ""),
            ("x.yaml:22: text: expected fields", ""),
            ("command line: pretrain.epchs: unknown field", "did you mean pretrain.epochs?"),
            ("command line: batch_size: unknown field", "did you mean pretrain.batch_size or diffusion.batch_size?"),
            ("command line: model.dim: expected an override such as", ""),
            ("command line: data.seconds: '[1' is not YAML", ""),
            ("command line: model.dim: expected a whole number, got 1.5", ""),
        ]
        assert len(found) == len(expected)
        for line, (start, part) in zip(found, expected, strict=True):
            assert line.startswith(start)
            assert part in line

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (b"pretrain:\n\tepochs: 1\n", "x.yaml:2: not YAML: a tab; indent with spaces"),
            (
                b'a: b\npretrain: {epochs: "1}\n',
                "x.yaml:2: not YAML: while scanning a quoted scalar found unexpected end of stream",
            ),
            (b"pretrain:\n  epochs: \xe9\n", "x.yaml:2: not UTF-8 text; save the file as UTF-8"),
            (b"pretrain:\n  epochs: \x01\n", "x.yaml:2: a character that YAML does not allow, #x0001"),
            (b"a: " + b"[" * 9000, "x.yaml: nested too deeply"),
            (b"- 1\n", "x.yaml:1: expected sections (data, audio, text, model, pretrain, diffusion, evaluation)"),
            (b"text: {encoder: &a [*a]}\n", "x.yaml:1: text.encoder: expected a list of single values"),
            (b"text: {<<: {pooling: cls}}\n", "x.yaml:1: text.<<: merge keys are not read; use `extends`"),
            (b"model: {temperature: 1e999}\n", "x.yaml:1: model.temperature: expected a finite number, got inf"),
            (b"model: {dim: " + b"9" * 5000 + b"}\n", f"x.yaml:1: model.dim: '{'9' * 40}' cannot be read as int"),
            (
                b"model: {strategy: both}\n",
                "x.yaml:1: model.strategy: expected 'gen-dis', 'gen', 'dis' or 'joint', got the text 'both'",
            ),
        ],
    )
    def test_one_line_for_each_kind_of_broken_file(self, text: bytes, expected: str) -> None:
        assert problems(text) == [expected]

    @pytest.mark.parametrize(
        ("text", "first", "more"),
        [
            ("".join(f"tex_{n}: 1\n" for n in range(4_000)), "tex_0: unknown section; did you mean text?", 3980),
            ("pretrain:\n  epochs: 3" + "\n  epochs: 4" * 4_000, "pretrain.epochs: given twice, first on line 2", 3980),
            ("text: {" + ", ".join(f"a{n}: 1" for n in range(41)) + "}", "text.a0: unknown field", 21),
        ],
    )
    def test_of_very_many_problems_the_first_are_told(self, text: str, first: str, more: int) -> None:
        found = problems(text)
        assert len(found) == 21
        assert found[0].split(": ", 1)[1].startswith(first)
        assert found[-1] == f"and {more} more problems like these"
        assert [line.split(":")[1] for line in found[:-1]] == sorted((line.split(":")[1] for line in found[:-1]), key=int)

    @pytest.mark.parametrize("lines", [20_000, 200_000])
    def test_of_a_file_without_end_the_beginning_is_read(self, lines: int) -> None:
        """By as many nodes, whatever its length, and so in the same time."""
        found = problems("pretrain:\n" + "".join(f"  epoch_{n}: 1\n" for n in range(lines)))
        assert [line.split(":")[1] for line in found[:20]] == [str(line) for line in range(2, 22)]
        assert found[0] == "x.yaml:2: pretrain.epoch_0: unknown field; did you mean pretrain.epochs?"
        assert found[20:] == [
            "and 4978 more problems like these",
            "x.yaml:4999: nothing was read behind this line, since no recipe has so many values",
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "audio:\n  channels: [" + "1, " * 20_000 + "1]\n",
            "audio:\n  channels:\n" + "  - 1\n" * 20_000,
            "audio: {weights: {a: [" + "{b: c}, " * 20_000 + "x]}}",
            "audio: {? [" + "1, " * 20_000 + "1] : 2}",
        ],
    )
    def test_what_has_too_many_values_is_never_taken_for_its_beginning(self, text: str) -> None:
        assert problems(text)[-1].endswith("nothing was read behind this line, since no recipe has so many values")

    @pytest.mark.parametrize(
        "text", ["[" * 200_000, "{a: " * 50_000, "- " * 100_000, "? " * 100_000, "[" * 9000, "&a [" * 30_000]
    )
    def test_a_file_of_brackets_is_one_line(self, text: str) -> None:
        (line,) = problems("audio:\n  channels: " + text if text[0] in "[{&" else text)
        assert line.endswith(("nested too deeply", "end of stream", "<stream end>'"))

    def test_names_and_values_without_end_are_cut(self) -> None:
        (one, two) = problems(f"text:\n  {'x' * 1000}: 1\ndata: {{seconds: {'y' * 100_000}}}\n")
        assert one.startswith(f"x.yaml:2: text.{'x' * 72}...: unknown field")
        assert len(two) < 200

    def test_long_files_are_read_by_the_same_rules(self) -> None:
        text = "data: {name: yes, seconds: 3e1}\naudio: {weights: 1:30, dropout: .5}\npretrain:\n  lr: 3E-4\n"
        assert load(text + "#" * 60_000) == load(text)
        bad = (
            "pretrain:\n  lr: fast\n  clip_norm: yes\n  steps: 0x10\nmodel: {dim: !!python/name:os.system x, strategy: !!int x}\n"
        )
        assert problems(bad + "#" * 60_000) == problems(bad) != []
        for broken in ("a: b\nc: [x, {y\n", "a: 'b\n", "a:\n\tb: c\n", "text: {pooling: \x01}\n", "caf\u00e9:\n  \x07: 1\n"):
            (long,), (short,) = problems(broken + "#" * 60_000), problems(broken)
            assert long.split(": ")[1][:20] == short.split(": ")[1][:20]
            assert "not YAML" in long or long == short

    @pytest.mark.parametrize(
        "tag", ["timestamp", "binary", "set", "omap", "pairs", "seq", "map", "merge", "value", "python/tuple"]
    )
    def test_other_tags_are_not_allowed(self, tag: str) -> None:
        for value in ("x", "[x]", "{x: y}"):
            (line,) = problems(f"data: {{name: !!{tag} {value}}}\n")
            assert line.startswith(
                "x.yaml:1: data.name: expected" if value != "x" or tag == "x" else "x.yaml:1: data.name: the tag"
            )

    def test_problems_between_fields_come_with_the_others(self) -> None:
        found = problems("audio:\n  hop: 640\n  dropout: 1\n  members: 2\nevaluation:\n  steps: 60\n")
        assert found == [
            "x.yaml:2: audio.hop: audio.encoder resnet38 is defined at hop 320, not 640",
            "x.yaml:3: audio.dropout: expected a number below 1, got 1",
            "x.yaml:4: audio.members: audio.encoder resnet38 stands alone; only small has members",
            "x.yaml:6: evaluation.steps: 60 steps do not fit in the chain, diffusion.steps = 50",
        ]

    def test_a_problem_that_only_a_wrong_field_seems_to_cause_is_not_reported(self) -> None:
        found = problems("audio: {encoder: 14, hop: 640}\nevaluation: {steps: 60}\n", ("diffusion.steps=9O",))
        assert [line.split(": ")[1] for line in found] == ["audio.encoder", "diffusion.steps"]

    def test_the_message_is_the_problems_and_the_exit_code_that_of_wrong_usage(self) -> None:
        Path("x.yaml").write_text("text: {poolin: cls}\nmodel: {dims: 3}\n")
        with pytest.raises(RecipeError) as caught:
            load_recipe("x.yaml")
        assert str(caught.value).splitlines() == list(caught.value.problems)
        assert len(caught.value.problems) == caught.value.exit_code == 2

    def test_a_problem_of_a_default_names_the_file(self) -> None:
        assert problems("diffusion: {steps: 20}\nevaluation: {steps: 30}\n") == [
            "x.yaml:2: evaluation.steps: 30 steps do not fit in the chain, diffusion.steps = 20"
        ]


class TestExtends:
    def test_a_chain_states_what_differs(self, folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub/a.yaml").write_text("pretrain: {epochs: 1, batch_size: 8}\ntext: {pooling: mean}\n")
        (folder / "b.yaml").write_text("extends: sub/a.yaml\npretrain: {epochs: 2}\n")
        recipe = load("pretrain: {lr: 0.5}\nextends: b\n")
        assert recipe == Recipe(pretrain=PretrainSection(epochs=2, batch_size=8, lr=0.5), text=TextSection(pooling="mean"))

    def test_a_bare_name_is_a_neighbour_first_then_a_known_recipe(self, folder: Path) -> None:
        assert load("extends: clotho-resnet38\n").data.seconds == 30
        (folder / "clotho-resnet38.yaml").write_text("data: {seconds: 7}\n")
        assert load("extends: clotho-resnet38\n").data.seconds == 7

    def test_problems_in_a_base_name_its_own_lines(self, folder: Path) -> None:
        (folder / "b.yaml").write_text("text:\n  poolin: cls\npretrain:\n  lr: fast\n")
        assert problems("extends: b\ndata: {seconds: 0}\n") == [
            "x.yaml:2: data.seconds: expected a number above 0, got 0",
            "b.yaml:2: text.poolin: unknown field; did you mean text.pooling?",
            "b.yaml:4: pretrain.lr: expected a number, got the text 'fast'",
        ]

    def test_a_base_that_cannot_be_read_hides_nothing_and_invents_nothing(self, folder: Path) -> None:
        (folder / "b.yaml").write_text("diffusion: {steps: 100\n")
        found = problems("extends: b\ndata: {seconds: 0}\nevaluation: {steps: 80}\n")
        assert found[0] == "x.yaml:2: data.seconds: expected a number above 0, got 0"
        assert found[1].startswith("b.yaml:1: not YAML")
        assert len(found) == 2

    @pytest.mark.parametrize(
        ("bases", "told"), [({}, "x.yaml -> x.yaml"), ({"b": "c.yaml", "c": "x"}, "x.yaml -> b.yaml -> c.yaml -> x.yaml")]
    )
    def test_a_circle(self, folder: Path, bases: dict[str, str], told: str) -> None:
        for name, base in bases.items():
            (folder / f"{name}.yaml").write_text(f"extends: {base}\n")
        (line,) = problems(f"\nextends: {'b' if bases else 'x'}\n")
        assert line == f"{'c.yaml:1' if bases else 'x.yaml:2'}: extends: goes in a circle: {told}"

    def test_a_chain_without_end(self, folder: Path) -> None:
        for n in range(1200):
            (folder / f"r{n}.yaml").write_text(f"extends: r{n + 1}\n")
        (line,) = problems("extends: r0\n")
        assert line == "r98.yaml:1: extends: the 100th recipe in a chain, which is too long"

    @pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b", '"a\\0b"', '"\\ud800"', "..", "/"])
    def test_a_name_that_no_file_has(self, name: str, folder: Path) -> None:
        (line,) = problems(f"extends: {name}\n")
        assert line.startswith("x.yaml:1: extends: no recipe") or "not YAML" in line or "YAML does not allow" in line
        with pytest.raises(RecipeError):
            find_recipe(name)

    @pytest.mark.parametrize("value", ["[a, b]", "null", "3", "{a: b}"])
    def test_not_a_name(self, folder: Path, value: str) -> None:
        (line,) = problems(f"extends: {value}\n")
        assert line.startswith("x.yaml:1: extends: expected one recipe")


class TestFinding:
    def test_a_local_recipe_shadows_a_shipped_one(self, folder: Path) -> None:
        shipped = find_recipe("demo")
        assert shipped.is_file()
        (folder / "recipes").mkdir()
        (folder / "recipes/demo.yaml").write_text("data: {name: mine}\n")
        assert find_recipe("demo").resolve() == folder / "recipes/demo.yaml"
        assert load_recipe("demo").data.name == "mine"
        assert list_recipes()["demo"].resolve() == folder / "recipes/demo.yaml"
        assert list_recipes()["base"].parent == shipped.parent
        assert find_recipe(str(shipped)) == shipped

    def test_a_folder_or_file_of_the_same_name_is_not_taken_for_the_recipe(self, folder: Path) -> None:
        (folder / "demo").mkdir()
        (folder / "base").write_text("nothing: here")
        assert find_recipe("demo").suffix == find_recipe("base").suffix == ".yaml"

    @pytest.mark.usefixtures("folder")
    @pytest.mark.parametrize(
        ("name", "near"), [("clotho-resnet", "clotho-resnet38"), ("demo.yaml", "demo"), ("/no/such/demoo.yml", "demo")]
    )
    def test_an_unknown_name_lists_the_known(self, name: str, near: str) -> None:
        with pytest.raises(RecipeError) as caught:
            find_recipe(name)
        message = str(caught.value)
        assert message.startswith(f"{name}: no ")
        assert f"did you mean {near}?" in message
        assert all(known in message for known in list_recipes())

    def test_a_folder_is_no_recipe(self, folder: Path) -> None:
        (folder / "d.yaml").mkdir()
        with pytest.raises(RecipeError, match="no such recipe file"):
            load_recipe(folder / "d.yaml")
