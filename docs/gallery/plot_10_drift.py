"""
Watching a stream for drift
===========================

A detector also flags some good rows, 5 % of them in this example. One flag therefore says little. A
`FlagMonitor` says when there are more flags than good rows explain, with a stated probability of a
false alarm, however often you look.
"""

import matplotlib.pyplot as plt
import numpy as np

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.monitoring import FlagMonitor, batch_test
from skdice.plotting import BatchTestDisplay, MonitorDisplay

data = load_fashion_mnist_ood()
detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
detector.calibrate(data.id_test[:1500], method="conformal")

# %%
# A stream of 6,000 rows. From row 3,000 on, a growing share of them are textures.
rng = np.random.default_rng(0)
n_rows, starts_at = 6000, 3000
share = np.clip((np.arange(n_rows) - starts_at) / starts_at, 0, 1) * 0.4
is_other = rng.random(n_rows) < share
stream = data.id_test[1500:][rng.integers(0, 1500, n_rows)]
textures = data.ood["textures"]
stream[is_other] = textures[rng.integers(0, len(textures), is_other.sum())]

# %%
# The monitor takes any number of rows at a time. The calibration promises 5 % on average over
# calibrations; the monitor takes the rate that this one keeps with 95 % confidence, which is 6 %.
monitor = FlagMonitor.from_detector(detector)
for hour in np.split(stream, 30):
    monitor.update(hour)
    if monitor.alarm_:
        break
print(monitor)

# %%
# A monitor makes one of two promises. The promise of `false_alarm` holds for ever, so each good row
# makes the monitor a little slower to believe in a change. With `run_length`, false alarms do
# occur, but 5,000 good rows or more pass on average before one, and a late change is found sooner.
late = FlagMonitor.from_detector(detector, run_length=5000).update(stream)
print(f"the drift begins at row {starts_at}")
print(f"alarm with false_alarm=0.01: row {monitor.alarm_row_}, with run_length=5000: row ", end="")
print(late.alarm_row_)

# %%
# The plot shows the evidence, and the rate of flags with a band that holds at all times.
MonitorDisplay.from_monitor(monitor, stream)
plt.show()

# %%
# Batches of 200 rows can be tested one by one. The limit is exact for this number of calibration
# rows: it follows the beta-binomial law. A binomial limit takes the 5 % for exact, which no finite
# calibration is, and gives too many false alarms.
tests = [batch_test(detector, batch) for batch in np.split(stream, 30)]
BatchTestDisplay.from_tests(tests)
plt.show()

# %%
print(tests[0])
print(tests[-1])
