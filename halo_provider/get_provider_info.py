"""What Airflow reads of this provider without importing anything heavy."""

from typing import Any

from halo_provider import __version__


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata: connection type and its form, hook, operators, ``[halo]`` options."""
    return {
        "package-name": "airflow-provider-halo",
        "name": "Halo",
        "description": "Batch ticket creation in Halo (haloagents.ai), with every row accounted for.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": "Halo",
                "external-doc-url": "https://docs.haloagents.ai",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": "Halo", "python-modules": ["halo_provider.hooks.halo"]}],
        "operators": [{"integration-name": "Halo", "python-modules": ["halo_provider.operators.halo"]}],
        "sensors": [{"integration-name": "Halo", "python-modules": ["halo_provider.sensors.halo"]}],
        "triggers": [{"integration-name": "Halo", "python-modules": ["halo_provider.triggers.halo"]}],
        "notifications": ["halo_provider.notifications.halo.HaloNotifier"],
        "extra-links": ["halo_provider.operators.links.HaloDeliveriesLink"],
        "connection-types": [
            {
                "connection-type": "halo",
                "hook-class-name": "halo_provider.hooks.halo.HaloHook",
                "hook-name": "Halo",
                "ui-field-behaviour": {
                    "hidden-fields": ["login"],
                    "relabeling": {"host": "Base URL", "schema": "http or https", "password": "Widget key"},
                    "placeholders": {
                        "host": "https://api.haloagents.ai",
                        "schema": "https",
                        "password": "ab_live_…",
                    },
                },
                "conn-fields": {
                    "identity_secret": {
                        "label": "Identity secret",
                        "description": "ha_secret_… from Halo's dashboard. Signs user tokens here; it is never sent to "
                        "Halo. Needed for bulk user updates (backfills) and where the workspace enforces "
                        "identity verification.",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    },
                    "agent_id": {
                        "label": "Agent id",
                        "description": "Pins every chat to this agent, unless the submission names its own.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "timeout": {
                        "label": "Timeout (seconds)",
                        "description": "For one attempt, in hook calls. The operators have their own parameter.",
                        "schema": {"type": ["number", "null"]},
                    },
                    "mcp_url": {
                        "label": "MCP URL",
                        "description": "Where rows in doubt are looked up (on_in_doubt='ask', after halo-login). "
                        "Default: https://app.haloagents.ai/api/mcp.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "dashboard_url": {
                        "label": "Dashboard URL",
                        "description": "Where links to Halo's dashboard point, e.g. https://dashboard.haloagents.ai.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "ca_file": {
                        "label": "CA file",
                        "description": "Path, on the workers, of a PEM file with the only authorities to trust.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "client_cert": {
                        "label": "Client certificate",
                        "description": "Path, on the workers, of a PEM file with a certificate and its key; or two "
                        "paths, with a comma between them.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "user_url": {
                        "label": "Address of a user",
                        "description": "Where Halo's dashboard shows a user; {user_id} stands for the id.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "session_url": {
                        "label": "Address of a session",
                        "description": "Where Halo's dashboard shows a session; {session_id} stands for the id.",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            }
        ],
        "config": {
            "halo": {
                "description": "Options of the Halo provider.",
                "options": {
                    "ledger_conn_id": {
                        "description": "Airflow connection of the database that holds the ledger (PostgreSQL, MySQL or "
                        "MariaDB). Unset: SQLite at $AIRFLOW_HOME/halo_ledger.db, for tasks that all run on one host.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "halo_ledger",
                        "default": "",
                    },
                    "retention_days": {
                        "description": "Days after its last change that a delivered or rejected row is kept when "
                        "somebody, or a cron job, runs halo-ledger prune without --older-than. A row that a source "
                        "still has after that is sent again. Unset: rows are kept.",
                        "version_added": "0.2.0",
                        "type": "float",
                        "example": "730",
                        "default": "",
                    },
                },
            }
        },
    }
