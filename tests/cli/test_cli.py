"""The command: its output, its files, and its errors."""

import csv
import io
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from nets import CIFAR, ROOT, images
from quick import one_in, slow_unless
from safetensors.torch import load_file, save_file

import dmnn_convert
from dmnn_convert.cli import convert as cli
from dmnn_convert.io import zoo

CHECKPOINTS = ROOT.parent / "shared" / "checkpoints"

OWN = """
    import sys
    from pathlib import Path

    sys.path.insert(0, {tests!r})
    from nets import NETS, Residual, conv_norm, nn, sums
    from torchvision.models.resnet import Bottleneck, ResNet

    def stages():
        return ResNet(Bottleneck, [2, 2, 1, 1], num_classes=10)

    def bottlenecks():
        return NETS["bottlenecks"].build()

    def chain():
        return NETS["chain"].build()

    def uneven():
        narrow = nn.Sequential(*conv_norm(8, 4), nn.ReLU(), *conv_norm(4, 8))
        return nn.Sequential(sums("plus"), Residual(narrow))

    def broken():
        raise RuntimeError("the user's own bug")

    def number():
        return 7
"""


@pytest.fixture
def own(tmp_path):
    """A file of factories."""
    file = tmp_path / "own.py"
    file.write_text(textwrap.dedent(OWN).format(tests=str(ROOT / "tests" / "nets")))
    return file


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmnn-convert", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code or 0, out, err

    return run


def done(result):
    code, out, err = result
    assert code == 0, err
    return out


def refused(result, code, *words):
    got, out, err = result
    assert (got, out) == (code, "")
    for word in words:
        assert word in err
    assert len(err) < 3000
    return err


# --- the real entry point ---------------------------------------------------------------------


def subprocess_run(*arguments):
    command = [sys.executable, "-m", "dmnn_convert", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_prints_the_table_of_resnet18():
    result = subprocess_run("--arch", "resnet18")
    assert (result.returncode, result.stderr) == (0, "")
    for part in (
        *("resnet18: 8 blocks, each in 2 sub-blocks (8 hidden-channel)", "11.690 M"),
        *("5 basic, identity shortcut", "3 basic, projection shortcut", "1,814.1 M"),
        *("64×56×56", "512×7×7", "all gates on", "all gates off", "target r"),
    ):
        assert part in result.stdout


@pytest.mark.slow
def test_fails_without_a_traceback():
    result = subprocess_run("--arch", "resnet1O")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: ")
    assert "resnet18" in result.stderr or "resnet101" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


# --- what it prints ---------------------------------------------------------------------------


def test_json_has_the_right_figures(run):
    report = json.loads(done(run("--arch", "resnet50", "--format", "json", "--input-size", 224)))
    assert report["name"] == "resnet50"
    assert report["N"] == 2
    assert report["params"] == {"source": 25_557_032, "converted": 25_455_208}
    assert report["macs"]["source"] == 4_089_184_256
    assert report["macs"]["all_on"] == report["macs"]["fixed"] + report["macs"]["gated"]
    assert report["macs"]["all_off"] == report["macs"]["fixed"]
    assert report["macs"]["controllers"] < 0.001 * report["macs"]["source"]
    assert len(report["blocks"]) == 16
    assert all(b["converted"] and b["kind"] == "bottleneck" for b in report["blocks"])
    assert report["table"]["input_size"] == [3, 224, 224]
    assert len(report["table"]["rows"]) == 32


MIXED = ("--arch", "resnet18", "--input-size", 64, "-N", "layer2.*=2", "-N", "layer3.*=4")


@pytest.mark.slow
def test_mixed_numbers_are_shown_for_every_block(run):
    report = json.loads(done(run(*MIXED, "--format", "json")))
    expected = {"layer2.0": 2, "layer2.1": 2, "layer3.0": 4, "layer3.1": 4}
    assert report["N"] == expected
    assert {b["name"]: b["N"] for b in report["blocks"] if b["converted"]} == expected
    assert {b["N"] for b in report["blocks"] if not b["converted"]} == {None}
    assert [b["stage"] for b in report["blocks"]] == [1, 1, 2, 2, 3, 3, 4, 4]
    rows = list(csv.DictReader(io.StringIO(done(run(*MIXED, "--format", "csv")))))
    sizes = {row["block"]: int(row["N"]) for row in rows if row["part"] == "sub_block"}
    assert sizes == expected
    text = done(run(*MIXED, "--verbose"))
    for name, N in expected.items():
        assert any(f"  {name} " in line and f"N={N}" in line for line in text.splitlines())


def test_what_is_too_narrow_for_its_own_number_says_so(run, own):
    out = done(run("--arch", f"{own}:uneven", "-N", "1*=8", "-N", "2", "--input-size", 16))
    assert "left dense: 1: 4 hidden channels, fewer than 8 sub-blocks" in out


@pytest.mark.slow
def test_csv_has_a_row_for_every_part(run):
    out = done(run("--arch", "resnet18", "--format", "csv", "-N", 3, "--input-size", 64))
    rows = list(csv.DictReader(io.StringIO(out)))
    report = json.loads(
        done(run("--arch", "resnet18", "--format", "json", "-N", 3, "--input-size", 64))
    )
    parts = [row["part"] for row in rows]
    assert parts.count("sub_block") == 24
    assert {"sub_block", "fixed"} == set(parts)
    assert sum(int(row["macs"]) for row in rows) == report["macs"]["all_on"]
    params = report["params"]["converted"] + report["controller_params"]
    assert sum(int(row["params"]) for row in rows) == params


def test_shared_trunks_have_rows_of_their_own(run, own):
    out = done(run("--arch", f"{own}:bottlenecks", "--split", "exact", "--format", "csv"))
    assert [row["part"] for row in csv.DictReader(io.StringIO(out))].count("trunk") == 2


@pytest.mark.slow
def test_verbose_lists_every_block_and_sub_block(run):
    short = done(run("--arch", "resnet18", "--input-size", 64))
    long = done(run("--arch", "resnet18", "--input-size", 64, "--verbose"))
    assert "layer3.1" not in short
    assert short.count("FLOPs table (in multiply-accumulates)\nstage  ") == 1
    for name in (f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)):
        assert sum(line.startswith(f"{name} ") for line in long.splitlines()) == 2
        assert f"  {name}  basic" in long


@pytest.mark.parametrize(
    ("arguments", "words"),
    one_in(
        3,
        [
            (("-N", 3), "3 sub-blocks (6 matched-width)"),
            (("--split", "exact"), "2 sub-blocks (6 shared-trunk)"),
            (("--where", "layer1.*", "--where", "layer2.1"), "3 blocks, each in 2"),
            (("--where", "layer1.0"), "left dense: layer1.1: not selected"),
            (("--where", "!stage:1"), "4 blocks, each in 2"),
            (("--where", "stage:2-", "--where", "!layer2.1"), "3 blocks, each in 2"),
            (("--where", "kind:bottleneck"), "6 blocks, each in 2"),
            (("--where", "depth:-2"), "2 blocks, each in 2"),
            (("-N", "layer1.*=2", "-N", "layer2.*=4"), "4 blocks, 2 in 2, 2 in 4 sub-blocks"),
            (("-N", "layer2.*=3", "-N", "2"), "6 blocks, 4 in 2, 2 in 3 sub-blocks"),
            (("-N", "stage:1=0", "-N", "2"), "4 blocks, each in 2"),
        ],
    ),
)
def test_options_take_effect(run, own, arguments, words):
    assert words in done(run("--arch", f"{own}:stages", "--input-size", 32, *arguments))


@pytest.mark.parametrize(
    "size",
    slow_unless(
        {"64", "3x64x64"}.__contains__, ["64", "3,64,64", "3x64x64", "3×64×64", " 3, 64, 64 "]
    ),
)
def test_forms_of_the_input_size(run, own, size):
    out = done(run("--arch", f"{own}:chain", "--input-size", size, "--format", "json"))
    assert json.loads(out)["table"]["input_size"] == [3, 64, 64]


def test_timm_models_bring_their_own_size(run):
    out = done(run("--arch", "timm:resnet10t", "--format", "json"))
    assert json.loads(out)["table"]["input_size"] == [3, 176, 176]


def test_num_classes(run):
    arguments = ("--arch", "resnet18", "--input-size", 64, "--format", "json")
    report = json.loads(done(run(*arguments, "--num-classes", 7)))
    assert report["params"]["source"] == 11_689_512 - 993 * 513


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(run, own, tmp_path):
    states = []
    for i, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(i)
        done(run("--arch", f"{own}:chain", "--input-size", 16, "--seed", seed, "-o", folder))
        states.append(load_file(folder / "model.safetensors"))
    first, again, other = states
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_a_shared_tail_norm_takes_effect_and_is_said(run, own, tmp_path):
    arguments = ("--arch", f"{own}:chain", "--input-size", 16, "--tail-norm", "shared")
    out = done(run(*arguments, "-o", tmp_path / "saved"))
    assert "3 with one tail norm, shared" in out
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert config["conversion"]["tail_norm"] == "shared"
    assert json.loads(done(run(*arguments, "--format", "json")))["shared_tail_norms"] == 3
    assert "tail norm" not in done(run(*arguments[:-2]))


@pytest.mark.slow
def test_sub_blocks_may_be_unequal(run, own, tmp_path):
    arguments = ("--arch", f"{own}:chain", "--input-size", 16)
    unequal = ("--order", "importance", "--certainty", 0.9, "--init-rate", 0.5)
    done(run(*arguments, "-o", tmp_path / "equal"))
    done(run(*arguments, *unequal, "-o", tmp_path / "unequal"))
    found = []
    for name in ("equal", "unequal"):
        config = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
        state = load_file(tmp_path / name / "model.safetensors")
        biases = [v for k, v in state.items() if k.endswith("controller.w3.bias")]
        rates = torch.cat(biases).view(-1, 2).softmax(-1)[:, 1]
        found.append((config["conversion"]["order"], rates[:2].tolist()))
    assert found[0] == ("source", pytest.approx([0.9, 0.9]))
    assert found[1] == ("importance", pytest.approx([0.9, 0.1]))


def test_what_stays_dense_is_listed_with_its_reason(run, own):
    out = done(run("--arch", f"{own}:uneven", "-N", 8, "--input-size", 16))
    (line,) = [line for line in out.splitlines() if "left dense" in line]
    assert "4 hidden channels" in line
    assert "8 sub-blocks" in line
    assert "not selected" not in line


@pytest.mark.slow
def test_squeeze_excite_of_their_own_is_called_approximate(run):
    out = done(run("--arch", "mobilenet_v3_small", "--input-size", 64))
    assert "left dense" not in out
    assert "9 own-squeeze, 2 hidden-channel" in out


def test_list_names_every_architecture(run):
    names = done(run("--list")).splitlines()
    assert names == zoo.list_architectures()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_shows_examples(run, arguments):
    out = done(run(*arguments))
    assert "dmnn-convert --arch resnet101" in out
    assert "timm:mobilenetv2_100 -N 3" in out
    assert "-o converted" in out


def test_version(run):
    assert dmnn_convert.__version__ in done(run("--version"))


# --- how it fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    one_in(
        2,
        [
            (("--arch", "resnet5O"), 2, ("resnet50",)),
            (("--arch", "mobilenetv2_100"), 2, ("timm:mobilenetv2_100",)),
            (("--arch", "vgg16", "--input-size", "64"), 1, ("Nearest misses", "13 convolutions")),
            (("--arch", "resnet18", "-N", "0"), 2, ("N=0",)),
            (("--arch", "resnet18", "-N", "two"), 2, ("two",)),
            (("--arch", "resnet18", "-N", "2", "-N", "3"), 2, ("[2, 3]", "one number")),
            (("--arch", "resnet18", "-N", "layer1.*="), 2, ("layer1.*=", "BLOCKS=2")),
            (
                ("--arch", "resnet18", "-N", "layer1.*=2", "-N", "layer1.*=3"),
                2,
                ("layer1.*=3", "once"),
            ),
            (("--arch", "resnet18", "-N", "layer9.*=2"), 2, ("layer9.*", "layer1.0", "stages 1-4")),
            (("--arch", "resnet18", "-N", "layer1.*=-1"), 2, ("layer1.*", "-1", ">= 1")),
            (("--arch", "resnet18", "--where", "depth:0"), 2, ("depth:0", "counts from 1")),
            (
                ("--arch", "resnet18", "--where", "layer1.0", "-N", "99"),
                2,
                ("layer1.0", "64 hidden"),
            ),
            (("--arch", "resnet18", "--split", "best"), 2, ("matched", "exact")),
            (("--arch", "resnet18", "--input-size", "big"), 2, ("224",)),
            (("--arch", "resnet18", "--input-size", "0"), 2, ("224",)),
            (("--arch", "resnet18", "--input-size", "1,64,64"), 2, ("3 channels",)),
            (("--arch", "resnet18", "--input-size", "64,64"), 2, ("3 channels",)),
            (("--arch", "resnet18", "--num-classes", "0"), 2, ("num_classes=0",)),
            (("--arch", "resnet18", "--init-rate", "1"), 2, ("init_rate",)),
            (("--arch", "resnet18", "--certainty", "0.4"), 2, ("certainty=0.4", "0.5")),
            (("--arch", "resnet18", "--order", "random"), 2, ("source", "importance")),
            (("--arch", "resnet18", "--where", "layer9"), 2, ("layer9", "layer1.0")),
            (("--arch", "resnet18", "--format", "xml"), 2, ("json",)),
            (("-N", "2"), 2, ("--arch is missing",)),
            (("--no-such-option",), 2, ("--no-such-option",)),
            (
                ("--arch", "resnet18", "--checkpoint", "no/such.pth"),
                1,
                ("no/such.pth", "no such file"),
            ),
            (
                ("--arch", "resnet18", "--checkpoint", "a.pth", "--pretrained"),
                2,
                ("--checkpoint", "--pretrained", "not both"),
            ),
            (("--arch", "no.such.module:make"), 2, ("PYTHONPATH",)),
            (("--arch", "none.py:make"), 2, ("no such file",)),
        ],
    ),
)
def test_failures(run, arguments, code, words):
    refused(run(*arguments), code, *words)


@pytest.mark.parametrize(
    ("factory", "code", "words"),
    [
        ("broken", 1, ("RuntimeError", "the user's own bug")),
        ("number", 2, ("returned int",)),
        ("chian", 2, ("Did you mean chain",)),
    ],
)
def test_factories_that_fail(run, own, factory, code, words):
    refused(run("--arch", f"{own}:{factory}"), code, *words)


def test_a_file_that_does_not_parse(run, tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def make(:\n")
    refused(run("--arch", f"{file}:make"), 1, "SyntaxError")


# --- weights and saving -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", slow_unless("pth".__eq__, ["pth", "safetensors"]))
def test_approximate_blocks_are_listed_with_their_error(run, own, tmp_path, suffix):
    torch.manual_seed(3)
    state = zoo.build(f"{own}:bottlenecks").state_dict()
    file = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, file)
    arguments = ("--arch", f"{own}:bottlenecks", "--input-size", 16, "--checkpoint", file)
    out = done(run(*arguments))
    assert "2 blocks are split approximately" in out
    assert "  1: " in out
    assert "  3: " in out
    assert "whole network's output" in out
    assert "--split exact" in out
    errors = json.loads(done(run(*arguments, "--format", "json")))["errors"]
    assert set(errors) == {"", "1", "3"}
    assert all(0 < error < 10 for error in errors.values())
    exact = done(run(*arguments, "--split", "exact"))
    assert "approximately" not in exact


def test_weights_of_another_model_are_refused(run, own, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(zoo.build(f"{own}:chain").state_dict(), file)
    refused(run("--arch", f"{own}:bottlenecks", "--checkpoint", file), 1, str(file), "do not fit")


def test_saves_what_load_reads(run, tmp_path):
    folder = tmp_path / "converted"
    arguments = ("--arch", "resnet18", "--num-classes", 5, "--input-size", 64, "-o", folder)
    code, out, err = run(*arguments)
    assert code == 0
    assert f"dmnn_convert.load({str(folder)!r})" in err
    assert "8 blocks" in out
    model, table = dmnn_convert.load(folder)
    assert len(table.blocks) == 8
    assert model(images(model, (3, 64, 64))).shape == (4, 5)


def test_saves_a_network_of_ones_own(run, own, tmp_path):
    folder = tmp_path / "converted"
    code, _, err = run("--arch", f"{own}:chain", "--input-size", 16, "-o", folder)
    assert code == 0
    assert "model=" in err
    assert dmnn_convert.load(folder, zoo.build(f"{own}:chain")).table.blocks == ("2", "3", "4")


def test_the_end_of_a_fine_tuning_run_is_not_replaced(run, tmp_path):
    arguments = ("--arch", "resnet18", "--input-size", 64, "-o", tmp_path / "final")
    (tmp_path / "recipe.yaml").write_text("")  # a recipe of the user's own is no run
    assert run(*arguments)[0] == 0
    (tmp_path / "last.pt").write_bytes(b"")
    code, _, err = run(*arguments)
    assert code == 2
    assert "is a fine-tuning run; give another folder" in err


def test_a_folder_that_cannot_be_written(run, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    code, _, err = run("--arch", "resnet18", "--input-size", 64, "-o", file / "inside")
    assert code == 1
    assert "cannot be written" in err
    code, _, err = run("--arch", "resnet18", "--input-size", 64, "-o", file)
    assert code == 2
    assert file.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, pytest.param(56, marks=pytest.mark.slow)])
def test_published_checkpoints(run, depth, tmp_path):
    found = list(CHECKPOINTS.glob(f"resnet{depth}-*.th"))
    if not found:
        pytest.skip("the published checkpoints are not here")
    folder = tmp_path / "converted"
    arch = f"{CIFAR}:resnet{depth}"
    code, out, err = run(
        *("--arch", arch, "--checkpoint", found[0], "--input-size", 32, "-o", folder)
    )
    assert code == 0, err
    blocks = (depth - 2) // 2
    assert f"{blocks} blocks, each in 2 sub-blocks ({blocks} hidden-channel)" in out
    assert "approximately" not in out
    model = dmnn_convert.load(folder, zoo.build(arch)).model
    source = zoo.build(arch).eval()
    dmnn_convert.load_source_checkpoint(source, found[0])
    x = images(source, (3, 32, 32))
    with torch.no_grad(), dmnn_convert.force_gates(model, True):
        assert torch.allclose(model(x), source(x), atol=1e-3)


def test_every_verb_can_be_read_by_programs_and_be_quiet():
    for verb in (cli.cli, *cli.cli.commands.values()):
        options = {name for parameter in verb.params for name in parameter.opts}
        assert "--format" in options, verb.name
        form = next(p for p in verb.params if "--format" in p.opts)
        assert "json" in form.type.choices
        assert {"-q", "--quiet"} <= options, verb.name
