"""Every bound in the system, in one place; relations between them are checked at import.

A bound that an operator may change has the same name in `raftkv.server.config`; the number here
is its default. Crossing one gives a named error.
"""

from __future__ import annotations

from typing import Final

from raftkv.checks import check

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Requests (etcd: --max-request-bytes 1.5 MiB, --max-txn-ops 128; ours are roomier).
REQUEST_BYTES_MAX: Final = 3 * MIB // 2
KEY_BYTES_MAX: Final = 64 * KIB
VALUE_BYTES_MAX: Final = REQUEST_BYTES_MAX
TXN_OPERATIONS_MAX: Final = 1024
TXN_NESTING_MAX: Final = 8
IDEMPOTENCY_KEY_BYTES_MAX: Final = 128
IDEMPOTENCY_KEYS_MAX: Final = 100_000
IDEMPOTENCY_KEEP_MS: Final = 10 * 60 * 1000
IDEMPOTENCY_RESULT_BYTES_MAX: Final = 256 * KIB
IDEMPOTENCY_BYTES_MAX: Final = 64 * MIB
PAGE_KEYS_DEFAULT: Final = 1000
PAGE_KEYS_MAX: Final = 10_000
PAGE_BYTES_MAX: Final = 8 * MIB

# Leases and services (etcd: minimum 2 s, maximum 9,000,000,000 s).
LEASE_TTL_SECONDS_MIN: Final = 1
LEASE_TTL_SECONDS_MAX: Final = 9_000_000_000
LEASES_PER_SLICE: Final = 2_000
LEASE_REVOKES_PER_BATCH: Final = 256
SERVICE_NAME_BYTES_MAX: Final = 255
SERVICE_TAGS_MAX: Final = 64
SERVICE_META_MAX: Final = 64
SERVICE_WEIGHT_MAX: Final = 1_000_000
SERVICE_RECORD_BYTES_MAX: Final = 64 * KIB

# Access control. A token's row is dropped once it is over its time, a few at each login.
AUTH_NAME_BYTES_MAX: Final = 255
PASSWORD_BYTES_MAX: Final = 1024
PASSWORD_HASH_BYTES_MAX: Final = 512
USERS_MAX: Final = 10_000
ROLES_MAX: Final = 10_000
USER_ROLES_MAX: Final = 256
ROLE_PERMISSIONS_MAX: Final = 1_000
ROLE_BYTES_MAX: Final = 1 * MIB
TOKENS_MAX: Final = 100_000
TOKENS_PER_USER_MAX: Final = 1_000
TOKENS_FORGOTTEN_PER_LOGIN: Final = 16
TOKEN_TTL_SECONDS_MIN: Final = 1
TOKEN_TTL_SECONDS_DEFAULT: Final = 300
TOKEN_TTL_SECONDS_MAX: Final = 30 * 24 * 60 * 60
TOKEN_BYTES_MAX: Final = 8 * KIB
TOKEN_KEY_BYTES_MAX: Final = 64 * KIB
CALLERS_MAX: Final = 10_000
PASSWORD_THREADS: Final = 1
PASSWORD_QUEUE_MAX: Final = 64
LOGIN_FAILURES_FREE: Final = 10
LOGIN_FAILURE_FORGOTTEN_SECONDS: Final = 30
LOGIN_WAIT_SECONDS_MAX: Final = 60
LOGIN_SOURCES_MAX: Final = 10_000

DISK_STALL_MS_DEFAULT: Final = 5_000

SLOW_REQUEST_MS_DEFAULT: Final = 500
SLOW_REQUESTS_LOGGED_MAX: Final = 10

# The audit log.
AUDIT_LINES_WAITING_MAX: Final = 10_000
AUDIT_FILE_BYTES: Final = 100 * MIB
AUDIT_FILES: Final = 10
AUDIT_RANGES_MAX: Final = 16
AUDIT_KEY_BYTES_MAX: Final = 256

# Consensus and log.
BATCH_BYTES_MAX: Final = 4 * MIB
BATCH_COMMANDS_MAX: Final = 4096
APPEND_BYTES_MAX: Final = 8 * MIB
INFLIGHT_MESSAGES_MAX: Final = 256
INFLIGHT_BYTES_MAX: Final = 64 * MIB
UNCOMMITTED_BYTES_MAX: Final = 64 * MIB
PENDING_COMMANDS_MAX: Final = 100_000
PENDING_READS_MAX: Final = 100_000
REPEAT_WINDOW: Final = 1024
REPEAT_RUNS_MAX: Final = 256
LOG_TAIL_ENTRIES: Final = 5_000
LOG_CACHE_BYTES: Final = 4 * MIB
VOTERS_MAX: Final = 15
LEARNERS_MAX: Final = 8
REMOVED_LINGER_TIMEOUTS: Final = 5  # election timeouts that a removed member answers the others

# Files.
WAL_SEGMENT_BYTES: Final = 64 * MIB
WAL_RECORD_BYTES_MAX: Final = 16 * MIB
WAL_SHORT_BYTES: Final = 256 * KIB
SNAPSHOT_CHUNK_BYTES: Final = 256 * KIB
SNAPSHOT_MIN_LOG_BYTES: Final = 64 * MIB

# Space, as shares of --quota-backend-bytes. Near the end of it a member takes on at most one part
# in SPACE_SLOW_SHARE of its share of what is left at a time.
QUOTA_BYTES_DEFAULT: Final = 8 * GIB

# Backups. A file of the archive is cut once it has this much log, or its time is over.
BACKUP_INTERVAL_MS_DEFAULT: Final = 6 * 60 * 60 * 1000
BACKUP_RETRY_SECONDS: Final = 60
BACKUPS_KEPT_DEFAULT: Final = 8
BACKUPS_KEPT_MAX: Final = 10_000
ARCHIVE_CUT_BYTES: Final = 16 * MIB
ARCHIVE_CUT_ENTRIES: Final = 100_000
ARCHIVE_FILE_BYTES_MAX: Final = 64 * MIB
ARCHIVE_INTERVAL_MS_DEFAULT: Final = 10_000
ARCHIVE_BYTES_DEFAULT: Final = 64 * GIB
SPACE_LOW_AT: Final = 0.8
SPACE_LOW_UNTIL: Final = 0.75
SPACE_FREE_AT: Final = 0.95
SPACE_SLOW_SHARE: Final = 4
QUOTAS_MAX: Final = 1_000
QUOTA_COUNT_KEYS_MAX: Final = 250_000
SHRINK_CATCH_UP_SECONDS: Final = 120

# Automatic compaction (etcd: every 5 min by revisions, ten samples a period by age).
AUTO_COMPACTION_SECONDS: Final = 300
AUTO_COMPACTION_SAMPLES: Final = 10
AUTO_COMPACTION_SAMPLE_SECONDS_MAX: Final = 3600
AUTO_COMPACTION_RETENTION_SECONDS_MAX: Final = 10 * 365 * 24 * 3600

# Peers.
FEATURE_LEVEL: Final = 1  # see raftkv.server.levels
PEER_FRAME_BYTES_MAX: Final = 32 * MIB
PEER_SHELL_FRAME_BYTES_MAX: Final = 4 * MIB
PEER_QUEUE_BYTES_MAX: Final = 128 * MIB
PEER_WRITE_BUFFER_BYTES: Final = 4 * MIB
PEER_HELLO_BYTES_MAX: Final = 1 * KIB
PEER_INTRODUCTION_BYTES_MAX: Final = 256 * KIB
PEER_CONNECTIONS_MAX: Final = 256
PEER_ADDRESSES_MAX: Final = 16
DISCOVERY_SECONDS: Final = 10.0
PEER_DIAL_SECONDS: Final = 2.0
PEER_HANDSHAKE_SECONDS: Final = 3.0
PEER_PING_SECONDS: Final = 1.0
PEER_SILENCE_SECONDS: Final = 10.0
PEER_BACKOFF_SECONDS_MIN: Final = 0.02
PEER_BACKOFF_SECONDS_MAX: Final = 1.0
SNAPSHOT_CHUNKS_INFLIGHT_MAX: Final = 8
SNAPSHOT_TRANSFERS_MAX: Final = 8
SNAPSHOT_ATTEMPTS_MAX: Final = 6

# Doors.
CONNECTIONS_MAX: Final = 20_000
RATE_BURST_SECONDS: Final = 2
RATE_CLIENTS_MAX: Final = 10_000
HTTP_HEADER_BYTES_MAX: Final = 64 * KIB
HTTP_HEADERS_MAX: Final = 128
HTTP_TARGET_BYTES_MAX: Final = 200 * KIB
HTTP_PIPELINE_BYTES_MAX: Final = 256 * KIB
HTTP_PIPELINE_REQUESTS_MAX: Final = 256
HTTP_BODY_BYTES_MAX: Final = 2 * REQUEST_BYTES_MAX  # base64 and JSON take room
HTTP_REQUEST_SECONDS: Final = 30
HTTP_IDLE_SECONDS: Final = 180
HTTP_LINGER_SECONDS: Final = 2
HTTP_DRAIN_SECONDS: Final = 10
HTTP_WAIT_SECONDS_DEFAULT: Final = 60
HTTP_WAIT_SECONDS_MAX: Final = 600
HTTP_STREAM_SLICE_KEYS: Final = 500
HTTP_STREAM_BUFFER_BYTES: Final = 256 * KIB
CONNECTION_OUTPUT_BYTES_MAX: Final = 32 * MIB

# HTTP/2 and gRPC (RFC 9113). Windows and frames are what we advertise, budgets are token buckets:
# a burst, and what flows back each second.
HTTP2_FRAME_BYTES_MAX: Final = 16 * KIB
HTTP2_STREAMS_MAX: Final = 1024
HTTP2_STREAM_WINDOW_BYTES: Final = 1 * MIB
HTTP2_CONNECTION_WINDOW_BYTES: Final = 16 * MIB
HTTP2_CONNECTION_INPUT_BYTES_MAX: Final = 32 * MIB
HTTP2_STREAM_OUTPUT_BYTES_HIGH: Final = 512 * KIB
HTTP2_TURN_OUTPUT_BYTES: Final = 1 * MIB
HTTP2_HEADER_BLOCK_BYTES_MAX: Final = 64 * KIB
HTTP2_HEADER_LIST_BYTES_MAX: Final = 64 * KIB
HTTP2_HEADER_TABLE_BYTES: Final = 4096
HTTP2_CONTINUATIONS_MAX: Final = 16
HTTP2_MEMO_BLOCKS_MAX: Final = 64
HTTP2_MEMO_BLOCK_BYTES_MAX: Final = 2048
HTTP2_ENDED_STREAMS_KEPT: Final = 256
HTTP2_RESETS_BURST: Final = 2000
HTTP2_RESETS_PER_SECOND: Final = 200
HTTP2_CHATTER_BURST: Final = 2000
HTTP2_CHATTER_PER_SECOND: Final = 500
HTTP2_HANDSHAKE_SECONDS: Final = 10
HTTP2_STALL_SECONDS: Final = 60
GRPC_MESSAGE_BYTES_MAX: Final = REQUEST_BYTES_MAX + 512 * KIB
GRPC_STATUS_MESSAGE_BYTES_MAX: Final = 4096
GRPC_PINGS_MIN_SECONDS: Final = 5
GRPC_IDLE_PINGS_MIN_SECONDS: Final = 2 * 60 * 60
GRPC_PING_STRIKES_MAX: Final = 2
GRPC_KEEPALIVE_SECONDS: Final = 2 * 60 * 60
GRPC_KEEPALIVE_TIMEOUT_SECONDS: Final = 20

# etcd's API.
ETCD_RANGE_BYTES_MAX: Final = 512 * MIB
ETCD_LEASE_TTL_SECONDS_MIN: Final = 2  # etcd: 1.5 election timeouts, rounded up
ETCD_KEEP_ALIVES_WAITING_MAX: Final = 1000
ETCD_KEEP_ALIVES_KEPT_MAX: Final = 16_384  # requests whose lease is remembered

# TLS. Handshakes under way at a time; past that the oldest gives way.
TLS_HANDSHAKE_SECONDS: Final = 5.0
TLS_HANDSHAKES_MAX: Final = 512
TLS_PEER_HANDSHAKES_MAX: Final = 64
TLS_HANDSHAKE_BYTES_MAX: Final = 128 * KIB
TLS_RECORD_BYTES_MAX: Final = 16 * KIB  # RFC 8446, section 5.1
TLS_RELOAD_SECONDS: Final = 1.0
TLS_CAUSES_MAX: Final = 256

# What the C library keeps of freed memory: heaps for threads, at the end of each, and from which
# size on a block is mapped by itself and unmapped when it is freed.
HEAP_ARENAS_MAX: Final = 2
HEAP_KEPT_BYTES: Final = 2 * MIB
HEAP_MAPPED_BYTES: Final = 1 * MIB
HEAP_TRIM_SECONDS: Final = 60

# Watches.
WATCHERS_MAX: Final = 100_000
WATCH_HISTORY_BATCH_EVENTS: Final = 1_000
WATCH_HISTORY_BATCH_BYTES: Final = 4 * MIB
WATCH_SLICE_WATCHERS_MAX: Final = 1_000
WATCH_PROGRESS_SECONDS: Final = 10

check(KEY_BYTES_MAX < REQUEST_BYTES_MAX, "a key must fit into a request")
check(REQUEST_BYTES_MAX <= BATCH_BYTES_MAX, "a request must fit into a batch")
check(
    IDEMPOTENCY_RESULT_BYTES_MAX * 2 <= IDEMPOTENCY_BYTES_MAX,
    "several first results must fit under their total",
)
check(TOKENS_PER_USER_MAX * 10 <= TOKENS_MAX, "one user alone must not use up all tokens")
check(ROLE_BYTES_MAX <= REQUEST_BYTES_MAX, "a role must fit into an answer")
check(BATCH_BYTES_MAX * 2 <= WAL_RECORD_BYTES_MAX, "a batch must fit into a log record")
check(BATCH_BYTES_MAX <= APPEND_BYTES_MAX, "a batch must fit into an append")
check(APPEND_BYTES_MAX * 2 <= PEER_FRAME_BYTES_MAX, "an append must fit into a peer frame")
check(WAL_RECORD_BYTES_MAX * 2 <= WAL_SEGMENT_BYTES, "a segment must hold several records")
check(
    ARCHIVE_CUT_BYTES + WAL_RECORD_BYTES_MAX < ARCHIVE_FILE_BYTES_MAX,
    "what is cut must fit into a file of the archive",
)
check(APPEND_BYTES_MAX <= INFLIGHT_BYTES_MAX, "an append must fit into the in-flight window")
check(BATCH_BYTES_MAX <= UNCOMMITTED_BYTES_MAX, "a batch must fit under the uncommitted cap")
check(SPACE_LOW_UNTIL < SPACE_LOW_AT < SPACE_FREE_AT < 1, "a warning comes before an alarm")
check(PEER_FRAME_BYTES_MAX <= PEER_QUEUE_BYTES_MAX, "a peer's queue must hold a whole frame")
check(PEER_PING_SECONDS * 3 <= PEER_SILENCE_SECONDS, "a lost ping must not cut a connection")
check(SNAPSHOT_CHUNK_BYTES * 2 <= PEER_FRAME_BYTES_MAX, "a chunk must fit into a peer frame")
check(
    REQUEST_BYTES_MAX * 4 // 3 < HTTP_BODY_BYTES_MAX, "a request must fit, as base64, into a body"
)
check(HTTP_STREAM_BUFFER_BYTES < CONNECTION_OUTPUT_BYTES_MAX, "a slice must fit into the output")
check(
    KEY_BYTES_MAX * 3 + KIB <= HTTP_TARGET_BYTES_MAX,
    "any key must fit, percent-encoded, into a path",
)
check(
    HTTP2_STREAM_WINDOW_BYTES <= HTTP2_CONNECTION_WINDOW_BYTES,
    "one stream must be able to use its window",
)
check(
    HTTP2_CONNECTION_WINDOW_BYTES <= HTTP2_CONNECTION_INPUT_BYTES_MAX,
    "a full connection window must fit into the input bound",
)
check(
    GRPC_MESSAGE_BYTES_MAX <= HTTP2_CONNECTION_INPUT_BYTES_MAX,
    "a message must fit into the input bound",
)
check(HTTP2_FRAME_BYTES_MAX >= 16 * KIB, "RFC 9113 section 6.5.2: not below 16,384")
check(
    HTTP2_STREAM_OUTPUT_BYTES_HIGH < CONNECTION_OUTPUT_BYTES_MAX,
    "one stream alone must not fill the connection's output",
)
