"The first tables."

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)
COUNTING = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TABLES = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

sa.Table(
    "idempotent_replies",
    TABLES,
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("status_code", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.Index(None, "created_at"),
)

sa.Table(
    "models",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("task_type", sa.String(64)),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.Column("updated_at", MOMENT, nullable=False),
    sa.UniqueConstraint("name"),
    sa.Index(None, "updated_at", "id"),
)

sa.Table(
    "runs",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("pipeline", sa.String(128), nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("dataset_key", sa.String(200)),
    sa.Column("model_id", sa.String(256)),
    sa.Column("parent_run_id", sa.Uuid, sa.ForeignKey("runs.id", deferrable=True)),
    sa.Column("parameters", sa.JSON, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("folder", sa.Text),
    sa.Column("metrics", sa.JSON),
    sa.Column("exit_code", sa.Integer),
    sa.Column("message", sa.Text),
    sa.Column("stdout", sa.Text, nullable=False),
    sa.Column("stderr", sa.Text, nullable=False),
    sa.Column("queued_at", MOMENT, nullable=False),
    sa.Column("started_at", MOMENT),
    sa.Column("completed_at", MOMENT),
    sa.Column("duration_seconds", sa.Double),
    sa.Column("available_at", MOMENT, nullable=False),
    sa.Column("timeout_seconds", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(256)),
    sa.Column("lease_until", MOMENT),
    sa.Column("attempt_token", sa.String(64)),
    sa.Column("cancel_requested_at", MOMENT),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.CheckConstraint("mode IN ('dry-run', 'local')", name="mode"),
    sa.CheckConstraint(
        "status IN ('pending', 'running', 'completed', 'failed', 'timeout', 'cancel_requested', 'cancelled')",
        name="status",
    ),
    sa.Index(None, "dataset_key", "queued_at"),
    sa.Index(None, "mode", "queued_at"),
    sa.Index(None, "model_id", "queued_at"),
    sa.Index(None, "parent_run_id"),
    sa.Index(None, "queued_at", "id"),
    sa.Index(None, "status", "queued_at", "id"),
    sa.Index(None, "status", "lease_until"),
)

sa.Table(
    "trace_tallies",
    TABLES,
    sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("writer", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("traces", sa.Integer, nullable=False),
)

sa.Table(
    "traces",
    TABLES,
    sa.Column("number", COUNTING, primary_key=True),
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.Column("trace_version", sa.String(64), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("source", sa.Text),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("steps", sa.JSON, nullable=False),
    sa.Column("final_answer", sa.Text, nullable=False),
    sa.Column("meta", sa.JSON),
    sa.UniqueConstraint("id"),
    sa.Index(None, "category", "number"),
    sa.Index(None, "fingerprint"),
    sa.Index(None, "source", "number"),
    sqlite_autoincrement=True,
)

sa.Table(
    "evaluations",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("predictions_run_id", sa.Uuid, sa.ForeignKey("runs.id", ondelete="SET NULL")),
    sa.Column("model_id", sa.String(256)),
    sa.Column("dataset_key", sa.String(200)),
    sa.Column("evaluation_set", sa.String(200)),
    sa.Column("evaluation_fingerprint", sa.String(64)),
    sa.Column("judge_name", sa.String(64), nullable=False),
    sa.Column("judge_version", sa.String(64), nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("low", sa.Double),
    sa.Column("high", sa.Double),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("item_count", sa.Integer, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("detailed_metrics", sa.JSON, nullable=False),
    sa.Column("categories", sa.JSON, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("evaluated_at", MOMENT, nullable=False),
    sa.Index(None, "dataset_key", "score"),
    sa.Index(None, "evaluation_set", "score"),
    sa.Index(None, "model_id", "score"),
    sa.Index(None, "predictions_run_id"),
    sa.Index(None, "run_id", "evaluated_at"),
    sa.Index(None, "score", "id"),
)

sa.Table(
    "log_chunks",
    TABLES,
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stream", sa.String(16), nullable=False),
    sa.Column("chunk", sa.Text, nullable=False),
    sa.Column("created_at", MOMENT, nullable=False),
)

sa.Table(
    "model_versions",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("model_id", sa.Uuid, sa.ForeignKey("models.id"), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("source_run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("parent_version_id", sa.Uuid, sa.ForeignKey("model_versions.id", deferrable=True)),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("provenance", sa.JSON, nullable=False),
    sa.Column("storage_uri", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.UniqueConstraint("model_id", "version"),
    sa.Index(None, "model_id", "created_at"),
    sa.Index(None, "sha256"),
    sa.Index(None, "source_run_id"),
)

sa.Table(
    "scores",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("trace_id", sa.Uuid, sa.ForeignKey("traces.id", ondelete="CASCADE"), nullable=False),
    sa.Column("criteria", sa.String(64), nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.Index(None, "trace_id", "created_at"),
)

sa.Table(
    "tuning_jobs",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("dataset_key", sa.String(200), nullable=False),
    sa.Column("base_model_id", sa.String(256), nullable=False),
    sa.Column("metric_name", sa.String(256), nullable=False),
    sa.Column("metric_mode", sa.String(8), nullable=False),
    sa.Column("num_samples", sa.Integer, nullable=False),
    sa.Column("max_concurrent_trials", sa.Integer, nullable=False),
    sa.Column("search_space", sa.JSON, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("study_name", sa.String(256)),
    sa.Column("best_run_id", sa.Uuid, sa.ForeignKey("runs.id")),
    sa.Column("best_value", sa.Double),
    sa.Column("best_params", sa.JSON),
    sa.Column("importances", sa.JSON),
    sa.Column("message", sa.Text),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.Column("started_at", MOMENT),
    sa.Column("completed_at", MOMENT),
    sa.Column("turn_token", sa.String(64)),
    sa.Column("turn_until", MOMENT),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "status"),
)

sa.Table(
    "baselines",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("evaluation_id", sa.Uuid, sa.ForeignKey("evaluations.id")),
    sa.Column("metric", sa.String(256), nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("lower_is_better", sa.Boolean),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.Column("updated_at", MOMENT, nullable=False),
    sa.UniqueConstraint("name"),
)

sa.Table(
    "evaluation_items",
    TABLES,
    sa.Column(
        "evaluation_id",
        sa.Uuid,
        sa.ForeignKey("evaluations.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
)

sa.Table(
    "model_aliases",
    TABLES,
    sa.Column("model_id", sa.Uuid, sa.ForeignKey("models.id"), primary_key=True),
    sa.Column("alias", sa.String(64), primary_key=True),
    sa.Column("version_id", sa.Uuid, sa.ForeignKey("model_versions.id"), nullable=False),
    sa.Column("updated_at", MOMENT, nullable=False),
)

sa.Table(
    "tuning_trials",
    TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column(
        "job_id", sa.Uuid, sa.ForeignKey("tuning_jobs.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id")),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("value", sa.Double),
    sa.Column("message", sa.Text),
    sa.Column("created_at", MOMENT, nullable=False),
    sa.Column("started_at", MOMENT),
    sa.Column("completed_at", MOMENT),
    sa.UniqueConstraint("job_id", "number"),
    sa.Index(None, "run_id"),
)


# The database keeps the tally of traces itself, so that no way of adding one can forget it.
SQLITE_TALLY = """
CREATE TRIGGER traces_arrive AFTER INSERT ON traces BEGIN
    INSERT INTO trace_tallies (block, writer, traces) VALUES (new.number / 1000, 0, 1)
    ON CONFLICT (block, writer) DO UPDATE SET traces = traces + 1;
END;
CREATE TRIGGER traces_leave AFTER DELETE ON traces BEGIN
    UPDATE trace_tallies SET traces = traces - 1 WHERE block = old.number / 1000;
END;
"""
POSTGRES_TALLY = """
CREATE FUNCTION tally_traces() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO trace_tallies (block, writer, traces)
    SELECT number / 1000, pg_backend_pid() % 64,
           count(*) * CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END
    FROM touched GROUP BY 1 ORDER BY 1
    ON CONFLICT (block, writer) DO UPDATE SET traces = trace_tallies.traces + excluded.traces;
    RETURN NULL;
END $$;
CREATE TRIGGER traces_arrive AFTER INSERT ON traces REFERENCING NEW TABLE AS touched
FOR EACH STATEMENT EXECUTE FUNCTION tally_traces();
CREATE TRIGGER traces_leave AFTER DELETE ON traces REFERENCING OLD TABLE AS touched
FOR EACH STATEMENT EXECUTE FUNCTION tally_traces();
"""


def upgrade() -> None:
    "Make the tables."
    TABLES.create_all(op.get_bind())
    if op.get_bind().dialect.name == "postgresql":
        op.execute(POSTGRES_TALLY)
    else:
        for trigger in SQLITE_TALLY.split("END;")[:-1]:
            op.execute(trigger + "END")


def downgrade() -> None:
    "Remove the tables and all that they hold."
    TABLES.drop_all(op.get_bind())
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION tally_traces")
