"""Only copies of a trace are found by an index of fingerprints.

The others are found by their ids, which are the first halves of their fingerprints.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

IS_COPY = sa.text("id != CAST(substr(fingerprint, 1, 32) AS CHAR(32))")
IS_COPY_POSTGRES = sa.text("id != CAST(substr(fingerprint, 1, 32) AS UUID)")


def upgrade() -> None:
    "Index the copies alone."
    op.drop_index("ix_traces_fingerprint", "traces")
    op.create_index(
        "ix_traces_copies",
        "traces",
        ["fingerprint"],
        sqlite_where=IS_COPY,
        postgresql_where=IS_COPY_POSTGRES,
    )


def downgrade() -> None:
    "Index every fingerprint."
    op.drop_index("ix_traces_copies", "traces")
    op.create_index("ix_traces_fingerprint", "traces", ["fingerprint"])
