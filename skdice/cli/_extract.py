"""``skdice extract`` takes features and head from a saved classifier and its inputs."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from skdice.cli._files import file_name_in_errors, open_rows, print_result, refuse_overwriting
from skdice.extraction import extract_features, load_program
from skdice.extraction._images import ImageFolder, image_files
from skdice.io._head_files import write_weight_and_bias
from skdice.io._open import is_shard


def extract(arguments: Namespace) -> None:
    """Extract features from images or an array with a saved program."""
    outputs = [arguments.output]
    if arguments.head_output is not None:
        outputs.append(arguments.head_output)
        if arguments.head_output.resolve() == arguments.output.resolve():
            raise ValueError(f"--output and --head-output both name {arguments.output}")
    for output in outputs:
        refuse_overwriting(output, arguments.model, arguments.data)
    model = load_program(arguments.model, layer=arguments.layer, device=arguments.device)
    folder = Path(arguments.data)
    # An exported program may take batches of one size only.
    batch_size = model.batch_rows or arguments.batch_size
    classes = None
    data: Any
    if folder.is_dir() and folder.suffix != ".zarr" and not holds_shards(folder):
        data = ImageFolder(
            folder,
            batch_size,
            resize=arguments.resize,
            crop=arguments.crop,
            mean=arguments.mean,
            std=arguments.std,
        )
        classes = data.classes
    else:
        from skdice.extraction._data import Slices

        rows = open_rows(arguments.data, arguments.key)
        data = Slices(rows.shape[0], batch_size, lambda batch: np.asarray(rows[batch]))
    with file_name_in_errors(arguments.data), one_line_program_errors():
        extraction = extract_features(
            model,
            data,
            out=arguments.output,
            dtype=arguments.dtype,
            verbose=arguments.verbose,
        )
    if arguments.head_output is not None:
        head = extraction.head
        write_weight_and_bias(arguments.head_output, head.weight, head.bias)
    print_result(
        arguments,
        {
            "output": str(arguments.output),
            "rows": extraction.features.shape[0],
            "features": extraction.head.n_features,
            "classes": extraction.head.n_classes,
            "layer": model.layer_name,
            "head": None if arguments.head_output is None else str(arguments.head_output),
            "labels": classes,
        },
        "extracted {rows:,} rows of {features:,} features, the inputs of layer {layer!r} with "
        "{classes:,} classes; wrote {output}",
    )


def holds_shards(folder: Path) -> bool:
    """Return whether a folder holds feature files and no images."""
    return not image_files(folder) and any(is_shard(path) for path in folder.iterdir())


@contextmanager
def one_line_program_errors() -> Iterator[None]:
    """Replace the long traceback that a program raises for wrong inputs by its reason."""
    try:
        yield
    except (RuntimeError, IndexError, AssertionError) as error:
        # TorchScript ends its message with the reason, other programs start with it.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1 if "TorchScript" in str(error) else 0] if lines else type(error).__name__
        raise ValueError(f"the program does not accept these inputs: {reason}") from error
