"""Every command by who uses it, as `l2inv --help` and docs/reference.md show them: the module of l2inv.cli that holds it,
and the first sentence of its docstring.

A process imports the module of the command that it runs, and no other; help alone imports none.
"""

SECTIONS = {
    "Stages: any may run at any time, and again": {
        "scan": ("stages", "Read the store's datasets and group them into OPs."),
        "qualify": ("stages", "Judge each quiet OP by the criteria of invertibility."),
        "preprocess": ("stages", "Run the configured command for each invertible OP."),
        "mark-working": ("science", "Say that the actor works on an OP: the stage form of claim."),
        "mark-inverted": ("handoff", "Say that an OP that you hold is inverted: the ready event."),
        "inbox": ("handoff", "Take the ready files that science drops into a folder."),
        "publish": ("stages", "Tell the metadata store of each inversion, exactly once."),
    },
    "Science: what to invert, and whose it is": {
        "next": ("choosing", "Show the OPs to invert next, the first to do on top."),
        "claim": ("science", "Take an OP to work on: exactly one person gets it."),
        "release": ("science", "Give a claimed OP back for others to take."),
        "mine": ("choosing", "Show what you hold, what is due first at the top."),
        "hand-over": ("science", "Give an OP that you hold to somebody else."),
        "take-over": ("science", "Take an OP whose holder let it become overdue."),
        "note": ("science", "Add a word to an OP's history."),
        "prioritize": ("science", "Say how soon an OP is to be worked on."),
        "hold": ("science", "Keep an OP from being prepared, offered and published."),
        "unhold": ("science", "Take an OP off hold: it goes on from where it is."),
        "overrule": ("verdicts", "Set a verdict aside, until the OP's datasets change."),
        "files": ("files", "List an OP's intermediate files."),
        "reopen": ("published", "Start a new cycle of an OP: it is to be inverted again."),
        "withdraw": ("published", "Mark published inversions of an OP as bad."),
    },
    "Everyone: what is recorded, and why": {
        "status": ("views", "Show what needs somebody, and how things stand."),
        "list": ("choosing", "List OPs with their present state."),
        "show": ("views", "Show one OP: its datasets, its verdict, who holds it."),
        "history": ("views", "Show all that ever happened to an OP, oldest first."),
        "explain": ("verdicts", "Explain an OP's verdict, criterion by criterion."),
        "near-misses": ("verdicts", "List the OPs that fail on one criterion alone."),
        "completeness": ("verdicts", "Show after how many quiet days no further dataset came."),
        "criteria": ("verdicts", "List the versions of the criteria that judged."),
        "overdue": ("deadlines", "Show the OPs past their deadline, by owner."),
        "report": ("report", "Write how everything stands as a page, one HTML FILE."),
        "export": ("published", "Print every inversion that the metadata store was told of."),
    },
    "Operators: keeping it running": {
        "config": ("operator", "The settings."),
        "migrate": ("operator", "Bring the database's schema to what this l2inv expects."),
        "roles": ("operator", "Print, or make, the database's roles and their rights."),
        "server": ("operator", "The embedded PostgreSQL server (database.url: embedded)."),
        "retry": ("operator", "Bring OPs back from error to the state before it."),
        "quarantine": ("operator", "List the records of the store that could not be read."),
        "adopt": ("published", "Take an inversion that only the store knows for an OP's."),
        "digest": ("deadlines", "Show or send each owner's own list of what to know."),
        "clean": ("files", "Remove the intermediate files of OPs published long ago."),
        "verify": ("operator", "Check that the record is what it was."),
        "backup": ("operator", "Back up the schema to a FILE with pg_dump, and verify."),
        "restore": ("operator", "Restore a backup FILE with pg_restore, and verify."),
        "demo": ("operator", "Run the whole pipeline on a sample store of its own."),
    },
}
COMMANDS = {name: entry for commands in SECTIONS.values() for name, entry in commands.items()}
