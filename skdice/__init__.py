"""Out-of-distribution detection for any trained classifier, the scikit-learn way.

>>> import skdice
>>> skdice.DICEDetector(head="identity", sparsity=0)
DICEDetector(head='identity', sparsity=0)
"""

from skdice._dice import DICEDetector
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics
from skdice._path import sparsity_path
from skdice._persistence import load
from skdice._search import DICEDetectorCV

__version__ = "0.1.0.dev0"

__all__ = [
    "DICEDetector",
    "DICEDetectorCV",
    "FeatureStatistics",
    "LinearHead",
    "load",
    "sparsity_path",
]
