"""The health check of a job's nodes: facts of each, speeds between them, and the findings."""
