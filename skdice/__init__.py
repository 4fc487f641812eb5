"""Out-of-distribution detection for any trained classifier, the scikit-learn way.

>>> import skdice
>>> skdice.DICEDetector(head="identity", sparsity=0)
DICEDetector(head='identity', sparsity=0)
"""

from skdice._detector import DICEDetector
from skdice._detector_cv import DICEDetectorCV
from skdice._head import LinearHead
from skdice._mean import FeatureStatistics
from skdice._path import sparsity_path
from skdice._persistence import load

__version__ = "0.1.0.dev0"

__all__ = [
    "DICEDetector",
    "DICEDetectorCV",
    "FeatureStatistics",
    "LinearHead",
    "load",
    "sparsity_path",
]
