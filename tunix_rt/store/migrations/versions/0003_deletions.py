"What was deleted, by whom and why."

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

WHAT = "what IN ('trace', 'dataset', 'run', 'model', 'model_version')"


def upgrade() -> None:
    "Make the table of deletions."
    op.create_table(
        "deletions",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("act_id", sa.Uuid, nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("item_id", sa.String(256), nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("who", sa.String(256), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deletions"),
        sa.CheckConstraint(WHAT, name="ck_deletions_what"),
    )
    op.create_index("ix_deletions_what_item_id", "deletions", ["what", "item_id"])
    op.create_index("ix_deletions_deleted_at_id", "deletions", ["deleted_at", "id"])


def downgrade() -> None:
    "Remove it."
    op.drop_table("deletions")
