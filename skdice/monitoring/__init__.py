"""Tests of whether a batch or a stream is odder than a calibrated detector promises.

`batch_test` answers for one batch of rows. `FlagMonitor` answers for a stream, after every row if
you like. Both need no labels, no outliers and no scores of the past: they compare the number of
flagged rows with the rate of false alarms that the calibration promises. Both assume that good
rows are independent of one another.
"""

from skdice.monitoring._batch import BatchTest, batch_pvalue, batch_test
from skdice.monitoring._flag_monitor import FlagMonitor

__all__ = ["BatchTest", "FlagMonitor", "batch_pvalue", "batch_test"]
