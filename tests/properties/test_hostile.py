"""Hostile files and options: each ends in an error that says what to do, and none runs code."""

import csv
import io
import json
import os
import pickle
import signal
import struct
import sys
import zipfile
import zlib

import numpy
import pytest
import safetensors.torch
import torch
from finetune_data import image_folders, tiny_recipe
from PIL import Image
from tiny_net import tiny

from dmnn_convert import dynamize, load, save
from dmnn_convert.categories import read_categories
from dmnn_convert.cli import convert as cli
from dmnn_convert.data import Augmented, open_test
from dmnn_convert.data.images import BadImage
from dmnn_convert.errors import ArgumentError, CheckpointError, DmnnError
from dmnn_convert.evaluation import Evaluation
from dmnn_convert.finetune import LAST, Recipe, finetune, read_recipe
from dmnn_convert.finetune.log import Log
from dmnn_convert.flops import FlopsTable
from dmnn_convert.io import load_source_checkpoint
from dmnn_convert.runtime.tuning import Tuning

DEEP = 100_000
NESTED = "[" * DEEP + "]" * DEEP
HUGE = 10**400


@pytest.fixture(autouse=True)
def _no_hang():
    """End what takes too long."""

    def late(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Runs:
    """Writes a file where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(dynamize(tiny(), 2, input_size=(3, 8, 8)).model, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folders(tmp_path_factory.mktemp("images"), train=2, test=2)


# --- a saved conversion -----------------------------------------------------------------------


def with_config(**changes):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def with_conversion(**changes):
    def damage(folder):
        conversion = json.loads((folder / "config.json").read_text())["conversion"]
        with_config(conversion={**conversion, **changes})(folder)

    return damage


def with_gate(**changes):
    def damage(folder):
        gate = json.loads((folder / "config.json").read_text())["conversion"]["gate"]
        with_conversion(gate={**gate, **changes})(folder)

    return damage


def with_text(text, name="config.json"):
    return lambda folder: (folder / name).write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


def with_weights(change=lambda state: None, **metadata):
    def damage(folder):
        file = folder / "model.safetensors"
        with safetensors.safe_open(file, "pt") as held:
            kept = held.metadata()
        state = safetensors.torch.load_file(file)
        change(state)
        safetensors.torch.save_file(state, file, {**kept, **metadata})

    return damage


def put(value, name="0.weight"):
    def change(state):
        state[name] = value(state[name])

    return change


def nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] = torch.nan
    return tensor


def header(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


DIRECTORIES = {
    "nested": with_text(NESTED),
    "no-text": with_text(b"\xff\xfe\x00"),
    "a-list": with_text("[]"),
    "cut": with_text('{"format": 1'),
    "digits": with_text("9" * 10_000),
    "another-format": with_config(format=[[[[[1] * 100]]]]),
    "conversion-a-list": with_config(conversion=[1]),
    "training-a-text": with_config(training="yes"),
    "save-id-a-number": with_config(save_id=7),
    "source-class-a-dict": with_config(source_class={"a": 1}),
    "arch-a-number": with_config(arch=5),
    "classes-a-text": with_config(num_classes="ten"),
    "classes-huge": with_config(num_classes=10**12),
    "N-huge": with_conversion(N=10**9),
    "N-nested": with_conversion(N=[[[]]]),
    "N-a-mapping-of-lists": with_conversion(N={"4": [1]}),
    "blocks-of-numbers": with_conversion(blocks=[1, 2]),
    "blocks-unknown": with_conversion(blocks=["nowhere"]),
    "size-huge": with_conversion(input_size=[3, 10**9, 10**9]),
    "size-of-texts": with_conversion(input_size=["3", "8", "8"]),
    "size-of-many": with_conversion(input_size=[1] * 1000),
    "split-unknown": with_conversion(split="__import__"),
    "fields-unknown": with_conversion(evil=1),
    "hidden-huge": with_gate(hidden=10**9),
    "tau-huge": with_gate(tau=HUGE),
    "rate-nan": with_gate(init_rate=float("nan")),
    "gate-a-list": with_conversion(gate=[1]),
    "weights-empty": with_text(b"", "model.safetensors"),
    "weights-header-huge": with_text(struct.pack("<Q", 2**62) + b"{}", "model.safetensors"),
    "weights-header-nested": with_text(header(b'{"a":' * DEEP), "model.safetensors"),
    "weights-offsets-beyond": with_text(
        header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}), "model.safetensors"
    ),
    "aliases-nested": with_weights(aliases=NESTED),
    "aliases-a-list": with_weights(aliases="[1]"),
    "aliases-of-none": with_weights(aliases='{"a": "b"}'),
    "aliases-of-lists": with_weights(aliases='{"a": ["b"]}'),
    "of-another-save": with_weights(save_id="0"),
    "nan": with_weights(put(nan)),
    "infinite": with_weights(put(lambda t: t * torch.inf)),
    "integers": with_weights(put(lambda t: t.to(torch.int8))),
    "complex": with_weights(put(lambda t: t.to(torch.complex64))),
    "another-shape": with_weights(put(lambda t: t[..., :1].contiguous())),
    "broken-counts": with_weights(put(lambda t: t + 0.5, "1.num_batches_tracked")),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_saved_conversions(saved, tmp_path, name):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    DIRECTORIES[name](tmp_path)
    with pytest.raises(DmnnError) as error:
        load(tmp_path, model=None if name == "arch-a-number" else tiny())
    _check_message(error.value)


def test_the_undamaged_one_loads(saved):
    assert load(saved, model=tiny()).table.input_size == (3, 8, 8)


def _check_message(error):
    text = str(error)
    assert len(text) < 2000
    assert text.endswith(".")
    words = ("give", "save", "build", "choose", "use", "repair", "remove", "start", "put", "move")
    assert any(word in text.lower() for word in words), text


# --- a checkpoint of the source ---------------------------------------------------------------


def pth(content):
    return lambda file: torch.save(content, file)


def state(**changes):
    return lambda file: torch.save({**tiny().state_dict(), **changes}, file)


def pickled_code(file):
    with zipfile.ZipFile(file, "w") as whole:
        whole.writestr("archive/data.pkl", pickle.dumps(Runs(file.parent / "ran")))
        whole.writestr("archive/version", "3")


def packed(file):
    torch.save({"0.weight": torch.zeros(1 << 22)}, file)
    with zipfile.ZipFile(file) as whole:
        parts = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as whole:
        for name, part in parts.items():
            whole.writestr(name, part)


def oddly_versioned(file):
    weights = tiny().state_dict()
    weights._metadata = 5
    weights["0.weight"] = nan(weights["0.weight"])
    torch.save(weights, file)


CHECKPOINTS = {
    "a-pickle-that-runs": lambda f: f.write_bytes(pickle.dumps(Runs(f.parent / "ran"), 2)),
    "an-archive-that-runs": pickled_code,
    "nested-pickle": lambda f: f.write_bytes(b"\x80\x02" + b"]" * DEEP + b"a" * DEEP + b"."),
    "packed": packed,
    "cut": lambda f: f.write_bytes(b"PK\x03\x04"),
    "empty": lambda f: f.write_bytes(b""),
    "a-list": pth([torch.zeros(1)] * 3),
    "numbers-for-names": pth({1: torch.zeros(1)}),
    "numbers-for-tensors": state(**{"0.weight": 5}),
    "versions-a-number": oddly_versioned,
    "nan": state(**{"0.weight": torch.full((8, 3, 3, 3), torch.nan)}),
    "infinite": state(**{"0.bias": torch.full((8,), torch.inf)}),
    "too-large": state(**{"0.bias": torch.full((8,), 1e300, dtype=torch.float64)}),
    "integers": state(**{"0.weight": torch.ones(8, 3, 3, 3, dtype=torch.int64)}),
    "truths": state(**{"0.weight": torch.ones(8, 3, 3, 3, dtype=torch.bool)}),
    "complex": state(**{"0.weight": torch.ones(8, 3, 3, 3, dtype=torch.complex64)}),
    "sparse": state(**{"0.weight": torch.ones(8, 3, 3, 3).to_sparse()}),
    "without-values": state(**{"0.weight": torch.ones(8, 3, 3, 3, device="meta")}),
    "an-expanded-number": state(**{"0.weight": torch.ones(1).expand(10**15)}),
    "a-folder": lambda f: f.mkdir(),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(tmp_path, name):
    file = tmp_path / "weights.pth"
    CHECKPOINTS[name](file)
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_source_checkpoint(model, file)
    _check_message(error.value)
    assert not (tmp_path / "ran").exists()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_a_model_holds_itself_may_be_infinite(tmp_path):
    model = tiny()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(model.half().state_dict(), tmp_path / "weights.pth")
    load_source_checkpoint(model.float(), tmp_path / "weights.pth")


# --- recipes ----------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 9)}]}}"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
RECIPES = {
    "a-list": "[1, 2]",
    "a-text": "hello",
    "nested": NESTED,
    "nested-and-short": "[" * 40_000 + "]" * 40_000,
    "bomb": BOMB,
    "merged-bomb": MERGED,
    "code": "!!python/object/apply:os.system ['true']",
    "digits": "lr: " + "9" * 10_000,
    "no-text": b"\xff\xfe\x00",
    "unknown": "evil: 1",
    "numbers-for-names": "1: 2",
    "a-list-for-a-number": "lr: [[[[[[1]]]]]]",
    "a-mapping-for-a-list": "where: {a: b}",
    "huge": f"lr: {HUGE}",
    "infinite": "lr: .inf",
    "seed": f"seed: {2**70}",
    "a-date": "epochs: 2020-01-01",
    "nul": 'output: "a\\0b"',
    "long": "lr: [" + "1, " * 100_000 + "]",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(tmp_path, name):
    with_text(RECIPES[name], "hostile.yaml")(tmp_path)
    with pytest.raises(ArgumentError) as error:
        Recipe().with_changes(read_recipe(tmp_path / "hostile.yaml"))
    assert len(str(error.value)) < 2000


# --- categories, tables, evaluations ----------------------------------------------------------

CATEGORIES = {
    "nested.json": NESTED,
    "digits.json": "9" * 10_000,
    "number.json": "5",
    "null.json": '{"a": null, "b": 1, "c": 2}',
    "inner.json": json.dumps([[["x"] * 1000] * 1000, "b", "c"]),
    "no-text.csv": b"\xff\xfe\x00",
    "nul.csv": "a,\x00\nb,1\nc,2\x01,",
    "quotes.csv": '"' * 9999,
    "long.csv": '"' + "a" * (csv.field_size_limit() + 1) + '",1',
    "header.csv": "class,category\n",
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_categories(tmp_path, name):
    with_text(CATEGORIES[name], name)(tmp_path)
    with pytest.raises(ArgumentError) as error:
        read_categories(tmp_path / name, ["a", "b", "c"], 3)
    _check_message(error.value)


@pytest.mark.parametrize("text", [NESTED, "5", "[]", '{"rows": 1}', "{"], ids=lambda t: t[:5])
@pytest.mark.parametrize("cls", [FlopsTable, Evaluation])
def test_tables_and_results(cls, text):
    with pytest.raises(ArgumentError, match=r"from_json|from_dict"):
        cls.from_json(text)


@pytest.mark.parametrize(
    "text",
    [NESTED, "[]", '{"format": 1, "costs": []}', '{"format": [1]}', b"\xff", "9" * 10_000],
    ids=range(6),
)
def test_measured_costs_are_measured_anew(tmp_path, text, caplog):
    with_text(text, "autotune.json")(tmp_path)
    assert Tuning(tmp_path / "autotune.json").known == {}
    assert "damaged" in caplog.text or text == '{"format": [1]}'


# --- images -----------------------------------------------------------------------------------


def chunk(kind, content):
    sum_ = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_)


def png(width, height, content=b""):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(content))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def picture(form, **options):
    file = io.BytesIO()
    pixels = numpy.zeros(options.pop("shape", (8, 8, 3)), "uint8")
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


IMAGES = {
    "a-bomb": png(50_000, 50_000),
    "a-line": picture("PNG", shape=(1, 20_000, 3)),
    "cut": picture("PNG")[:40],
    "empty": b"",
    "text": b"hello" * 100,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "an-icon": picture("ICO"),
    "noise": numpy.random.default_rng(0).bytes(1000),
    "a-head-of-noise": picture("TIFF")[:8] + numpy.random.default_rng(0).bytes(1000),
    "a-pipe": None,
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(data, tmp_path, name):
    folder = tmp_path / "test" / "red"
    folder.mkdir(parents=True)
    if IMAGES[name] is None:
        os.mkfifo(folder / "bad.png")
    else:
        (folder / "bad.png").write_bytes(IMAGES[name])
    images, _ = open_test(Recipe(data=str(tmp_path)))
    found = Augmented(images, lambda image: torch.zeros(1), 0)[0, 0]
    assert isinstance(found, BadImage)
    assert found.file.endswith("bad.png")
    assert found.reason


# --- the state of a run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(data, folder, epochs=1, batch_size=3)
    finetune(recipe)
    return recipe, torch.load(folder / LAST, weights_only=True)


STATES = {
    "a-list": [1],
    "format": {"format": 10**100},
    "recipe": {"recipe": [1]},
    "recipe-of-lists": {"recipe": {"lr": [[1]]}},
    "setting": {"setting": 7},
    "files": {"files": {"train": 1}},
    "files-of-another-number": {"files": {p: torch.zeros(1, 2).long() for p in ("train", "test")}},
    "trainer": {"trainer": {}},
    "trainer-of-none": {"trainer": None},
    "best": {"best": "99"},
    "minutes": {"minutes": float("nan")},
}


@pytest.mark.parametrize("name", STATES)
def test_states(run, tmp_path, name):
    recipe, whole = run
    changes = STATES[name]
    torch.save(changes if isinstance(changes, list) else {**whole, **changes}, tmp_path / LAST)
    with pytest.raises(DmnnError) as error:
        finetune(recipe.with_changes({"output": str(tmp_path)}), resume=True)
    assert any(word in str(error.value) for word in ("another --output", "give"))


def test_a_state_that_runs_code(run, tmp_path):
    pickled_code(tmp_path / LAST)
    with pytest.raises(CheckpointError, match="another --output"):
        finetune(run[0].with_changes({"output": str(tmp_path)}), resume=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a,b\n1,2,3\n", b'a,b\n"1', b"a,b\n1\n"])
def test_logs(tmp_path, text):
    (tmp_path / "log.csv").write_bytes(text)
    with pytest.raises(CheckpointError, match="move it away"):
        Log(tmp_path, 3)


# --- options ----------------------------------------------------------------------------------

OPTIONS = [
    ("--arch", "resnet18", "--seed", str(2**70)),
    ("--arch", "resnet18", "--seed", "-1"),
    ("--arch", "resnet18", "--input-size", "9" * 5000),
    ("--arch", "resnet18", "--input-size", "²"),
    ("--arch", "resnet18", "-N", "9" * 5000),
    ("--arch", "resnet18", "--num-classes", "9" * 30),
    ("--arch", "resnet18", "--init-rate", "nan"),
    ("--arch", "x" * 10_000),
    ("finetune", "--seed", str(2**70)),
    ("finetune", "--lr", "inf"),
    ("benchmark", "--arch", "resnet18", "--seed", str(2**70)),
    ("benchmark", "--arch", "resnet18", "--device", "\n"),
]


@pytest.mark.parametrize("arguments", OPTIONS, ids=lambda a: "_".join(a)[:40])
def test_options(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dmnn-convert", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (1, 2)
    assert "Error: " in capsys.readouterr().err
