"""
From a torch model to a service
===============================

Extract the features, fit, calibrate, and attach the detector to the model: one module that gives
logits and a score in one pass.

The model is a small network trained here on the digits 0 to 7; what it does not know are 8 and 9,
and noise.
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
# The classification layer is found by itself: the one whose output is the model's. A tensor is cut
# into batches; a DataLoader goes in as it is.
extraction = extract_features(model, train)
print(extraction.layer, extraction.head)

# %%
# Without known outliers, prune nothing: that is the energy score. Half of the held-out rows set
# the threshold, with a guarantee.
detector = DICEDetector(extraction.head, sparsity=0).fit(extraction.features)
detector.calibrate(extract_features(model, heldout[::2]).features, method="conformal")

# %%
# The attached module takes what the model takes. It is a torch module like any other: save it, or
# export it to ONNX.
service = attach(model, detector)
with torch.no_grad():
    for name, batch in {
        "held-out digits 0 to 7": heldout[1::2],
        "digits 8 and 9": unknown,
        "noise": torch.rand(200, 1, 8, 8),
    }.items():
        logits, score = service(batch)
        print(f"{name:<23} {(score < detector.offset_).float().mean():6.1%} flagged")

# %%
# What the service answers. The digits 8 and 9 are close to those it knows, and many pass.
shown = torch.cat([heldout[1:12:2], unknown[:6]])
with torch.no_grad():
    logits, score = service(shown)
figure, axes = plt.subplots(2, 6, figsize=(8, 3.4), layout="constrained")
for ax, image, guess, value in zip(axes.flat, shown, logits.argmax(1), score, strict=True):
    ax.imshow(image[0], cmap="binary")
    is_ood = float(value) < detector.offset_
    ax.set_title("unknown" if is_ood else f"a {guess}", color="C3" if is_ood else "black")
    ax.set_axis_off()
