"""Saved programs, and the command that extracts features with them."""

import json
import warnings

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

import numpy as np
import torch
from PIL import Image
from torch import nn

from skdice import DICEDetector, LinearHead, cli
from skdice.extraction import _program, attach, extract_features, load_program
from skdice.extraction._images import ImageFolder
from skdice.io import open_features

# Of torch, which announces the end of TorchScript.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
]


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x):
        pooled = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc(self.drop(pooled))


class Convolutional(nn.Module):
    """A 1x1 convolution as the head, whose maps are averaged."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x))).mean((2, 3))


class Probabilities(Backbone):
    def forward(self, x):
        return {"probabilities": self.fc(torch.relu(self.conv(x)).mean((2, 3))).softmax(1)}


class TwoHeads(Backbone):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 5)

    def forward(self, x):
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        return self.fc(pooled), self.other(pooled)


class NotTheEnd(Backbone):
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3))) ** 2


def save_script(model, path, inputs):
    torch.jit.save(torch.jit.script(model), path)


def save_trace(model, path, inputs):
    torch.jit.save(torch.jit.trace(model, inputs, strict=False), path)


def save_exported(model, path, inputs):
    sizes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(model, (inputs,), dynamic_shapes=sizes), path)


def save_lowered(model, path, inputs):
    sizes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(model, (inputs,), dynamic_shapes=sizes)
    torch.export.save(program.run_decompositions(), path)


WAYS = [save_script, save_trace, save_exported, save_lowered]


@pytest.fixture
def inputs():
    return torch.randn(7, 3, 9, 9, generator=torch.Generator().manual_seed(3))


def made(kind):
    torch.manual_seed(0)
    model = kind()
    if hasattr(model, "norm"):
        model.norm.running_mean.normal_()
    return model.eval()


@pytest.mark.parametrize("save", WAYS)
@pytest.mark.parametrize("kind", [Backbone, Convolutional, Probabilities])
def test_features_and_head_are_those_of_the_model(kind, save, inputs, tmp_path):
    model = made(kind)
    path = tmp_path / "model.pt2"
    save(model, path, inputs)
    program = load_program(path)
    assert program.layer_name == ("head" if kind is Convolutional else "fc")
    found = extract_features(program, [inputs[:4], inputs[4:]])
    layer = "head" if kind is Convolutional else "fc"
    expected = extract_features(model, [inputs[:4], inputs[4:]], layer=layer)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.head.weight, expected.head.weight)
    np.testing.assert_array_equal(found.head.bias, expected.head.bias)


@pytest.mark.parametrize("save", WAYS)
def test_ambiguous_programs_need_a_name(save, inputs, tmp_path):
    path = tmp_path / "model.pt"
    save(made(TwoHeads), path, inputs)
    with pytest.raises(ValueError, match=r"it has 2: (fc, other|other, fc); name the class"):
        load_program(path)
    with pytest.raises(ValueError, match=r"no layer 'f'; candidates: "):
        load_program(path, layer="f")
    program = load_program(path, layer="other")
    expected = extract_features(made(TwoHeads), inputs, layer="other")
    found = extract_features(program, inputs)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.head.weight, expected.head.weight)


@pytest.mark.parametrize("save", WAYS)
def test_a_program_whose_output_is_not_that_of_a_layer_is_refused(save, inputs, tmp_path):
    save(made(NotTheEnd), tmp_path / "model.pt", inputs)
    with pytest.raises(ValueError, match=r"the layer 'fc' give logits that are \d+ % off"):
        extract_features(load_program(tmp_path / "model.pt"), inputs)


@pytest.mark.parametrize("save", [save_trace, save_exported])
def test_a_program_saved_in_training_mode_is_refused(save, inputs, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        save(Backbone().train(), tmp_path / "model.pt", inputs)
    with pytest.raises(ValueError, match="saved in training mode"):
        load_program(tmp_path / "model.pt")


def test_a_fixed_size_of_batch_is_filled_up(inputs, tmp_path):
    model = made(Backbone)
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (inputs[:4],)), path)
    program = load_program(path)
    assert program.batch_rows == 4
    found = extract_features(program, [inputs[:4], inputs[4:]])
    expected = extract_features(model, inputs)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)


def test_files_that_are_no_programs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        load_program(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save(Backbone().state_dict(), tmp_path / "state.pt")
    for name, reason in (("text.pt", "not a program of torch"), ("state.pt", "weights or data")):
        with pytest.raises(ValueError, match=rf"cannot load .*{name}: .*{reason}.*torch.jit.save"):
            load_program(tmp_path / name)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "images"
    for n, (name, size) in enumerate([("b", (30, 20)), ("a", (20, 33)), ("a", (16, 16))]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{n}.png")
    (folder / "a" / "notes.txt").write_text("no image")
    return folder


SMALL = ["--resize", "16", "--crop", "9"]


def run(*arguments):
    return cli.main(list(map(str, arguments)))


def test_images_are_prepared_as_torchvision_does(images):
    data = ImageFolder(images, 2, resize=16, crop=12, mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3])
    (first, labels), (second, _) = data
    assert [path.name for path in data.files] == ["1.png", "2.png", "0.png"]
    assert data.classes == ["a", "b"]
    assert labels.tolist() == [0, 0]
    # The second has the right size already: cut out, scaled to [0, 1], normalised.
    with Image.open(images / "a" / "2.png") as image:
        pixels = np.asarray(image)[2:14, 2:14] / 255
    expected = ((pixels - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3]).transpose(2, 0, 1)
    np.testing.assert_allclose(first[1], expected, rtol=1e-5, atol=1e-5)
    # The others are scaled so that the shorter side has 16 pixels, and cut in the middle.
    with Image.open(images / "b" / "0.png") as image:
        scaled = image.resize((16, 24), Image.Resampling.BILINEAR)
    pixels = np.asarray(scaled)[6:18, 2:14] / 255
    expected = ((pixels - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3]).transpose(2, 0, 1)
    np.testing.assert_allclose(second[0], expected, rtol=1e-5, atol=1e-5)


def test_grey_images_and_a_flat_folder(images):
    data = ImageFolder(images / "a", 8, resize=16, crop=12, mean=[0.0], std=[1.0])
    (batch,) = data
    assert batch.shape == (2, 1, 12, 12)
    assert 0 <= batch.min() < batch.max() <= 1


def test_the_command_from_images_to_a_detector(images, inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = made(Backbone)
    save_exported(model, "model.pt2", inputs)
    code = run("extract", "model.pt2", images, "-o", "x.npy", "--head-output", "h.npz", *SMALL)
    assert (code, *capsys.readouterr()) == (
        0,
        "",
        "extracted 3 rows of 8 features, the inputs of layer 'fc' with 5 classes; wrote x.npy\n",
    )
    head = LinearHead.from_file("h.npz")
    np.testing.assert_array_equal(head.weight, model.fc.weight.detach())
    assert list(np.load("x.labels.npy")) == [0, 0, 1]
    means, deviations = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    (batch,) = ImageFolder(images, 3, resize=16, crop=9, mean=means, std=deviations)
    expected = extract_features(model, [batch]).features
    np.testing.assert_allclose(np.load("x.npy"), expected, rtol=1e-5, atol=1e-6)
    assert run("fit", "x.npy", "--head", "h.npz", "-o", "d.safetensors") == 0


def test_the_command_from_an_array(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = made(Backbone)
    save_script(model, "model.pt", inputs)
    np.savez("inputs.npz", images=inputs.double().numpy(), other=np.ones(3))
    code = run(
        *("extract", "model.pt", "inputs.npz", "--key", "images", "-o", "x.h5", "--json"),
        *("--batch-size", 3, "--dtype", "float16", "--layer", "fc"),
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (told["rows"], told["features"], told["layer"], told["head"]) == (7, 8, "fc", None)
    expected = extract_features(model, inputs).features
    assert open_features("x.h5").dtype == np.float16
    np.testing.assert_allclose(np.asarray(open_features("x.h5")), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("model.pt", "none.npy", "-o", "x.npy"), "none.npy"),
        (("none.pt", "images", "-o", "x.npy"), "no such file: none.pt"),
        (("model.pt", "images", "-o", "images/x.npy"), "lies in the folder images"),
        (("model.pt", "images", "-o", "x.npy", "--layer", "f"), "candidates: fc"),
        (("model.pt", "empty", "-o", "x.npy"), "empty does not hold an image"),
        (("model.pt", "broken", "-o", "x.npy"), "cannot read the image broken/a.png"),
        (("model.pt", "images", "-o", "x.npy", "--resize", "8"), "at least the 224 pixels"),
        (("model.pt", "images", "-o", "x.npy", "--mean", "0.5"), "mean has 1 and std 3"),
        (
            ("model.pt", "images", "-o", "x.npy", "--device", "cuda:99"),
            "device is 'cuda:99', but torch finds",
        ),
        (
            ("model.pt", "images", "-o", "x.npz", "--head-output", "./x.npz"),
            "--output and --head-output both name x.npz",
        ),
        (("model.pt", "images", "-o", "x.npy", "--std", "1", "nan", "1"), "numbers, and std above"),
        (("model.pt", "wide", "-o", "x.npy"), "mode I;16 has more than 8 bits"),
        (("model.pt", "flat.npy", "-o", "x.npy"), "the program does not accept these inputs: "),
        (("model.pt", "nan.npy", "-o", "x.npy"), "are not finite: look for NaN"),
    ],
)
def test_what_cannot_be_extracted_is_said_in_one_line(
    arguments, reason, images, inputs, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_script(made(Backbone), "model.pt", inputs)
    (tmp_path / "empty").mkdir()
    (tmp_path / "wide").mkdir()
    Image.fromarray(np.full((300, 300), 40_000, np.uint16)).save(tmp_path / "wide" / "a.png")
    np.save("flat.npy", np.ones((4, 5)))
    np.save("nan.npy", np.full((4, 3, 9, 9), np.nan))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG no image")
    assert run("extract", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("skdice: ")
    assert reason in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x.npy").exists()


def test_hidden_files_and_empty_classes(images):
    for hidden in (".ipynb_checkpoints/1.png", "a/._1.png"):
        (images / hidden).parent.mkdir(exist_ok=True)
        (images / hidden).write_bytes(b"no image")
    (images / "aa").mkdir()
    data = ImageFolder(images, 8, resize=16, crop=12, mean=[0.0], std=[1.0])
    assert data.classes == ["a", "aa", "b"]
    ((_, labels),) = data
    assert labels.tolist() == [0, 0, 2]
    (images / "b" / "0.png").rename(images / "0.png")
    with pytest.warns(UserWarning, match="do not all lie one folder down: no labels"):
        data = ImageFolder(images, 8, resize=16, crop=12, mean=[0.0], std=[1.0])
    assert data.classes is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_programs_of_other_precisions_take_any_floats(dtype, inputs, tmp_path):
    model = made(Backbone).to(dtype)
    save_script(model, tmp_path / "model.pt", inputs.to(dtype))
    found = extract_features(load_program(tmp_path / "model.pt"), inputs)
    expected = extract_features(model, inputs.to(dtype))
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)


def test_token_ids_of_any_width(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 3)).eval()
    ids = np.arange(40).reshape(8, 5)
    torch.jit.save(torch.jit.script(model), "text.pt")
    expected = extract_features(model, torch.from_numpy(ids)).features
    for dtype in ("uint16", "int32", ">i8"):
        np.save("ids.npy", ids.astype(dtype))
        assert run("extract", "text.pt", "ids.npy", "-o", "x.npy", "--quiet") == 0
        np.testing.assert_allclose(np.load("x.npy"), expected, rtol=1e-6)


def test_labels_of_a_former_extraction_go_with_it(images, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_script(made(Backbone), "model.pt", inputs)
    assert run("extract", "model.pt", images, "-o", "x.npy", *SMALL) == 0
    assert (tmp_path / "x.labels.npy").exists()
    assert run("extract", "model.pt", images / "a", "-o", "x.npy", *SMALL) == 0
    assert not (tmp_path / "x.labels.npy").exists()


def test_a_named_layer_is_compared_with_the_output(inputs, tmp_path):
    save_script(made(NotTheEnd), tmp_path / "model.pt", inputs)
    with pytest.raises(ValueError, match=r"the layer 'fc' give logits that are \d+ % off"):
        extract_features(load_program(tmp_path / "model.pt", layer="fc"), inputs)


IN_MEMORY = {
    "script": lambda model, inputs: torch.jit.script(model),
    "frozen": lambda model, inputs: torch.jit.freeze(torch.jit.script(model)),
    "trace": lambda model, inputs: torch.jit.trace(model, inputs, strict=False),
    "export": lambda model, inputs: torch.export.export(
        model, (inputs,), dynamic_shapes=({0: torch.export.Dim("n")},)
    ),
}


@pytest.mark.parametrize(
    ("make", "layer"),
    [(make, None) for make in IN_MEMORY] + [("script", "fc"), ("trace", "fc"), ("export", "fc")],
)
def test_a_program_in_memory_needs_no_file(make, layer, inputs):
    model = made(Backbone)
    program = IN_MEMORY[make](model, inputs)
    state = program.state_dict if make == "export" else program.state_dict()
    before = {name: each.clone() for name, each in state.items()}
    found = extract_features(program, [inputs[:4], inputs[4:]], layer=layer)
    expected = extract_features(model, [inputs[:4], inputs[4:]])
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)
    assert found.head == expected.head
    if make != "frozen":  # Freezing drops the names of layers.
        assert found.layer == "fc"
    for name, each in state.items():
        assert torch.equal(each, before[name])


def test_a_script_in_training_mode_is_left_in_it(inputs):
    program = torch.jit.script(made(Backbone).train())
    found = extract_features(program, inputs)
    expected = extract_features(made(Backbone), inputs)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)
    assert program.training
    assert program.drop.training


def test_a_program_of_several_inputs():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.fc = nn.Embedding(9, 6), nn.Linear(6, 3)

        def forward(self, ids, mask):
            return self.fc((self.embedding(ids) * mask.unsqueeze(2)).mean(1))

    torch.manual_seed(0)
    model, batch = Masked().eval(), {"ids": torch.arange(8).view(2, 4), "mask": torch.ones(2, 4)}
    found = extract_features(torch.jit.script(model), [batch])
    np.testing.assert_allclose(found.features, extract_features(model, [batch]).features)


def test_the_graph_of_a_program_is_refused_with_what_to_give(inputs):
    graph = torch.export.export(made(Backbone), (inputs,)).module()
    with pytest.raises(ValueError, match="give the ExportedProgram itself"):
        extract_features(graph, inputs)


def test_an_exported_program_goes_to_the_cpu_wherever_it_was_saved(inputs, tmp_path, monkeypatch):
    save_exported(made(Backbone).to("meta"), tmp_path / "model.pt2", inputs.to("meta"))

    def move(program, device):  # what lies on meta has no values that could be moved
        moved.append(device)
        return program

    moved = []
    monkeypatch.setattr(_program, "move_to_device_pass", move)
    load_program(tmp_path / "model.pt2", layer="fc")
    assert moved == [torch.device("cpu")]


def test_a_saved_program_cannot_be_attached_to(tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Backbone().eval(), (torch.rand(2, 3, 8, 8),)), path)
    program = load_program(path)
    extraction = extract_features(program, torch.rand(2, 3, 8, 8))
    detector = DICEDetector(extraction.head).fit(extraction.features)
    for model in (program, torch.export.load(path)):
        with pytest.raises(TypeError, match=r"model is a \w+, expected the classifier"):
            attach(model, detector)
