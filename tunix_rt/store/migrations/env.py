"Run the steps inside the transaction that `tunix_rt.store.engine` has opened."

from alembic import context

from tunix_rt.store.migrations import VERSION_TABLE
from tunix_rt.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite cannot alter a table in place
)
with context.begin_transaction():
    context.run_migrations()
