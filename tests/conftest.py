"Fixtures that several test files share."

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / ".venv" / "torch"))  # see the Makefile

from databases import database_url, own_postgres, store  # noqa: F401
from serving import api, root  # noqa: F401
