"Baselines among what can be deleted."

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

OLD = "what IN ('trace', 'dataset', 'run', 'model', 'model_version')"
NEW = "what IN ('trace', 'dataset', 'run', 'model', 'model_version', 'baseline')"


def allow(condition: str) -> None:
    "Replace the condition on the kind of what was deleted."
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("ck_deletions_what", "deletions", type_="check")
        op.create_check_constraint(op.f("ck_deletions_what"), "deletions", condition)
        return
    check = sa.CheckConstraint(condition, name=op.f("ck_deletions_what"))
    with op.batch_alter_table("deletions", recreate="always", table_args=(check,)):
        pass  # a table of SQLite is made anew, and its old conditions are not read


def upgrade() -> None:
    "Let the record of a deleted baseline in."
    allow(NEW)


def downgrade() -> None:
    "Remove such records, and let none in."
    op.execute("DELETE FROM deletions WHERE what = 'baseline'")
    allow(OLD)
