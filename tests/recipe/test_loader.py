from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xfer.errors import Fault, RecipeError
from xfer.recipe.loader import Reading, load, read
from xfer.recipe.schema import Recipe, Weights

Read = Callable[..., Reading]
RECIPES = Path(__file__).parents[2] / "recipes"


def faults(reading: Reading) -> list[str]:
    return [str(fault) for fault in reading.faults]


def test_the_least_recipe(reading: Read, base: str) -> None:
    found = reading(base)
    assert found.faults == ()
    assert found.recipe is not None
    assert found.data == {
        "source": {"model": "torchvision/resnet18"},
        "target": {"dataset": "folder", "path": "data/flowers"},
        "transfer": {"type": "feature"},
    }
    assert found.resolved == found.recipe.model_dump()
    assert found.resolved["optimizer"]["lr"] == 1e-3
    assert found.resolved["target"]["path"] == "data/flowers"
    assert found.recipe.target.options == {"path": "data/flowers"}
    assert found.text == base
    assert found.files == (Path("r.yaml"),)


def test_every_section(reading: Read, full: str) -> None:
    found = reading(full)
    assert faults(found) == []
    assert found.recipe is not None
    assert isinstance(found.recipe.source.weights, Weights)
    assert found.recipe.freeze is not None
    assert found.recipe.transfer.options == {"temperature": 4.0}
    assert found.recipe.optimizer.weight_decay == 5e-4


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipes(file: Path) -> None:
    assert faults(read(file)) == []


def test_numbers_are_what_they_look_like(reading: Read, base: str) -> None:
    found = reading(
        base + "name: '1'\noptimizer: {lr: 1e-3, weight_decay: 5E-4, clip_norm: 1., momentum: .9}\nseed: 0x10\nhead: {hidden: [1_024]}\n"
    )
    assert faults(found) == []
    assert found.data["optimizer"] == {"lr": 0.001, "weight_decay": 0.0005, "clip_norm": 1.0, "momentum": 0.9}
    assert (found.data["seed"], found.data["head"]["hidden"]) == (16, [1024])


def test_a_date_and_a_time_are_text(reading: Read, base: str) -> None:
    found = reading(base.replace("data/flowers", "2024-01-31") + "name: 12-30\n")
    assert (found.data["target"]["path"], found.data["name"]) == ("2024-01-31", "12-30")


def test_empty_sections_mean_the_defaults(reading: Read, base: str) -> None:
    found = reading(base + "runtime:\n  # precision: float32\noptimizer:\nsweep:\n")
    assert faults(found) == []
    assert found.recipe is not None
    assert (found.recipe.runtime.precision, found.recipe.optimizer.lr, found.recipe.sweep) == ("auto", 1e-3, None)


def test_a_phase_without_length_has_ten_epochs(reading: Read, base: str) -> None:
    found = reading(base + "freeze:\n  - train: head\n  - {train: all, until: {patience: 2}}\n")
    assert found.recipe is not None
    assert [(phase["epochs"], phase["until"] is None) for phase in found.resolved["freeze"]] == [(10, True), (None, False)]


def test_anchors_and_merge_keys(reading: Read, base: str) -> None:
    found = reading(base + "freeze:\n  - &first {train: head, epochs: 3, lr: 1e-2}\n  - {<<: *first, train: all}\n  - *first\n")
    assert faults(found) == []
    assert [(phase["train"], phase["epochs"]) for phase in found.data["freeze"]] == [("head", 3), ("all", 3), ("head", 3)]


def test_a_fault_behind_an_alias_is_at_its_anchor(reading: Read, base: str) -> None:
    found = reading(base + "freeze:\n  - &first {train: head, lr: 0}\n  - *first\n")
    assert faults(found) == [
        "r.yaml:7:26: freeze[0].lr: must be above 0, not 0",
        "r.yaml:7:26: freeze[1].lr: must be above 0, not 0",
    ]


def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = read("absent.yaml", ["seed=1"])
    assert faults(found) == [f"absent.yaml: no such file: {tmp_path / 'absent.yaml'}"]
    assert found.recipe is None
    assert found.blocked("seed")
    assert str(found.fault("seed", "is odd")) == "command line: seed: is odd"


def test_a_folder_and_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    assert faults(read("recipes")) == [f"recipes: a folder, not a recipe: {tmp_path / 'recipes'}"]
    assert faults(read("s3://bucket/r.yaml")) == [
        "s3://bucket/r.yaml: recipes are read from files and packages only, not from 's3://bucket/r.yaml'; download it first"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(reading: Read, base: str) -> None:
    reading(base)
    Path("r.yaml").chmod(0)
    assert faults(read("r.yaml")) == ["r.yaml: can't be read: permission denied"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: fl\xe4che\n", "r.yaml:1:9: not UTF-8 text: byte 0xe4; save the file as UTF-8"),
        ("name: flüche\n".encode("utf-16"), "r.yaml:1:1: not UTF-8 text: byte 0xff; save the file as UTF-8"),
        (b"a: 1\nname: a\x07b\n", "r.yaml:2:8: not valid YAML: the character '\\x07' is not allowed"),
        (b"#" * 1_000_001, "r.yaml: larger than 1,000,000 bytes: not a recipe"),
        (b"# nothing\n", "r.yaml:1:1: empty; a recipe needs at least source.model, target.dataset and transfer.type"),
        (b"[" * 5000, "r.yaml:1:1: nested deeper than 40 levels"),
        (b"seed: " + b"1" * 5000, "r.yaml:1:1: seed: not a number that can be used: 11111111111111111111…"),
    ],
)
def test_what_is_no_recipe_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_bytes(content)
    assert faults(read("r.yaml"))[0] == message


def test_a_byte_order_mark_and_windows_lines(tmp_path: Path, base: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + (base + "seed: -1\n").replace("\n", "\r\n").encode())
    assert faults(read(file)) == [f"{file}:6:1: seed: must be at least 0 and below 4294967296, not -1"]


def test_load_raises_all_faults(reading: Read, base: str) -> None:
    reading(base + "seed: -1\nlr: 1\n")
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", ["name=.x"])
    assert [fault.path for fault in caught.value.faults] == ["seed", "lr", "name=.x"]
    assert caught.value.exit_code == 2


def test_faulty_keys_are_taken_out(reading: Read, base: str) -> None:
    found = reading(
        base
        + """seed: x
head: {hidden: [0], dropout: 0.5}
freeze:
  - {train: head, epochs: 0, lr: 1e-2}
  - {train: all, epochs: 3}
optimizer: {name: sgd, lrr: 1}
"""
    )
    assert [fault.path for fault in found.faults] == ["seed", "head.hidden[0]", "freeze[0].epochs", "optimizer.lrr"]
    assert found.recipe is not None
    assert (found.recipe.seed, found.recipe.head.hidden, found.recipe.head.dropout) == (0, [], 0.5)
    assert isinstance(found.recipe.freeze, list)
    assert [(phase.epochs, phase.lr) for phase in found.recipe.freeze] == [(10, 0.01), (3, None)]
    assert found.recipe.optimizer.name == "sgd"


def test_blocked(reading: Read, base: str) -> None:
    found = reading(base + "freeze:\n  - {train: head, epochs: 0}\n  - {train: all, epochs: 3}\n")
    blocked = {
        path: found.blocked(path)
        for path in ("freeze", "freeze[0]", "freeze.0.epochs", "freeze[0].epochs.x", "freeze[0].train", "freeze[1]", "head")
    }
    assert [path for path, is_blocked in blocked.items() if is_blocked] == ["freeze", "freeze[0]", "freeze.0.epochs", "freeze[0].epochs.x"]


def test_a_missing_section_blocks_it(reading: Read) -> None:
    found = reading("target: {dataset: folder}\ntransfer: {type: feature}\nsorce: {model: x}\n")
    assert faults(found) == ["r.yaml:3:1: sorce: unknown key; did you mean 'source'?"]
    assert found.recipe is None
    assert found.blocked("source.model")


def test_later_faults_find_their_place(reading: Read, base: str) -> None:
    found = reading(base + "freeze:\n  - train: [head, layer5]\n    lr: 1\n", "optimizer.lr=0.5", "target.root=x")
    assert found.fault("freeze[0].train", "no group matches 'layer5'", "layer4") == Fault(
        "r.yaml", 7, 5, "freeze[0].train", "no group matches 'layer5'", "layer4"
    )
    assert str(found.fault("freeze.0.train[1]", "no")) == "r.yaml:7:19: freeze[0].train[1]: no"
    assert str(found.fault("target.size", "required by folder")) == "r.yaml:2:1: target.size: required by folder"
    assert str(found.fault("head.dropout", "odd")) == "r.yaml:1:1: head.dropout: odd"
    assert str(found.fault("optimizer.lr", "too high")) == "command line: optimizer.lr=0.5: too high"
    assert str(found.fault("target.root", "unknown key")) == "command line: target.root=x: unknown key"
    place = found.place("target.path")
    assert (place.file, place.line, place.column, place.raw) == ("r.yaml", 4, 3, "data/flowers")


class TestExtends:
    def test_mappings_merge_and_lists_are_replaced(self, reading: Read, base: str) -> None:
        parent = base + "head: {hidden: [512], dropout: 0.5}\nfreeze:\n  - {train: head, lr: 1}\n  - {train: all}\n"
        found = reading("extends: base.yaml\nhead: {hidden: [8]}\nfreeze:\n  - {train: head}\n", base=parent)
        assert faults(found) == []
        assert found.data["head"] == {"hidden": [8], "dropout": 0.5}
        assert found.data["freeze"] == [{"train": "head"}]
        assert "extends" not in found.data
        assert found.files == (Path("r.yaml"), Path("base.yaml"))

    def test_a_chain_is_relative_to_each(self, reading: Read, base: str) -> None:
        found = reading("extends: a/b.yaml\nseed: 3\n", a__b="extends: ../c.yaml\nseed: 2\nname: b\n", c=base + "seed: 1\nname: c\nlr: 1\n")
        assert (found.data["seed"], found.data["name"]) == (3, "b")
        assert found.files == (Path("r.yaml"), Path("a/b.yaml"), Path("c.yaml"))
        assert faults(found) == ["c.yaml:8:1: lr: unknown key; did you mean 'optimizer.lr'?"]

    @pytest.mark.parametrize(
        ("parent", "child", "result"),
        [
            ("freeze: [{train: head}]", "freeze: {policy: gradual}", {"policy": "gradual"}),
            ("freeze: {policy: gradual, every: 2}", "freeze: [{train: head}]", [{"train": "head"}]),
            ("freeze: {policy: gradual, every: 2}", "freeze: {every: 3}", {"policy": "gradual", "every": 3}),
            ("freeze: {policy: gradual}", "freeze: null", None),
        ],
    )
    def test_what_has_another_shape_is_replaced(self, reading: Read, base: str, parent: str, child: str, result: object) -> None:
        found = reading(f"extends: base.yaml\n{child}\n", base=base + parent + "\n")
        assert faults(found) == []
        assert found.data["freeze"] == result

    def test_weights_become_a_mapping(self, reading: Read, base: str) -> None:
        found = reading("extends: base.yaml\nsource: {weights: {path: a.pth}}\n", base=base.replace("18}", "18, weights: DEFAULT}"))
        assert faults(found) == []
        assert found.data["source"] == {"model": "torchvision/resnet18", "weights": {"path": "a.pth"}}

    def test_a_missing_key_is_placed_in_the_child(self, reading: Read) -> None:
        found = reading(
            "extends: base.yaml\ntransfer: {type: feature}\nsource: {trust: no}\n",
            base="source: {weights: none}\ntarget: {dataset: folder}\n",
        )
        assert faults(found) == ["r.yaml:3:1: source.model: required, e.g. torchvision/resnet18"]

    def test_a_parents_key_is_placed_in_the_parent(self, reading: Read, base: str) -> None:
        found = reading("extends: base.yaml\noptimizer: {lr: 1}\n", base=base + "optimizer:\n  momentum: 1\n")
        assert faults(found) == ["base.yaml:7:3: optimizer.momentum: must be at least 0 and below 1, not 1"]

    def test_an_unreadable_parent_hides_what_it_might_hold(self, reading: Read) -> None:
        found = reading("extends: base.yaml\noptimizer: {lr: 0}\n", base="source: {model: [}\n")
        assert faults(found) == [
            "base.yaml:1:18: not valid YAML: a value is expected before '}'; one that begins with it needs quotes",
            "r.yaml:2:13: optimizer.lr: must be above 0, not 0",
        ]
        assert found.blocked("target.path")

    def test_itself(self, reading: Read, base: str) -> None:
        assert faults(reading("extends: ./r.yaml\n" + base)) == ["r.yaml:1:1: extends: goes round in a circle: r.yaml -> r.yaml"]

    def test_plugins_stay_relative_to_the_file_that_lists_them(self, reading: Read, base: str) -> None:
        found = reading("extends: lib/base.yaml\n", lib__base=base + "plugins: [./mine.py, ../other.py]\n")
        assert [Path(plugin) for plugin in found.data["plugins"]] == [Path("lib/mine.py"), Path("lib/../other.py")]

    def test_a_file_of_a_package(self, reading: Read, base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        package = tmp_path / "site" / "recipes_of_ours"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "base.yaml").write_text("extends: more.yaml\n")
        (package / "more.yaml").write_text(base + "seed: -1\n")
        monkeypatch.syspath_prepend(str(package.parent))
        found = reading("extends: pkg://recipes_of_ours/base.yaml\nname: mine\n")
        assert faults(found) == ["pkg://recipes_of_ours/more.yaml:6:1: seed: must be at least 0 and below 4294967296, not -1"]
        assert found.data["name"] == "mine"


class TestInterpolation:
    def test_values_keep_their_type(self, reading: Read, base: str) -> None:
        found = reading(
            base
            + "seed: 5\nhead: {hidden: [64]}\noptimizer: {lr: '${seed}', momentum: '${head.dropout}'}\nname: a-${seed}-${head.hidden[0]}\n"
        )
        assert faults(found) == []
        assert found.data["optimizer"] == {"lr": 5, "momentum": 0.0}
        assert found.data["name"] == "a-5-64"

    def test_of_a_section_and_through_a_chain(self, reading: Read, base: str) -> None:
        more = "name: ${target.a}\ncluster: {storage: '${name}'}\nsweep: {search: {name: optuna, as_in: '${optimizer}'}}\n"
        found = reading(base + more, "target.a=x")
        assert faults(found) == []
        assert found.data["cluster"]["storage"] == "x"
        assert found.data["sweep"]["search"]["as_in"]["lr"] == 1e-3

    def test_after_overrides(self, reading: Read, base: str) -> None:
        found = reading(base + "name: s${seed}\n", "seed=9", "target.root=${target.path}/sub")
        assert (found.data["name"], found.data["target"]["root"]) == ("s9", "data/flowers/sub")

    def test_no_environment(self, reading: Read, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_TOKEN", "hunter2")
        for text in (
            "${oc.env:SECRET_TOKEN}",
            "${ oc.env : SECRET_TOKEN }",
            "${a.${oc.env:SECRET_TOKEN}}",
            "\\\\${oc.env:SECRET_TOKEN}",
            "${oc.${x}:y}",
        ):
            found = reading(base + f"name: '{text}'\n")
            assert [fault.path for fault in found.faults] == ["name"], text
            assert "hunter2" not in repr(found)

    def test_many(self, reading: Read, base: str) -> None:
        found = reading(base.replace("  path", "".join(f"  o{n}: '${{seed}}'\n" for n in range(201)) + "  path"))
        assert faults(found) == ["r.yaml:1:1: more than 200 interpolations"]


def test_the_resolved_recipe_reads_as_itself(reading: Read, full: str) -> None:
    """What a bundle keeps as recipe.resolved.yaml gives the same recipe again."""
    yaml = pytest.importorskip("yaml")
    first = reading(full)
    again = reading(yaml.safe_dump(first.resolved, sort_keys=False, allow_unicode=True))
    assert again.faults == ()
    assert again.recipe == first.recipe
    assert again.resolved == first.resolved


def test_reading_a_plain_recipe_imports_little(tmp_path: Path, base: str) -> None:
    """OmegaConf costs 0.1 s, and only what merges or interpolates pays for it; frameworks and numpy never come."""
    (tmp_path / "r.yaml").write_text(base)
    (tmp_path / "child.yaml").write_text("extends: r.yaml\n")
    code = """
import sys
from xfer.recipe.loader import read
assert read("r.yaml", ["seed=3"]).faults == ()
heavy = {"omegaconf", "numpy", "torch", "tensorflow", "ray", "fsspec"} & set(sys.modules)
assert read("child.yaml").faults == ()
print(sorted(heavy), "omegaconf" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"


def test_recipe_is_frozen(reading: Read, base: str) -> None:
    recipe = reading(base).recipe
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_what_names_a_faulty_value_is_not_blamed(reading: Read, base: str) -> None:
    found = reading(base.replace("data/flowers", "${oc.env:HOME}") + "name: ${target.path}\nseed: -1\nhead: {dropout: '${seed}'}\n")
    assert [fault.path for fault in found.faults] == ["target.path", "seed", "head.dropout"]
