"""What may stand in a storage URI: where things lie, and no key."""

import re
from urllib.parse import parse_qsl, urlsplit

OPTIONS = {
    "allow_bucket_creation", "allow_bucket_deletion", "blob_storage_authority", "check_directory_existence_before_creation",
    "dfs_storage_authority", "enable_tls", "endpoint_override", "force_virtual_addressing", "project_id", "region", "replication",
    "retry_limit_seconds", "scheme", "tls_ca_file_path", "user",
}  # fmt: skip
"""What may stand behind the ? of one: of what pyarrow reads there, that which is no key."""


def strange(uri: str) -> list[str]:
    """The names of what must not stand there."""
    parts = urlsplit(uri)
    options = {key.lower() for key, _ in parse_qsl(parts.query, keep_blank_values=True)}
    # A key may hold a slash, after which no parser looks for a password.
    port = r"(?!\d+(/|$))" if parts.scheme in ("hdfs", "viewfs") else ""
    keyed = re.match(f"[^/]*:{port}[^@]*@", uri.partition("://")[2].partition("?")[0])
    return [*(["password"] if keyed else []), *sorted(options - OPTIONS)]
