"""The blocks of the documentation that need what is not installed, run with stand-ins for it."""

import functools
import pickle
import shlex
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_docs import PAGES, indented_blocks

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
    assert [each[1] for each in commands] == ["extract", "fit", "calibrate", "score", "evaluate"]
    for command in commands:
        assert command[0] == "skdice"
        assert main(command[1:]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "textures" in shown
    assert "svhn" in shown
