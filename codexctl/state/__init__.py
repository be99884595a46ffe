"""What is kept on disk: SQLite with migrations, key files, atomic writes."""
