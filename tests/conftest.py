"Fixtures that several test files share."

from databases import database_url, own_postgres, store  # noqa: F401
