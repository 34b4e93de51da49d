"""The mpsearch job service: FastAPI application, jobs and storage."""
