"""Settings that all tests share.

Property tests draw the same examples at every run, so that a failure is one that anybody can
repeat. `RAFTKV_RANDOM=1` draws new ones, to look for what the fixed ones miss; a failure prints
the example.
"""

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("random" if os.environ.get("RAFTKV_RANDOM") else "fixed")
