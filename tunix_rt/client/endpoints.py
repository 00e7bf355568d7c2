"""One function for each route of the server that needs no code of its own."""

# Written by .ci/endpoints.py. DO NOT EDIT! Change the route, then run `sh .ci/sync`.

from __future__ import annotations


from collections.abc import Iterator
from pathlib import Path
from pydantic.types import AwareDatetime
from typing import Any, Literal
from uuid import UUID

from tunix_rt.client.transport import (
    Client,
    download_file,
    quote_segment,
    request,
    request_list,
    send,
    stream_records,
)
from tunix_rt.serve.schemas.access import AuditLog, TokenCreated, TokenPublic, TokenRequest
from tunix_rt.serve.schemas.datasets import (
    BuildRequest,
    DatasetBuilt,
    DatasetPage,
    DuelRequest,
    DuelsPlayed,
    EngineStatus,
    IngestRequest,
    IngestedFile,
    NearDuplicatesPage,
)
from tunix_rt.serve.schemas.deletions import DatasetVerified, DeletionsPublic, RemovalPublic
from tunix_rt.serve.schemas.evaluation import (
    BaselineRequest,
    BaselineSet,
    BaselinesPublic,
    CheckRequest,
    EvaluationPublic,
    Leaderboard,
    RegressionResult,
)
from tunix_rt.serve.schemas.health import Health, Ready, RediHealth
from tunix_rt.serve.schemas.models import (
    ModelPublic,
    ModelRequest,
    ModelVersionPublic,
    ModelVersionsPublic,
    PromoteRequest,
    VersionVerified,
)
from tunix_rt.serve.schemas.pipelines import PipelinePublic
from tunix_rt.serve.schemas.runs import (
    Artifacts,
    Cancelled,
    EvaluateModelRequest,
    ExportRequest,
    GRPORequest,
    ManifestRequest,
    NotesPublic,
    NotesRequest,
    RunDetail,
    RunResult,
    RunStatus,
    RunsPublic,
    TrainingManifest,
    TunixStatus,
)
from tunix_rt.serve.schemas.trace_search import (
    PreferencesKept,
    PreferencesListed,
    PreferencesRequest,
    RatingPublic,
    RatingRequest,
    TraceContext,
    TraceHits,
    TraceRatings,
)
from tunix_rt.serve.schemas.traces import FoundTrace, StoredTrace, TraceComparison, TracePage
from tunix_rt.serve.schemas.tuning import (
    TuningJobDetail,
    TuningJobPublic,
    TuningRequest,
    TuningStarted,
)
from tunix_rt.traces.schema import Trace

__all__ = [
    "BaselineRequest",
    "BuildRequest",
    "CheckRequest",
    "DuelRequest",
    "EvaluateModelRequest",
    "ExportRequest",
    "GRPORequest",
    "IngestRequest",
    "ManifestRequest",
    "ModelRequest",
    "NotesRequest",
    "PreferencesRequest",
    "PromoteRequest",
    "RatingRequest",
    "TokenRequest",
    "Trace",
    "TuningRequest",
    "search_traces",
    "export_preferences",
    "keep_rated_preferences",
    "list_kept_preferences",
    "read_kept_preferences",
    "rate_trace",
    "list_ratings",
    "remove_rating",
    "create_version",
    "get_trace_context",
    "create_trace",
    "list_traces",
    "compare_traces",
    "get_trace",
    "get_api_health",
    "get_ready",
    "get_redi_health",
    "get_metrics",
    "build_dataset",
    "ingest_dataset",
    "export_dataset",
    "get_dataset",
    "list_near_duplicates",
    "list_datasets",
    "get_ungar_status",
    "generate_high_card_duel",
    "list_run_pipelines",
    "get_run_pipeline",
    "get_tunix_status",
    "export_sft",
    "build_training_manifest",
    "evaluate_model",
    "practice_with_grpo",
    "list_tunix_runs",
    "get_tunix_run",
    "get_tunix_run_status",
    "cancel_tunix_run",
    "get_run_notes",
    "annotate_run",
    "list_artifacts",
    "download_artifact",
    "get_run_metrics",
    "get_evaluation",
    "get_leaderboard",
    "create_baseline",
    "list_baselines",
    "check_regression",
    "create_tuning_job",
    "start_tuning_job",
    "cancel_tuning_job",
    "list_tuning_jobs",
    "get_tuning_job",
    "create_model_artifact",
    "list_model_artifacts",
    "get_model_version",
    "download_model_version",
    "verify_model_version",
    "get_model_artifact",
    "list_model_versions",
    "promote_model_version",
    "remove_model_alias",
    "delete_trace",
    "delete_traces_by_filter",
    "remove_dataset",
    "remove_run",
    "remove_model_version",
    "remove_model",
    "remove_baseline",
    "remove_preferences",
    "list_deleted",
    "verify_dataset_traces",
    "create_token",
    "list_tokens",
    "revoke_token",
    "list_audit_log",
]


def search_traces(
    client: Client,
    sort: Literal["newest", "oldest", "relevance", "score", "-score", "stars", "-stars"] = "newest",
    after: str = "",
    limit: int = 20,
    facets: bool = True,
    text: str = "",
    source: str | None = None,
    category: str | None = None,
    trace_version: str | None = None,
    dataset: str | None = None,
    min_score: float | None = None,
    max_score: float | None = None,
    min_stars: float | None = None,
    max_stars: float | None = None,
    thumb: Literal["up", "down"] | None = None,
    rated: bool | None = None,
    versions: Literal["newest", "all"] = "newest",
) -> TraceHits:
    """Find traces by their words, ratings, scores and origin.

    Args:
        client: Server to call
        sort: Order of the hits
        after: A page's next_after
        limit: Maximum number of entries, up to 100
        facets: Whether to count what the hits are about
        text: Words, "phrases", -word, word*, answer:word; or the beginning of an id
        source: Filter on the source
        category: Filter on the category
        trace_version: Filter on the trace version
        dataset: Filter on the dataset
        min_score: Filter on the min score, up to 100
        max_score: Filter on the max score, up to 100
        min_stars: Filter on the min stars, up to 5
        max_stars: Filter on the max stars, up to 5
        thumb: What thumbs say
        rated: Filter on the rated
        versions: Newest versions of edited traces, or all
    """
    return request(
        client,
        TraceHits,
        "GET",
        "/api/traces/search",
        query={
            "sort": sort,
            "after": after,
            "limit": limit,
            "facets": facets,
            "text": text,
            "source": source,
            "category": category,
            "trace_version": trace_version,
            "dataset": dataset,
            "min_score": min_score,
            "max_score": max_score,
            "min_stars": min_stars,
            "max_stars": max_stars,
            "thumb": thumb,
            "rated": rated,
            "versions": versions,
        },
    )


def export_preferences(
    client: Client,
    kind: Literal["pairs", "rated"] = "pairs",
    pairs_per_prompt: int = 1,
    min_gap: float = 1.0,
    text: str = "",
    source: str | None = None,
    category: str | None = None,
    trace_version: str | None = None,
    dataset: str | None = None,
    min_score: float | None = None,
    max_score: float | None = None,
    min_stars: float | None = None,
    max_stars: float | None = None,
    thumb: Literal["up", "down"] | None = None,
    rated: bool | None = None,
    versions: Literal["newest", "all"] = "newest",
) -> Iterator[dict[str, Any]]:
    """Export rated traces as preferences.

    Args:
        client: Server to call
        kind: Pairs, or single answers with a label
        pairs_per_prompt: Most pairs of the answers to one prompt, up to 100
        min_gap: Stars between two answers, up to 4
        text: Words, "phrases", -word, word*, answer:word; or the beginning of an id
        source: Filter on the source
        category: Filter on the category
        trace_version: Filter on the trace version
        dataset: Filter on the dataset
        min_score: Filter on the min score, up to 100
        max_score: Filter on the max score, up to 100
        min_stars: Filter on the min stars, up to 5
        max_stars: Filter on the max stars, up to 5
        thumb: What thumbs say
        rated: Filter on the rated
        versions: Newest versions of edited traces, or all

    Returns:
        One JSON object a line
    """
    return stream_records(
        client,
        "GET",
        "/api/traces/preferences.jsonl",
        query={
            "kind": kind,
            "pairs_per_prompt": pairs_per_prompt,
            "min_gap": min_gap,
            "text": text,
            "source": source,
            "category": category,
            "trace_version": trace_version,
            "dataset": dataset,
            "min_score": min_score,
            "max_score": max_score,
            "min_stars": min_stars,
            "max_stars": max_stars,
            "thumb": thumb,
            "rated": rated,
            "versions": versions,
        },
    )


def keep_rated_preferences(
    client: Client,
    body: PreferencesRequest,
    key: str | None = None,
) -> PreferencesKept:
    """Keep rated traces as preferences, for the preference pipeline.

    Args:
        client: Server to call
        body: Content of the request; needs name
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, PreferencesKept, "POST", "/api/traces/preferences", body=body, key=key)


def list_kept_preferences(
    client: Client,
) -> PreferencesListed:
    """List the preferences that were kept.

    Args:
        client: Server to call
    """
    return request(client, PreferencesListed, "GET", "/api/traces/preferences")


def read_kept_preferences(
    client: Client,
    preferences_name: str,
) -> Iterator[dict[str, Any]]:
    """Read preferences that were kept.

    Args:
        client: Server to call
        preferences_name: Name of kept preferences, such as "rated-v1"

    Returns:
        One JSON object a line
    """
    return stream_records(
        client, "GET", f"/api/traces/preferences/{quote_segment(preferences_name)}"
    )


def rate_trace(
    client: Client,
    trace_id: UUID,
    body: RatingRequest,
    key: str | None = None,
) -> RatingPublic:
    """Rate a trace, or one of its steps.

    Args:
        client: Server to call
        trace_id: Id of a trace
        body: Content of the request
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RatingPublic,
        "POST",
        f"/api/traces/{quote_segment(trace_id)}/ratings",
        body=body,
        key=key,
    )


def list_ratings(
    client: Client,
    trace_id: UUID,
) -> TraceRatings:
    """List the ratings of a trace and its steps, newest first.

    Args:
        client: Server to call
        trace_id: Id of a trace
    """
    return request(client, TraceRatings, "GET", f"/api/traces/{quote_segment(trace_id)}/ratings")


def remove_rating(
    client: Client,
    trace_id: UUID,
    rating_id: UUID,
    key: str | None = None,
) -> TraceRatings:
    """Take a rating back, and list the others.

    Args:
        client: Server to call
        trace_id: Id of a trace
        rating_id: Id of a rating
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        TraceRatings,
        "DELETE",
        f"/api/traces/{quote_segment(trace_id)}/ratings/{quote_segment(rating_id)}",
        key=key,
    )


def create_version(
    client: Client,
    trace_id: UUID,
    trace: Trace,
    author: str | None = None,
    key: str | None = None,
) -> StoredTrace:
    """Store an edited trace as a new version; the old one stays.

    Args:
        client: Server to call
        trace_id: Id of a trace
        trace: Content of the request; needs prompt, steps, final_answer
        author: Who edited it
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        StoredTrace,
        "POST",
        f"/api/traces/{quote_segment(trace_id)}/versions",
        query={"author": author},
        body=trace,
        key=key,
    )


def get_trace_context(
    client: Client,
    trace_id: UUID,
) -> TraceContext:
    """Show the versions of a trace, the datasets that hold it, and its score.

    Args:
        client: Server to call
        trace_id: Id of a trace
    """
    return request(client, TraceContext, "GET", f"/api/traces/{quote_segment(trace_id)}/context")


def create_trace(
    client: Client,
    trace: Trace,
    key: str | None = None,
) -> StoredTrace:
    """Store one trace; it is on the disk when the response is sent.

    Args:
        client: Server to call
        trace: Content of the request; needs prompt, steps, final_answer
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, StoredTrace, "POST", "/api/traces", body=trace, key=key)


def list_traces(
    client: Client,
    limit: int = 20,
    offset: int = 0,
    after: int | None = None,
    source: str | None = None,
    category: str | None = None,
    fingerprint: str | None = None,
    text: str | None = None,
) -> TracePage:
    """List traces, newest first.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
        after: A page's next_after
        source: Filter on the source
        category: Filter on the category
        fingerprint: Filter on the fingerprint
        text: Filter on the text
    """
    return request(
        client,
        TracePage,
        "GET",
        "/api/traces",
        query={
            "limit": limit,
            "offset": offset,
            "after": after,
            "source": source,
            "category": category,
            "fingerprint": fingerprint,
            "text": text,
        },
    )


def compare_traces(
    client: Client,
    base: UUID,
    other: UUID,
) -> TraceComparison:
    """Show two traces side by side.

    Args:
        client: Server to call
        base: Id of a trace
        other: Id of another trace
    """
    return request(
        client, TraceComparison, "GET", "/api/traces/compare", query={"base": base, "other": other}
    )


def get_trace(
    client: Client,
    trace_id: UUID,
) -> FoundTrace:
    """Show one trace.

    Args:
        client: Server to call
        trace_id: Id of a trace
    """
    return request(client, FoundTrace, "GET", f"/api/traces/{quote_segment(trace_id)}")


def get_api_health(
    client: Client,
) -> Health:
    """Report that the process is alive.

    Args:
        client: Server to call
    """
    return request(client, Health, "GET", "/api/health")


def get_ready(
    client: Client,
) -> Ready:
    """Report that the database responds and has the tables of this version.

    Args:
        client: Server to call
    """
    return request(client, Ready, "GET", "/api/ready")


def get_redi_health(
    client: Client,
) -> RediHealth:
    """Report the health of RediAI.

    Args:
        client: Server to call
    """
    return request(client, RediHealth, "GET", "/api/redi/health")


def get_metrics(
    client: Client,
) -> str:
    """Return the metrics for Prometheus.

    Args:
        client: Server to call

    Returns:
        Prometheus text
    """
    return send(client, "GET", "/metrics").text


def build_dataset(
    client: Client,
    body: BuildRequest,
    key: str | None = None,
) -> DatasetBuilt:
    """Build a dataset from stored traces.

    Args:
        client: Server to call
        body: Content of the request; needs dataset_name, dataset_version
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, DatasetBuilt, "POST", "/api/datasets/build", body=body, key=key)


def ingest_dataset(
    client: Client,
    body: IngestRequest,
    key: str | None = None,
) -> IngestedFile:
    """Ingest a file from the imports folder, all of it or nothing.

    Args:
        client: Server to call
        body: Content of the request; needs path, source_name
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, IngestedFile, "POST", "/api/datasets/ingest", body=body, key=key)


def export_dataset(
    client: Client,
    dataset_key: str,
    format: Literal[
        "trace", "tunix_sft", "training_example", "messages", "prompt_completion"
    ] = "trace",
    split: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Export a dataset as lines.

    Args:
        client: Server to call
        dataset_key: Key of a dataset, such as "golden-v2"
        format: Shape of the records
        split: Filter on the split

    Returns:
        One JSON object a line
    """
    return stream_records(
        client,
        "GET",
        f"/api/datasets/{quote_segment(dataset_key)}/export.jsonl",
        query={"format": format, "split": split},
    )


def get_dataset(
    client: Client,
    dataset_key: str,
) -> dict[str, Any]:
    """Show the manifest of a dataset.

    Args:
        client: Server to call
        dataset_key: Key of a dataset, such as "golden-v2"
    """
    return dict(send(client, "GET", f"/api/datasets/{quote_segment(dataset_key)}").json())


def list_near_duplicates(
    client: Client,
    dataset_key: str,
    limit: int = 20,
    offset: int = 0,
) -> NearDuplicatesPage:
    """List the traces that a build with dedup left out, each beside the one that was kept.

    Args:
        client: Server to call
        dataset_key: Key of a dataset, such as "golden-v2"
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
    """
    return request(
        client,
        NearDuplicatesPage,
        "GET",
        f"/api/datasets/{quote_segment(dataset_key)}/near-duplicates",
        query={"limit": limit, "offset": offset},
    )


def list_datasets(
    client: Client,
    limit: int = 20,
    offset: int = 0,
) -> DatasetPage:
    """List datasets by key.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
    """
    return request(
        client, DatasetPage, "GET", "/api/datasets", query={"limit": limit, "offset": offset}
    )


def get_ungar_status(
    client: Client,
) -> EngineStatus:
    """Report whether games can be generated.

    Args:
        client: Server to call
    """
    return request(client, EngineStatus, "GET", "/api/ungar/status")


def generate_high_card_duel(
    client: Client,
    body: DuelRequest,
    key: str | None = None,
) -> DuelsPlayed:
    """Generate games, and store them as traces.

    Args:
        client: Server to call
        body: Content of the request; needs count
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client, DuelsPlayed, "POST", "/api/ungar/high-card-duel/generate", body=body, key=key
    )


def list_run_pipelines(
    client: Client,
) -> list[PipelinePublic]:
    """List the pipelines that a request may name, with their parameters.

    Args:
        client: Server to call
    """
    return request_list(client, PipelinePublic, "GET", "/api/pipelines")


def get_run_pipeline(
    client: Client,
    pipeline: str,
) -> PipelinePublic:
    """Show the parameters of a pipeline.

    Args:
        client: Server to call
        pipeline: Verb, such as train
    """
    return request(client, PipelinePublic, "GET", f"/api/pipelines/{quote_segment(pipeline)}")


def get_tunix_status(
    client: Client,
) -> TunixStatus:
    """Report whether google-tunix is installed; runs do not need it.

    Args:
        client: Server to call
    """
    return request(client, TunixStatus, "GET", "/api/tunix/status")


def export_sft(
    client: Client,
    body: ExportRequest,
) -> Iterator[dict[str, Any]]:
    """Export traces as complete Gemma turns, one a line.

    Args:
        client: Server to call
        body: Content of the request

    Returns:
        One JSON object a line
    """
    return stream_records(client, "POST", "/api/tunix/sft/export", body=body)


def build_training_manifest(
    client: Client,
    body: ManifestRequest,
    key: str | None = None,
) -> TrainingManifest:
    """Write a training manifest for a dataset.

    Args:
        client: Server to call
        body: Content of the request; needs dataset_key, model_id, output_dir
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, TrainingManifest, "POST", "/api/tunix/sft/manifest", body=body, key=key)


def evaluate_model(
    client: Client,
    body: EvaluateModelRequest,
    key: str | None = None,
) -> RunResult:
    """Evaluate a model on an evaluation set; the scores are stored when the run has ended.

    Args:
        client: Server to call
        body: Content of the request; needs evaluation_set
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, RunResult, "POST", "/api/tunix/evaluate", body=body, key=key)


def practice_with_grpo(
    client: Client,
    asked: GRPORequest,
    key: str | None = None,
) -> RunResult:
    """Let a model practice on questions, rewarded for its answers; a worker takes the run.

    Args:
        client: Server to call
        asked: Content of the request; needs dataset_key
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, RunResult, "POST", "/api/tunix/grpo", body=asked, key=key)


def list_tunix_runs(
    client: Client,
    limit: int = 20,
    offset: int = 0,
    status: Literal[
        "pending", "running", "completed", "failed", "timeout", "cancel_requested", "cancelled"
    ]
    | None = None,
    dataset_key: str | None = None,
    mode: Literal["dry-run", "local"] | None = None,
    model_id: str | None = None,
) -> RunsPublic:
    """List runs, newest first; several filters are combined with AND.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
        status: Filter on the status
        dataset_key: Filter on the dataset
        mode: Filter on the mode
        model_id: Filter on the model
    """
    return request(
        client,
        RunsPublic,
        "GET",
        "/api/tunix/runs",
        query={
            "limit": limit,
            "offset": offset,
            "status": status,
            "dataset_key": dataset_key,
            "mode": mode,
            "model_id": model_id,
        },
    )


def get_tunix_run(
    client: Client,
    run_id: UUID,
) -> RunDetail:
    """Show a run.

    Args:
        client: Server to call
        run_id: Id of a run
    """
    return request(client, RunDetail, "GET", f"/api/tunix/runs/{quote_segment(run_id)}")


def get_tunix_run_status(
    client: Client,
    run_id: UUID,
) -> RunStatus:
    """Show the status of a run.

    Args:
        client: Server to call
        run_id: Id of a run
    """
    return request(client, RunStatus, "GET", f"/api/tunix/runs/{quote_segment(run_id)}/status")


def cancel_tunix_run(
    client: Client,
    run_id: UUID,
    key: str | None = None,
) -> Cancelled:
    """Request the cancellation of a run.

    Args:
        client: Server to call
        run_id: Id of a run
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client, Cancelled, "POST", f"/api/tunix/runs/{quote_segment(run_id)}/cancel", key=key
    )


def get_run_notes(
    client: Client,
    run_id: UUID,
) -> NotesPublic:
    """Show the name, the tags and the note of a run.

    Args:
        client: Server to call
        run_id: Id of a run
    """
    return request(client, NotesPublic, "GET", f"/api/tunix/runs/{quote_segment(run_id)}/notes")


def annotate_run(
    client: Client,
    run_id: UUID,
    body: NotesRequest,
    key: str | None = None,
) -> NotesPublic:
    """Change the name, the tags or the note of a run; what is left out stays.

    Args:
        client: Server to call
        run_id: Id of a run
        body: Content of the request
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        NotesPublic,
        "PATCH",
        f"/api/tunix/runs/{quote_segment(run_id)}/notes",
        body=body,
        key=key,
    )


def list_artifacts(
    client: Client,
    run_id: UUID,
) -> Artifacts:
    """List the files of a run.

    Args:
        client: Server to call
        run_id: Id of a run
    """
    return request(client, Artifacts, "GET", f"/api/tunix/runs/{quote_segment(run_id)}/artifacts")


def download_artifact(
    client: Client,
    run_id: UUID,
    filename: str,
    to: Path,
) -> Path:
    """Download one file of a run.

    Args:
        client: Server to call
        run_id: Id of a run
        filename: Name as listed
        to: File to create or to replace, by rename

    Returns:
        Same as `to`
    """
    return download_file(
        client,
        f"/api/tunix/runs/{quote_segment(run_id)}/artifacts/{quote_segment(filename, '/')}/download",
        to,
    )


def get_run_metrics(
    client: Client,
    run_id: UUID,
) -> list[dict[str, Any]]:
    """Show the metrics of a run, step by step.

    Args:
        client: Server to call
        run_id: Id of a run
    """
    return list(send(client, "GET", f"/api/tunix/runs/{quote_segment(run_id)}/metrics").json())


def get_evaluation(
    client: Client,
    run_id: UUID,
) -> EvaluationPublic:
    """Show the newest evaluation of a run.

    Args:
        client: Server to call
        run_id: Id of a run
    """
    return request(
        client, EvaluationPublic, "GET", f"/api/tunix/runs/{quote_segment(run_id)}/evaluation"
    )


def get_leaderboard(
    client: Client,
    limit: int = 50,
    offset: int = 0,
    dataset_key: str | None = None,
    evaluation_set: str | None = None,
    model_id: str | None = None,
    judge: str | None = None,
) -> Leaderboard:
    """Rank the runs.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
        dataset_key: Filter on the dataset
        evaluation_set: Filter on the evaluation set
        model_id: Filter on the model
        judge: Filter on the judge
    """
    return request(
        client,
        Leaderboard,
        "GET",
        "/api/tunix/evaluations",
        query={
            "limit": limit,
            "offset": offset,
            "dataset_key": dataset_key,
            "evaluation_set": evaluation_set,
            "model_id": model_id,
            "judge": judge,
        },
    )


def create_baseline(
    client: Client,
    body: BaselineRequest,
    key: str | None = None,
) -> BaselineSet:
    """Set a baseline, or move it.

    Args:
        client: Server to call
        body: Content of the request; needs name, run_id, metric
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, BaselineSet, "POST", "/api/regression/baselines", body=body, key=key)


def list_baselines(
    client: Client,
    limit: int = 50,
    offset: int = 0,
) -> BaselinesPublic:
    """List baselines by name.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
    """
    return request(
        client,
        BaselinesPublic,
        "GET",
        "/api/regression/baselines",
        query={"limit": limit, "offset": offset},
    )


def check_regression(
    client: Client,
    body: CheckRequest,
    key: str | None = None,
) -> RegressionResult:
    """Check a run against a baseline.

    Args:
        client: Server to call
        body: Content of the request; needs run_id, baseline_name
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, RegressionResult, "POST", "/api/regression/check", body=body, key=key)


def create_tuning_job(
    client: Client,
    body: TuningRequest,
    key: str | None = None,
) -> TuningJobPublic:
    """Create a search.

    Args:
        client: Server to call
        body: Content of the request; needs name, dataset_key, base_model_id, search_space
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, TuningJobPublic, "POST", "/api/tuning/jobs", body=body, key=key)


def start_tuning_job(
    client: Client,
    job_id: UUID,
    key: str | None = None,
) -> TuningStarted:
    """Start a search.

    Args:
        client: Server to call
        job_id: Id of a job
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client, TuningStarted, "POST", f"/api/tuning/jobs/{quote_segment(job_id)}/start", key=key
    )


def cancel_tuning_job(
    client: Client,
    job_id: UUID,
    key: str | None = None,
) -> TuningJobDetail:
    """Cancel a search and its active trials.

    Args:
        client: Server to call
        job_id: Id of a job
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client, TuningJobDetail, "POST", f"/api/tuning/jobs/{quote_segment(job_id)}/cancel", key=key
    )


def list_tuning_jobs(
    client: Client,
    limit: int = 20,
    offset: int = 0,
) -> list[TuningJobPublic]:
    """List searches, newest first; X-Next-Offset has the offset of the next page.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
    """
    return request_list(
        client, TuningJobPublic, "GET", "/api/tuning/jobs", query={"limit": limit, "offset": offset}
    )


def get_tuning_job(
    client: Client,
    job_id: UUID,
) -> TuningJobDetail:
    """Show a search with its trials.

    Args:
        client: Server to call
        job_id: Id of a job
    """
    return request(client, TuningJobDetail, "GET", f"/api/tuning/jobs/{quote_segment(job_id)}")


def create_model_artifact(
    client: Client,
    body: ModelRequest,
    key: str | None = None,
) -> ModelPublic:
    """Create a model without versions.

    Args:
        client: Server to call
        body: Content of the request; needs name
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, ModelPublic, "POST", "/api/models", body=body, key=key)


def list_model_artifacts(
    client: Client,
    limit: int = 20,
    offset: int = 0,
) -> list[ModelPublic]:
    """List models, most recently changed first; X-Next-Offset has the offset of the next page.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
    """
    return request_list(
        client, ModelPublic, "GET", "/api/models", query={"limit": limit, "offset": offset}
    )


def get_model_version(
    client: Client,
    version_id: UUID,
) -> ModelVersionPublic:
    """Show a version.

    Args:
        client: Server to call
        version_id: Id of a version
    """
    return request(
        client, ModelVersionPublic, "GET", f"/api/models/versions/{quote_segment(version_id)}"
    )


def download_model_version(
    client: Client,
    version_id: UUID,
    to: Path,
) -> Path:
    """Download a version as a zip of a folder in Hugging Face layout.

    Args:
        client: Server to call
        version_id: Id of a version
        to: File to create or to replace, by rename

    Returns:
        Same as `to`
    """
    return download_file(client, f"/api/models/versions/{quote_segment(version_id)}/download", to)


def verify_model_version(
    client: Client,
    version_id: UUID,
) -> VersionVerified:
    """Verify the files of a version.

    Args:
        client: Server to call
        version_id: Id of a version
    """
    return request(
        client, VersionVerified, "GET", f"/api/models/versions/{quote_segment(version_id)}/verify"
    )


def get_model_artifact(
    client: Client,
    model_id: UUID,
) -> ModelPublic:
    """Show a model.

    Args:
        client: Server to call
        model_id: Id of a model
    """
    return request(client, ModelPublic, "GET", f"/api/models/{quote_segment(model_id)}")


def list_model_versions(
    client: Client,
    model_id: UUID,
    limit: int = 20,
    offset: int = 0,
) -> ModelVersionsPublic:
    """List the versions of a model, newest first.

    Args:
        client: Server to call
        model_id: Id of a model
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
    """
    return request(
        client,
        ModelVersionsPublic,
        "GET",
        f"/api/models/{quote_segment(model_id)}/versions",
        query={"limit": limit, "offset": offset},
    )


def promote_model_version(
    client: Client,
    model_id: UUID,
    body: PromoteRequest,
    key: str | None = None,
) -> ModelVersionPublic:
    """Promote a completed run to a version.

    Args:
        client: Server to call
        model_id: Id of a model
        body: Content of the request; needs source_run_id
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        ModelVersionPublic,
        "POST",
        f"/api/models/{quote_segment(model_id)}/versions/promote",
        body=body,
        key=key,
    )


def remove_model_alias(
    client: Client,
    model_id: UUID,
    alias: str,
    key: str | None = None,
) -> ModelPublic:
    """Remove an alias.

    Args:
        client: Server to call
        model_id: Id of a model
        alias: Name of an alias, such as "champion"
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        ModelPublic,
        "DELETE",
        f"/api/models/{quote_segment(model_id)}/aliases/{quote_segment(alias)}",
        key=key,
    )


def delete_trace(
    client: Client,
    trace_id: UUID,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete one trace.

    Args:
        client: Server to call
        trace_id: Id of a trace
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        f"/api/traces/{quote_segment(trace_id)}",
        query={"dry_run": dry_run, "reason": reason},
        key=key,
    )


def delete_traces_by_filter(
    client: Client,
    source: str | None = None,
    category: str | None = None,
    fingerprint: str | None = None,
    text: str | None = None,
    before: AwareDatetime | None = None,
    search: str | None = None,
    expected: int | None = None,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete all traces that satisfy every filter.

    Args:
        client: Server to call
        source: Filter on the source
        category: Filter on the category
        fingerprint: Filter on the fingerprint
        text: Filter on the text
        before: Stored before this time
        search: A search as in filters.search, as JSON
        expected: Number that a dry run said
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        "/api/traces",
        query={
            "source": source,
            "category": category,
            "fingerprint": fingerprint,
            "text": text,
            "before": before,
            "search": search,
            "expected": expected,
            "dry_run": dry_run,
            "reason": reason,
        },
        key=key,
    )


def remove_dataset(
    client: Client,
    dataset_key: str,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete a dataset that nothing names.

    Args:
        client: Server to call
        dataset_key: Key of a dataset, such as "golden-v2"
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        f"/api/datasets/{quote_segment(dataset_key)}",
        query={"dry_run": dry_run, "reason": reason},
        key=key,
    )


def remove_run(
    client: Client,
    run_id: UUID,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete a run with its folder.

    Args:
        client: Server to call
        run_id: Id of a run
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        f"/api/tunix/runs/{quote_segment(run_id)}",
        query={"dry_run": dry_run, "reason": reason},
        key=key,
    )


def remove_model_version(
    client: Client,
    version_id: UUID,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete a version without an alias.

    Args:
        client: Server to call
        version_id: Id of a version
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        f"/api/models/versions/{quote_segment(version_id)}",
        query={"dry_run": dry_run, "reason": reason},
        key=key,
    )


def remove_model(
    client: Client,
    model_id: UUID,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete a model with all its versions, if none has an alias.

    Args:
        client: Server to call
        model_id: Id of a model
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        f"/api/models/{quote_segment(model_id)}",
        query={"dry_run": dry_run, "reason": reason},
        key=key,
    )


def remove_baseline(
    client: Client,
    baseline_name: str,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete a baseline; its run stays.

    Args:
        client: Server to call
        baseline_name: Name of a baseline, such as "main"
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        f"/api/regression/baselines/{quote_segment(baseline_name, '/')}",
        query={"dry_run": dry_run, "reason": reason},
        key=key,
    )


def remove_preferences(
    client: Client,
    preferences_name: str,
    dry_run: bool = False,
    reason: str | None = None,
    key: str | None = None,
) -> RemovalPublic:
    """Delete kept preferences that no run was trained on; the ratings stay.

    Args:
        client: Server to call
        preferences_name: Name of kept preferences, such as "rated-v1"
        dry_run: Only say what would happen
        reason: Why, for the record
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(
        client,
        RemovalPublic,
        "DELETE",
        f"/api/traces/preferences/{quote_segment(preferences_name)}",
        query={"dry_run": dry_run, "reason": reason},
        key=key,
    )


def list_deleted(
    client: Client,
    limit: int = 20,
    offset: int = 0,
    what: Literal["trace", "dataset", "run", "model", "model_version", "baseline", "preferences"]
    | None = None,
) -> DeletionsPublic:
    """List what was deleted, by whom, when and why, newest first.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        offset: Entries to skip
        what: Filter on the what
    """
    return request(
        client,
        DeletionsPublic,
        "GET",
        "/api/deletions",
        query={"limit": limit, "offset": offset, "what": what},
    )


def verify_dataset_traces(
    client: Client,
    dataset_key: str,
) -> DatasetVerified:
    """Verify a dataset, and say which of its traces were deleted from the store since.

    Args:
        client: Server to call
        dataset_key: Key of a dataset, such as "golden-v2"
    """
    return request(
        client, DatasetVerified, "GET", f"/api/datasets/{quote_segment(dataset_key)}/verify"
    )


def create_token(
    client: Client,
    body: TokenRequest,
    key: str | None = None,
) -> TokenCreated:
    """Make a token with a name and a role; the answer holds it, this once.

    Args:
        client: Server to call
        body: Content of the request; needs name
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, TokenCreated, "POST", "/api/tokens", body=body, key=key)


def list_tokens(
    client: Client,
) -> list[TokenPublic]:
    """List the tokens by name, without their secrets.

    Args:
        client: Server to call
    """
    return request_list(client, TokenPublic, "GET", "/api/tokens")


def revoke_token(
    client: Client,
    name: str,
    key: str | None = None,
) -> TokenPublic:
    """Revoke a token; it stops working within seconds.

    Args:
        client: Server to call
        name: Name of the token
        key: Idempotency key, the same for a repeat of the request; made up by default
    """
    return request(client, TokenPublic, "DELETE", f"/api/tokens/{quote_segment(name)}", key=key)


def list_audit_log(
    client: Client,
    limit: int = 50,
    before: int | None = None,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
) -> AuditLog:
    """List who did what, newest first.

    Args:
        client: Server to call
        limit: Maximum number of entries, up to 100
        before: A page's next_before
        actor: Filter on the actor
        action: Filter on the action
        target: Filter on the target
    """
    return request(
        client,
        AuditLog,
        "GET",
        "/api/audit",
        query={
            "limit": limit,
            "before": before,
            "actor": actor,
            "action": action,
            "target": target,
        },
    )
