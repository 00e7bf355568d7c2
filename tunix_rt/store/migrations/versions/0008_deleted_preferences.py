"Kept preferences among what can be deleted."

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

OLD = "what IN ('trace', 'dataset', 'run', 'model', 'model_version', 'baseline')"
NEW = OLD.removesuffix(")") + ", 'preferences')"


def upgrade() -> None:
    "Let the record of deleted preferences in."
    replace_condition(NEW)


def downgrade() -> None:
    "Remove such records, and let none in."
    op.execute("DELETE FROM deletions WHERE what = 'preferences'")
    replace_condition(OLD)


def replace_condition(condition: str) -> None:
    "Replace the condition on the kind of what was deleted."
    if op.get_bind().dialect.name == "postgresql":
        for name in ("ck_deletions_what", "ck_deletions_ck_deletions_what"):  # as step 0003 made it
            op.execute(f"ALTER TABLE deletions DROP CONSTRAINT IF EXISTS {name}")
        op.create_check_constraint(op.f("ck_deletions_what"), "deletions", condition)
        return
    made = described(condition)  # SQLite changes no condition: the table is made anew
    with op.batch_alter_table("deletions", recreate="always", copy_from=made):
        pass


def described(condition: str) -> sa.Table:
    "Describe the table of deletions, as it has been since step 0003, with a condition."
    return sa.Table(
        "deletions",
        sa.MetaData(),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("act_id", sa.Uuid, nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("item_id", sa.String(256), nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("who", sa.String(256), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deletions")),
        sa.CheckConstraint(condition, name=op.f("ck_deletions_what")),
        sa.Index(op.f("ix_deletions_what_item_id"), "what", "item_id"),
        sa.Index(op.f("ix_deletions_deleted_at_id"), "deleted_at", "id"),
    )
