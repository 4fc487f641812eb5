"""The blocks of the documentation that need what is not installed, run with stand-ins for it."""

import functools
import json
import pickle
import shlex
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from test_docs import PAGES, indented_blocks

import skdice
from skdice import DICEDetector, FeatureStatistics
from skdice.cli import main
from skdice.io import open_features, save_features

pd = pytest.importorskip("pandas")
torch = pytest.importorskip("torch")


def block_with(page: str, text: str) -> str:
    (block,) = [
        each
        for each in indented_blocks(PAGES[page], r"(?:\.\. code-block:: \w+|.*::)")
        if text in each
    ]
    return block


@pytest.fixture
def engine(small):
    """What a recipe of the page on Dask finds, and the detector that it is to arrive at."""
    head, X = small
    names = {
        "DICEDetector": DICEDetector,
        "FeatureStatistics": FeatureStatistics,
        "functools": functools,
        "head": head,
        "np": np,
        "pd": pd,
        "pickle": pickle,
    }
    return names, X, DICEDetector(head).partial_fit(X)


def assert_same_fit(detector, expected):
    np.testing.assert_allclose(
        detector.mean_activation_, expected.mean_activation_, rtol=1e-12, atol=0
    )
    np.testing.assert_array_equal(detector.mask_, expected.mask_)


class RayData:
    def __init__(self, batches):
        self.batches = batches

    def map_batches(self, function, batch_format):
        assert batch_format == "numpy"
        return RayData([function(each) for each in self.batches])

    def iter_rows(self):
        for batch in self.batches:
            for n in range(len(next(iter(batch.values())))):
                yield {name: column[n] for name, column in batch.items()}


def test_the_recipe_for_ray(engine):
    names, X, expected = engine
    names["rows"] = RayData([{"features": X[i : i + 30]} for i in range(0, len(X), 30)])
    names["ray"] = SimpleNamespace(put=pickle.dumps, get=pickle.loads)
    exec(block_with("docs/user_guide/dask.rst", "map_batches"), names)
    assert_same_fit(names["detector"], expected)
    scores = np.concatenate([each["score"] for each in names["scores"].batches])
    np.testing.assert_allclose(scores, expected.score_samples(X), rtol=1e-12)


class SparkFrame:
    def __init__(self, partitions):
        self.partitions = partitions

    def select(self, *columns):
        return SparkFrame([each[list(columns)] for each in self.partitions])

    def mapInPandas(self, function, schema):  # noqa: N802, the name of Spark
        assert schema == "statistics binary"
        return SparkFrame([pd.concat(function(iter([each[:0], each]))) for each in self.partitions])

    def toLocalIterator(self):  # noqa: N802, the name of Spark
        for each in self.partitions:
            yield from each.itertuples()


def test_the_recipe_for_spark(engine):
    names, X, expected = engine
    frames = [pd.DataFrame({"features": list(X[i : i + 70])}) for i in range(0, len(X), 70)]
    names["rows"] = SparkFrame(frames)
    broadcast = lambda value: SimpleNamespace(value=pickle.loads(pickle.dumps(value)))  # noqa: E731
    names["spark"] = SimpleNamespace(sparkContext=SimpleNamespace(broadcast=broadcast))
    names["pandas_udf"] = lambda kind: lambda function: function
    exec(block_with("docs/user_guide/dask.rst", "mapInPandas"), names)
    assert_same_fit(names["detector"], expected)
    scores = np.concatenate([names["score"](each["features"]) for each in frames])
    np.testing.assert_allclose(scores, expected.score_samples(X), rtol=1e-12)


def test_the_recipe_for_mpi(engine):
    names, X, expected = engine
    names["my_rows"] = X[:90]
    others = [FeatureStatistics(), FeatureStatistics().add(X[90:])]
    names["comm"] = SimpleNamespace(allgather=lambda mine: [mine, *others])
    exec(block_with("docs/user_guide/dask.rst", "allgather"), names)
    assert_same_fit(names["detector"], expected)


def test_the_block_for_timm(tmp_path, monkeypatch):
    def create_model(name, pretrained):
        assert pretrained
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    monkeypatch.chdir(tmp_path)
    names = {"loader": [torch.rand(4, 3, 2, 2) for _ in range(3)]}
    exec(block_with("docs/user_guide/features_and_heads.rst", "import timm"), names)
    assert names["extraction"].features.shape == (12, 12)
    assert open_features(tmp_path / "train.npy").dtype == np.float16


@pytest.mark.parametrize("text", ["TfidfVectorizer", "sentence_transformers"])
def test_the_blocks_for_texts(text, monkeypatch):
    rng = np.random.default_rng(0)
    words = [f"{stem}{n}" for stem in ("sea", "sky") for n in range(80)]
    labels = np.repeat(["sea", "sky"], 100)
    texts = [" ".join(rng.choice(words[80 * (label == "sky") :][:80], 12)) for label in labels]

    class SentenceTransformer:
        def __init__(self, name):
            assert name == "all-MiniLM-L6-v2"

        def encode(self, sentences):
            return np.array(
                [[word in each.split() for word in words[::4]] for each in sentences], float
            )

    module = SimpleNamespace(SentenceTransformer=SentenceTransformer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    names = {"texts": texts, "labels": labels}
    exec(block_with("docs/user_guide/embeddings.rst", text), names)
    predicted = names["model"].predict(texts)
    assert (predicted == labels).mean() > 0.8


@pytest.fixture
def readme_files(tmp_path, monkeypatch):
    """The files that the commands of the README start from."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for n in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "images" / "train" / name / f"{n}.png")
    model = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(48, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 2),
    ).eval()
    any_number = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.rand(2, 3, 224, 224),), dynamic_shapes=any_number)
    torch.export.save(program, tmp_path / "resnet50.pt2")
    for name in ("heldout.npy", "new.npy", "test.npy", "textures.npy", "svhn.h5"):
        save_features(tmp_path / name, rng.random((50, 16), dtype=np.float32))
    return tmp_path


def test_the_commands_of_the_readme(readme_files, capsys):
    (block,) = [each for each in indented_blocks(PAGES["README.rst"], "::") if "extract" in each]
    commands = [shlex.split(line.split(" | ")[0]) for line in block.splitlines() if line.strip()]
    names = ["extract", "fit", "calibrate", "score", "monitor", "evaluate", "report"]
    assert [each[1] for each in commands] == names
    for command in commands:
        assert command[0] == "skdice"
        assert main(command[1:]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "textures" in shown
    assert "svhn" in shown


# Modules that the service of the page on deployment may not need.
BLOCK_IMPORTS = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"skdice", "sklearn", "scipy", "torch", "onnx"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["service.py", "detector.onnx", sys.argv[1]]
runpy.run_path("service.py", run_name="__main__")
"""


def ask(port, rows):
    """Return the status and the answer of the service; wait for its start."""
    request = Request(f"http://127.0.0.1:{port}", json.dumps(rows).encode())
    for _ in range(300):
        try:
            with urlopen(request) as reply:
                return reply.status, json.load(reply)
        except HTTPError as error:
            return error.code, json.load(error)
        except URLError:
            time.sleep(0.1)
    raise AssertionError("the service did not start")


def test_the_service_needs_only_onnxruntime_and_numpy(fashion, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    detector = DICEDetector(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:2000], method="conformal").to_onnx(
        tmp_path / "detector.onnx"
    )
    block = block_with("docs/user_guide/deployment.rst", "ThreadingHTTPServer")
    (tmp_path / "service.py").write_text(block)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", BLOCK_IMPORTS, str(port)]
    service = subprocess.Popen(command, cwd=tmp_path)
    try:
        rows = np.concatenate([fashion.id_test[2000:2020], fashion.ood["mnist"][:20]])
        status, answers = ask(port, rows.tolist())
        assert status == 200
        expected = detector.predict(rows.astype(np.float32)) == -1
        assert [each["is_ood"] for each in answers] == expected.tolist()
        pvalues = detector.pvalues(rows.astype(np.float32))
        np.testing.assert_allclose([each["pvalue"] for each in answers], pvalues, atol=1e-3)
        bad = rows[:2].tolist()
        bad[1][5] = float("nan")
        assert [each["is_ood"] for each in ask(port, bad)[1]] == [expected[0], True]
        assert ask(port, [[1.0, 2.0]]) == (
            400,
            {"error": "got an array of shape (1, 2), expected (n, 128)"},
        )
    finally:
        service.terminate()
        service.wait()


@pytest.fixture
def tools(fashion, tmp_path, monkeypatch):
    """Return the names that the recipes of the page on other tools start from."""
    monkeypatch.chdir(tmp_path)
    detector = skdice.make_ensemble(fashion.head).fit(fashion.id_train)
    detector.calibrate(fashion.id_test[:1500], method="conformal")
    return {"np": np, "skdice": skdice, "data": fashion, "detector": detector}


def other_tools(text, names):
    exec(block_with("docs/user_guide/other_tools.rst", text), names)
    return names


def test_the_recipes_for_mlflow(tools, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    skops_io = pytest.importorskip("skops.io")
    kept = {}

    def log_onnx(model, name):
        kept[name] = model.SerializeToString()
        return SimpleNamespace(model_uri=name)

    def load_onnx(uri):
        session = onnxruntime.InferenceSession(kept[uri])
        names = [output.name for output in session.get_outputs()]
        predict = lambda X: dict(zip(names, session.run(None, {"features": X}), strict=True))  # noqa: E731
        return SimpleNamespace(predict=predict)

    def log_sklearn(model, name, skops_trusted_types):
        kept[name] = skops_io.dumps(model), skops_trusted_types
        return SimpleNamespace(model_uri=name)

    mlflow = SimpleNamespace(
        start_run=nullcontext,
        log_params=kept.update,
        onnx=SimpleNamespace(log_model=log_onnx),
        pyfunc=SimpleNamespace(load_model=load_onnx),
        sklearn=SimpleNamespace(
            log_model=log_sklearn,
            load_model=lambda uri: skops_io.loads(kept[uri][0], trusted=kept[uri][1]),
        ),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    digits = tools["data"].ood["mnist"].astype(np.float32)
    expected = tools["detector"].predict(digits)
    answer = other_tools("mlflow.onnx", tools)["answer"]
    assert kept["contamination"] == 0.05
    assert (answer["is_ood"] == (expected == -1)).mean() > 0.999
    loaded = other_tools("mlflow.sklearn", tools)["loaded"]
    np.testing.assert_array_equal(loaded.predict(digits), expected)


def test_the_recipes_for_bentoml(tools, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    stored = SimpleNamespace(path_of=lambda name: str(tmp_path / name))
    bentoml = SimpleNamespace(
        models=SimpleNamespace(create=lambda name: nullcontext(stored), get=lambda tag: stored),
        service=lambda cls: cls,
        api=lambda method: method,
    )
    monkeypatch.setitem(sys.modules, "bentoml", bentoml)
    other_tools("models.create", tools)
    service = other_tools("@bentoml.service", dict(tools))["Detector"]()
    answer = service.decide(tools["data"].ood["mnist"][:3])
    assert answer["is_ood"] == [True, True, True]
    assert len(answer["pvalue"]) == 3


def test_the_recipe_for_optuna(tools, monkeypatch):
    class Trial:
        def __init__(self, given):
            self.given = given

        def suggest_float(self, name, low, high):
            return self.given.get(name, (low + high) / 2)

        def suggest_categorical(self, name, choices):
            return self.given.get(name, choices[-1])

    class Study:
        def __init__(self):
            self.given = []

        def enqueue_trial(self, parameters):
            self.given.append(parameters)

        def optimize(self, objective, n_trials):
            assert n_trials == 50
            self.values = [objective(Trial(each)) for each in [*self.given, {}]]

    optuna = SimpleNamespace(create_study=lambda direction: Study())
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    values = other_tools("import optuna", tools)["study"].values
    assert [round(each, 2) for each in values] == [0.92, 0.9]


def test_the_recipe_for_nonconform(tools, monkeypatch):
    class ConformalDetector:
        def __init__(self, detector, strategy, score_polarity):
            assert score_polarity == "higher_is_normal"
            self.detector, self.split = detector, strategy

        def fit(self, X):
            self.detector.fit(X[::2]).calibrate(X[1::2], method="conformal")

        def compute_p_values(self, X):
            return self.detector.pvalues(X)

        def select(self, X, alpha):
            return false_discovery_control(self.compute_p_values(X)) <= alpha

    nonconform = SimpleNamespace(ConformalDetector=ConformalDetector, Split=dict)
    monkeypatch.setitem(sys.modules, "nonconform", nonconform)
    names = other_tools("import ConformalDetector", tools)
    # The shares that the page states.
    assert 0.06 < (names["pvalues"][:1000] <= 0.05).mean() < 0.1
    assert (names["pvalues"][1000:] <= 0.05).mean() > 0.9
    assert names["is_ood"][1000:].mean() > 0.5


def test_the_recipe_for_river(tools, monkeypatch):
    class Adwin:
        """Finds a mean of the last 35 numbers that is far below that of all."""

        def __init__(self):
            self.seen = []

        def update(self, number):
            self.seen.append(number)

        @property
        def drift_detected(self):
            return len(self.seen) > 500 and np.mean(self.seen[-35:]) < np.mean(self.seen) - 1

    monkeypatch.setitem(sys.modules, "river", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "river.drift", SimpleNamespace(ADWIN=Adwin))
    changes = other_tools("import ADWIN", tools)["changes"]
    assert 1500 < changes[0] < 1600
