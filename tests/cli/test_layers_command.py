from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from xfer.cli.main import run
from xfer.plan.model_map import ModelMap

SQUEEZENET = """\
stage   group        parameters  cut after it
                                 64 x 64 x 3  pixels
stage0  features.0        1,792  64 x 15 x 15  chw
stage1  features.3       11,408  128 x 15 x 15  chw
        features.4       12,432  128 x 7 x 7  chw
stage2  features.6       45,344  256 x 7 x 7  chw
        features.7       49,440  256 x 3 x 3  chw
stage3  features.9      104,880  384 x 3 x 3  chw
        features.10     111,024  384 x 3 x 3  chw
        features.11     188,992  512 x 3 x 3  chw
        features.12     197,184  512  pooled
torchvision/squeezenet1_1 (torchvision {version}) at 64 pixels: 9 groups, 4 stages, 10 cuts, 722,496 parameters
left out, because the head is new: 513,000 parameters of the model's own classifier
"""


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision import __version__

    assert run(["layers", "torchvision/squeezenet1_1", "--image-size", "64"]) == 0
    version = __version__.partition("+")[0]
    assert lines(capsys.readouterr().out) == lines(SQUEEZENET.format(version=version))


def test_what_is_worth_knowing_stands_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", "timm/deit_tiny_distilled_patch16_224"]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown[-1] == "note: it has several classifying layers (head, head_dist): the features are those that head reads"
    assert [line.split() for line in shown[3:5]] == [["cls_token", "192", "-"], ["dist_token", "192", "198", "x", "192", "tokens"]]


def test_json_is_the_map(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", "torchvision/resnet18", "--json"]) == 0
    out = capsys.readouterr().out
    found = ModelMap.model_validate_json(out)
    assert (found.model, found.image_size, len(found.groups)) == ("torchvision/resnet18", 224, 10)
    assert json.loads(out)["cuts"][-1] == {"name": "pooled", "groups_before": 10, "shape": [512], "layout": "vector"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "torchvision/resnet19",
            "error: torchvision has no model 'resnet19'; did you mean resnet18 or resnet152 or resnet101?\n"
            "  xfer list models shows all of them\n",
        ),
        ("timm/qqqqqqqq", "error: timm has no model 'qqqqqqqq'\n  xfer list models shows all of them\n"),
        ("resnet18", "error: 'resnet18' is no model: write PROVIDER/NAME, as in torchvision/resnet18\n"),
        (
            "torchvison/resnet18",
            "error: no source is called 'torchvison'; there are file, keras, run, savedmodel, timm, torchvision\n  torchvision\n",
        ),
        (
            "savedmodel:model",
            "error: savedmodel:model is not loaded: a SavedModel is a program, which may read and write files\n  add --trust\n",
        ),
        ("file:/absent/model.keras", "error: no file or folder /absent/model.keras; the part of it that exists is /\n"),
    ],
)
def test_what_there_is_not(model: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", model]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_an_image_size_that_the_weights_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", "torchvision/vit_b_16", "--image-size", "96"]) == 2
    assert capsys.readouterr().err == (
        "error: torchvision/vit_b_16 can't take images of 96 pixels a side: Wrong image height! Expected 224 but got 96!\n"
        "  leave target.image_size out, or set it to 224, the size that the network was made for\n"
    )


def test_a_model_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from xfer.sources import keras_library

    keras = keras_library.keras()
    file = tmp_path / "model.keras"
    keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, name="conv")]).save(file)
    assert run(["layers", f"file:{file}"]) == 0
    assert lines(capsys.readouterr().out)[1:4] == [
        "                           16 x 16 x 3  pixels",
        "stage0  conv          112  4  pooled",
        f"file:{file} (keras {metadata.version('keras')}) at 16 pixels: 1 groups, 1 stages, 2 cuts, 112 parameters",
    ]


def test_a_model_with_layers_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from keras import Input, Sequential, layers, saving

    from xfer import plugins

    (tmp_path / "own.py").write_text(
        "import keras\n\nxfer_plugins = {}\n\n\n@keras.saving.register_keras_serializable(package='layers-command')\n"
        "class Own(keras.layers.Conv2D):\n    pass\n"
    )
    name = plugins.load_local((tmp_path / "own.py").read_text(), stem="own")
    own = sys.modules.pop(name).Own
    Sequential([Input((32, 32, 3)), own(4, 3, name="own"), layers.GlobalAveragePooling2D(), layers.Dense(2)]).save(tmp_path / "m.keras")
    del saving.get_custom_objects()["layers-command>Own"]
    assert run(["layers", f"file:{tmp_path / 'm.keras'}"]) == 2
    assert "or after xfer layers: --plugin layers.py" in capsys.readouterr().err
    assert run(["layers", f"file:{tmp_path / 'm.keras'}", "--plugin", str(tmp_path / "own.py")]) == 0
    assert "stage0  own" in capsys.readouterr().out
    assert run(["layers", "torchvision/resnet18", "--plugin", str(tmp_path / "gone.py")]) == 2
    assert capsys.readouterr().err == f"error: --plugin {tmp_path / 'gone.py'}: can't be read: no such file or directory\n"
