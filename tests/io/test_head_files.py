import pickle
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from skdice import LinearHead

W = np.arange(6.0, dtype=np.float32).reshape(2, 3)
B = np.array([0.5, -0.5], np.float32)
HEAD = LinearHead(W, B)
STATE = {"weight": W, "bias": B}


def tensors_of(arrays):
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(each.copy()) for name, each in arrays.items()}


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        pytest.importorskip("torch").save(tensors_of(arrays), path)
    return path


@pytest.fixture(params=[".npz", ".safetensors", ".pt", ".pth", ".bin"])
def path(request, tmp_path):
    if request.param not in (".npz", ".safetensors"):
        pytest.importorskip("torch")
    return tmp_path / f"head{request.param}"


def test_bare_names(path):
    assert LinearHead.from_file(write(path, STATE)) == HEAD
    assert LinearHead.from_file(str(path)) == HEAD


def test_layer(path):
    write(path, {f"net.fc.{name}": each for name, each in STATE.items()})
    assert LinearHead.from_file(path, layer="net.fc") == HEAD


def test_without_bias(path):
    assert LinearHead.from_file(write(path, {"weight": W})) == LinearHead(W)


def test_convolution(path):
    kernel = W[..., None, None].copy()
    assert LinearHead.from_file(write(path, {"weight": kernel})) == LinearHead(W)


def test_wrong_layer_lists_the_layers(path):
    write(path, {"fc.weight": W, "conv.weight": W})
    for layer in (None, "head"):
        with pytest.raises(ValueError, match=r"layers in the file: conv, fc\. Name one with layer"):
            LinearHead.from_file(path, layer=layer)


def test_a_layer_of_another_shape_is_refused(path):
    write(path, {"weight": np.zeros((2, 3, 3, 3))})
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3, 3, 3\)"):
        LinearHead.from_file(path)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut"])
def test_damaged_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        LinearHead.from_file(path)


def test_truncated_files_are_refused(path):
    write(path, STATE)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=path.name):
        LinearHead.from_file(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bfloat16(tmp_path, suffix):
    torch, path = pytest.importorskip("torch"), tmp_path / f"head{suffix}"
    state = {name: each.to(torch.bfloat16) for name, each in tensors_of(STATE).items()}
    if suffix == ".pt":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    assert LinearHead.from_file(path) == HEAD


def test_the_layer_that_can_be_meant_is_named(tmp_path):
    torch, path = pytest.importorskip("torch"), tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {f"module.fc.{k}": v for k, v in tensors_of(STATE).items()}}, path)
    with pytest.raises(ValueError, match=r"did you mean layer='state_dict\.module\.fc'\?"):
        LinearHead.from_file(path, layer="fc")


def test_nested_checkpoint(tmp_path):
    torch, path = pytest.importorskip("torch"), tmp_path / "checkpoint.pth"
    nested = {"epoch": 3, "state_dict": {f"module.fc.{k}": v for k, v in tensors_of(STATE).items()}}
    torch.save(nested, path)
    assert LinearHead.from_file(path, layer="state_dict.module.fc") == HEAD


def test_legacy_torch_format(tmp_path):
    torch, path = pytest.importorskip("torch"), tmp_path / "old.pth"
    torch.save(tensors_of(STATE), path, _use_new_zipfile_serialization=False)
    assert LinearHead.from_file(path) == HEAD


class Payload:
    def __reduce__(self):
        return (open, (str(Payload.mark), "w"))


@pytest.mark.parametrize("name", ["evil.pt", "evil.npz", "evil.npy.npz"])
def test_no_code_runs(tmp_path, name):
    Payload.mark = tmp_path / "mark"
    path = tmp_path / name
    if name == "evil.pt":
        pytest.importorskip("torch").save({"weight": Payload()}, path)
    elif name == "evil.npz":
        np.savez(path, weight=np.array([[Payload()]], dtype=object))
    else:
        path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="evil"):
        LinearHead.from_file(path)
    assert not Payload.mark.exists()


def test_a_whole_model_is_refused_with_advice(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        LinearHead.from_file(tmp_path / "model.pt")


def test_unknown_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"head.onnx: expected an ending of .npy, .npz"):
        LinearHead.from_file(tmp_path / "head.onnx")
    with pytest.raises(FileNotFoundError, match=r"head\.npz"):
        LinearHead.from_file(tmp_path / "head.npz")
    np.save(tmp_path / "one.npy", W)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ValueError, match=r"one\.npz: File is not a zip file"):
        LinearHead.from_file(tmp_path / "one.npz")


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "head.pt"
    path.touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'skdice\[torch\]'"):
        LinearHead.from_file(path)


def test_the_layer_is_given_by_its_name_only(tmp_path):
    path = write(tmp_path / "h.npz", {"fc.weight": W})
    with pytest.raises(TypeError, match="positional"):
        LinearHead.from_file(path, "fc")
    with pytest.raises(TypeError, match="prefix"):
        LinearHead.from_file(path, prefix="fc")
