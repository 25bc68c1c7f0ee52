"""The example's modules are beside each other in a folder, as ``make english`` runs them."""

import sys
from pathlib import Path

ENGLISH = Path(__file__).resolve().parents[2] / "examples" / "english"
sys.path.insert(0, str(ENGLISH))
