"""The operator's room: supervising, jobs, the command line; it may see every other room."""
