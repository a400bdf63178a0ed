"""Who uses which command: the sections in which `l2inv --help` and docs/reference.md show them."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "Stages: any may run at any time, and again": (
        "scan", "qualify", "preprocess", "mark-working", "mark-inverted", "inbox", "publish",
    ),
    "Science: what to invert, and whose it is": (
        "next", "claim", "release", "mine", "hand-over", "take-over", "note", "prioritize", "hold", "unhold",
        "overrule", "files", "reopen", "withdraw",
    ),
    "Everyone: what is recorded, and why": (
        "status", "list", "show", "history", "explain", "near-misses", "completeness", "criteria", "overdue", "report",
        "export",
    ),
    "Operators: keeping it running": (
        "config", "migrate", "roles", "server", "retry", "quarantine", "adopt", "digest", "clean", "verify",
        "backup", "restore", "demo",
    ),
}  # fmt: skip
