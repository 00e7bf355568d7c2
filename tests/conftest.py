"Fixtures that several test files share."

from databases import database_url, own_postgres, store  # noqa: F401
from serving import api, root  # noqa: F401
