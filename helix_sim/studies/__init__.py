"""What people do with sweeps: one module a question, each a library call that returns a record."""
