"""
From a torch model to a service
===============================

This example extracts the features, fits and calibrates a detector, and attaches the detector to the
model. The result is one module that returns logits and scores in one pass.

The model is a small network that the example trains on the digits 0 to 7. The digits 8 and 9, and
noise, are out-of-distribution for it.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from skdice import DICEDetector
from skdice.extraction import attach, extract_features

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
labels = torch.tensor(labels)
known, unknown = images[labels < 8], images[labels >= 8]
classes = labels[labels < 8]
train, heldout = known[:900], known[900:]

model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(256, 64),
    nn.ReLU(),
    nn.Linear(64, 8),
)
optimizer = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(50):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(train), classes[:900])
    loss.backward()
    optimizer.step()
accuracy = (model(heldout).argmax(1) == classes[900:]).float().mean().item()
print(f"accuracy on held-out images {accuracy:.1%}")

# %%
# `extract_features` finds the classification layer: its output is the output of the model. A tensor
# is cut into batches. A DataLoader may be given in its place.
extraction = extract_features(model, train)
print(extraction.layer, extraction.head)

# %%
# On small networks pruning often hurts, so without known outliers this example prunes nothing,
# which gives the energy score. Half of the held-out rows set the threshold, with a guarantee.
detector = DICEDetector(extraction.head, sparsity=0).fit(extraction.features)
detector.calibrate(extract_features(model, heldout[::2]).features, method="conformal")

# %%
# The attached module takes the inputs of the model. It is a torch module, so you can save it or
# export it to ONNX.
service = attach(model, detector)
with torch.no_grad():
    for name, batch in {
        "held-out digits 0 to 7": heldout[1::2],
        "digits 8 and 9": unknown,
        "noise": torch.rand(200, 1, 8, 8),
    }.items():
        logits, score = service(batch)
        print(f"{name:<23} {(~(score >= detector.offset_)).float().mean():6.1%} flagged")

# %%
# The plot shows the answers of the service. The digits 8 and 9 resemble the known digits, and many
# of them pass.
shown = torch.cat([heldout[1:12:2], unknown[:6]])
with torch.no_grad():
    logits, score = service(shown)
figure, axes = plt.subplots(2, 6, figsize=(8, 3.4), layout="constrained")
for ax, image, guess, value in zip(axes.flat, shown, logits.argmax(1), score, strict=True):
    ax.imshow(image[0], cmap="binary")
    is_ood = not float(value) >= detector.offset_  # a NaN score counts as OOD
    ax.set_title("unknown" if is_ood else f"a {guess}", color="C3" if is_ood else "black")
    ax.set_axis_off()
