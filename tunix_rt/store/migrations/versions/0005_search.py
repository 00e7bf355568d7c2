"""Ratings, edited traces, what sums both up, and an index of the words of all traces.

The index follows the traces at a short distance: what arrives is noted in the transaction that
stores it, and indexed by `tunix_rt.store.search_index` afterwards, so that storing a trace costs what
it did before. What is deleted leaves the index in the same transaction.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

COUNTING = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True)

# The first 100,000 characters of the steps, and 20,000 of `meta`: what one entry of Postgres holds.
STEPS = (
    "(SELECT substr(group_concat(json_extract(value, '$.content'), ' '), 1, 100000) "
    "FROM json_each({0}steps))"
)
SQLITE = (
    f"""CREATE VIEW trace_texts AS
    SELECT number, prompt, {STEPS.format("")} AS steps, final_answer AS answer,
           substr(meta, 1, 20000) AS meta
    FROM traces""",
    """CREATE VIRTUAL TABLE trace_words USING fts5(
        prompt, steps, answer, meta,
        content='trace_texts', content_rowid='number', tokenize="unicode61 remove_diacritics 0"
    )""",
    f"""CREATE TRIGGER traces_forgotten AFTER DELETE ON traces
    WHEN EXISTS (SELECT 1 FROM trace_words_docsize WHERE id = old.number) BEGIN
        INSERT INTO trace_words (trace_words, rowid, prompt, steps, answer, meta) VALUES (
            'delete', old.number, old.prompt, {STEPS.format("old.")}, old.final_answer,
            substr(old.meta, 1, 20000)
        );
    END""",
)
TALLY = """CREATE OR REPLACE FUNCTION tally_traces() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO trace_tallies (block, writer, traces)
        SELECT number / 1000, pg_backend_pid() % 64,
               count(*) * CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END
        FROM touched GROUP BY 1 ORDER BY 1
        ON CONFLICT (block, writer) DO UPDATE
        SET traces = trace_tallies.traces + excluded.traces;{}
        RETURN NULL;
    END $$"""  # The trigger of step 0001, which notes what is to be indexed as well
POSTGRES = (
    """CREATE TABLE trace_words (
        number bigint PRIMARY KEY REFERENCES traces (number) ON DELETE CASCADE,
        words tsvector NOT NULL
    )""",
    "CREATE INDEX ix_trace_words ON trace_words USING gin (words)",
    "CREATE TABLE trace_arrivals (first bigint PRIMARY KEY, last bigint NOT NULL)",
    """INSERT INTO trace_arrivals
    SELECT min(number), max(number) FROM traces GROUP BY number / 1000""",
    TALLY.format("""
        IF TG_OP = 'INSERT' THEN
            INSERT INTO trace_arrivals
            SELECT min(number), max(number) FROM touched HAVING count(*) > 0;
        END IF;"""),
)
MARKS = """INSERT INTO trace_marks (number, score, stars, thumbs, ratings)
SELECT number, score, NULL, 0, 0 FROM (
    SELECT traces.number AS number, scores.score AS score, row_number() OVER (
        PARTITION BY traces.number ORDER BY scores.created_at DESC, scores.id
    ) AS place
    FROM scores JOIN traces ON traces.id = scores.trace_id WHERE scores.criteria = 'baseline'
) AS newest WHERE place = 1"""


def trace_key(action: str, **options: Any) -> sa.Column[Any]:
    "Describe a column with the id of a trace."
    name = "trace_id" if action == "CASCADE" else "parent_id"
    return sa.Column(name, sa.Uuid, sa.ForeignKey("traces.id", ondelete=action), **options)


def upgrade() -> None:
    "Make the tables, and note what is to be indexed."
    op.create_table(
        "ratings",
        sa.Column("id", sa.Uuid, primary_key=True),
        trace_key("CASCADE", nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("thumb", sa.Integer),
        sa.Column("stars", sa.Integer),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("thumb IN (-1, 1)", name="thumb"),
        sa.CheckConstraint("stars BETWEEN 1 AND 5", name="stars"),
    )
    op.create_index(None, "ratings", ["trace_id", "created_at"])
    op.create_table(
        "trace_marks",
        sa.Column(
            "number",
            COUNTING,
            sa.ForeignKey("traces.number", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("score", sa.Double),
        sa.Column("stars", sa.Double),
        sa.Column("thumbs", sa.Integer, nullable=False),
        sa.Column("ratings", sa.Integer, nullable=False),
    )
    op.create_index(None, "trace_marks", ["score", "number"])
    op.create_index(None, "trace_marks", ["stars", "number"])
    op.create_table(
        "trace_edits",
        trace_key("CASCADE", primary_key=True),
        trace_key("SET NULL", index=True),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
    )
    op.execute(MARKS)
    for statement in POSTGRES if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.execute(statement)


def downgrade() -> None:
    "Remove the index, the ratings and the links between versions."
    if op.get_bind().dialect.name == "postgresql":
        op.execute(TALLY.format(""))
        op.drop_table("trace_arrivals")
    else:
        op.execute("DROP TRIGGER traces_forgotten")
    op.drop_table("trace_words")
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP VIEW trace_texts")
    for name in ("trace_edits", "trace_marks", "ratings"):
        op.drop_table(name)
