"""Out-of-distribution detection for any trained classifier, the scikit-learn way.

>>> import skdice
>>> skdice.DICEDetector(head="identity", sparsity=0)
DICEDetector(head='identity', sparsity=0)
"""

from skdice._dice import DICEDetector
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics
from skdice._persistence import load, save
from skdice._search import DICEDetectorCV, sparsity_path
from skdice._version import __version__

__all__ = [
    "DICEDetector",
    "DICEDetectorCV",
    "FeatureStatistics",
    "LinearHead",
    "__version__",
    "load",
    "save",
    "sparsity_path",
]
