"""The devices that the parameter `device` of a detector names."""

from typing import Any

from skdice._compat.extras import import_extra

DEVICES = {"auto", "cpu", "cuda", "cuda:1", "mps"}
# This regular expression matches the name of any CUDA device.
CUDA_DEVICE = r"cuda:\d{1,3}"


def torch_device(name: str) -> Any:
    """Return the torch.device of a name; None for the CPU.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "cuda:N", "mps"}
        ``"auto"`` is a CUDA device if there is one, else MPS, else the CPU, also where
        torch is not installed.

    Raises
    ------
    ImportError
        torch is not installed.
    ValueError
        There is no such device.
    """
    if name == "cpu":
        return None
    try:
        torch = import_extra("torch", "torch")
    except ImportError:
        if name == "auto":
            return None
        raise
    n_cuda, has_mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if n_cuda else "mps" if has_mps else "cpu"
        if name == "cpu":
            return None
    device = torch.device(name)
    if device.type == "mps" and has_mps:
        return device
    if device.type == "cuda" and (device.index or 0) < n_cuda:
        return torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
    available = [f"cuda:{n}" for n in range(n_cuda)] + ["mps"] * has_mps
    raise ValueError(
        f"device is {name!r}, but torch finds {' and '.join(available) or 'no GPU'} here; "
        "device='cpu' computes without one"
    )
