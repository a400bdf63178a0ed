"""PostgreSQL: connections, sessions, the schema, runs and their locks, roles, the embedded server."""
