"""A module exported to ONNX, and run there."""

import pytest

# pytest collects this file, too, for doctests.
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")


def onnx_run(module, example, batch, folder):
    """Export with a free number of rows, and run another batch in ONNX Runtime."""
    path = folder / "module.onnx"
    torch.onnx.export(
        module,
        (example,),
        path,
        input_names=["x"],
        dynamo=True,
        verbose=False,
        dynamic_shapes=(({0: torch.export.Dim("n", min=2)},),)
        if type(module).__name__ == "AttachedModule"
        else ({0: torch.export.Dim("n", min=2)},),
    )
    return onnxruntime.InferenceSession(path).run(None, {"x": batch})
