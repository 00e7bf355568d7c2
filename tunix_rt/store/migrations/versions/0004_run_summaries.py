"""What a list of runs shows of each run: figures of its log, its name, tags and note.

An index over the run folders: a row that is missing is made again from the folder.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    "Create the table of summaries."
    op.create_table(
        "run_summaries",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("stamp", sa.String(200), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("author", sa.String(256), nullable=True),
        sa.Column("base_run_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("notes_kept", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_run_summaries_run_id_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name="pk_run_summaries"),
    )
    op.create_index("ix_run_summaries_base_run_id", "run_summaries", ["base_run_id"])


def downgrade() -> None:
    "Drop the table of summaries."
    op.drop_index("ix_run_summaries_base_run_id", "run_summaries")
    op.drop_table("run_summaries")
