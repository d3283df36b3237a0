"""Makes a measured Python see one tree only; comes first on its PYTHONPATH.

An editable install puts a finder into every interpreter of the environment. What the measured
tree does not have (its compiled parts, for one) would then come from the installed tree, without
a word, and the figures would be those of a mixture.
"""

import sys

sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if not getattr(finder, "__module__", "").startswith("__editable__")
]
