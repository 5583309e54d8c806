"""Published results that ours stand beside: another design (ImageNet, timm's models), so a landmark and no target.

Source: FG; 20 students x 20 teachers on a tenth of ImageNet's training images, where nothing else is said.
"""

from __future__ import annotations

from math import nan

DESIGN = "FG: ImageNet, 20 students × 20 teachers"

# Percent of teachers: first quartile, median and third quartile over students.
SUCCESS = {
    "kl": (9.0, 32.5, 39.0),
    "xekl": (21.0, 42.5, 60.0),
    "xekl_mcl": (24.0, 80.0, 96.0),
    "kl_dp": (50.0, 92.5, 100.0),
    "kl_dp_unsup": (58.0, 82.5, 91.0),
    "cd": (nan, 0.0, nan),
    "crd": (nan, 0.0, nan),
}
SUCCESS_OF_KIND = {"kl_dp": {"transformer": 96.0, "mlp": 89.0, "cnn": 40.0}}  # percent of pairs, by the student's kind
DELTA = {"kl": -0.30, "kl_dp": 0.32}  # percentage points, mean over pairs
RATE_BY_SIZE = ((20e6, 20.0), (190e6, 50.0))  # parameters of the student, transfer rate in percent
FLIPS = ((0.0, 5.5), (20.0, 25.0))  # accuracy of teacher − student, positive flips in percent; 466 pairs of 301 models
FLIPS_LEAST = 2.0  # percent, of any of these pairs
SEVERAL = {  # three teachers: delta in percentage points of the students XCiT-P16 and PiT-B
    "single": (0.73, 0.64),
    "sequential": (0.97, 1.04),
    "parallel": (0.91, 0.77),
    "soup": (0.63, 0.69),
}
