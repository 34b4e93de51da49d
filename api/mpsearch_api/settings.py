"""Settings of the service, each an environment variable `MPSEARCH_NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings"]

MIB = 2**20
GIB = 2**30


class Settings(BaseSettings):
    """Everything about the service that can be set; sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="MPSEARCH_", frozen=True, extra="ignore")

    data_dir: Path = Field(
        default=Path("mpsearch-data"),
        validate_default=True,
        description="database, uploads, results and caches",
    )
    database_url: SecretStr | None = Field(
        default=None, description="SQLAlchemy URL; default: SQLite in the data folder"
    )
    blob_url: str | None = Field(
        default=None, description="fsspec URL of the uploads and results; default: the data folder"
    )
    blob_cache_bytes: int = Field(
        default=20 * GIB, ge=0, description="of remote blobs kept on this machine when not in use"
    )
    executor: Literal["local", "ray"] = "local"
    workers: int = Field(default=1, ge=1, le=1024, description="jobs run at once by a dispatcher")
    worker_memory: int = Field(default=16 * GIB, ge=64 * MIB, description="most a job may ask for")
    worker_time: float = Field(default=24 * 3600.0, gt=0, description="longest a job may ask for")
    niceness: int = Field(
        default=10, ge=0, le=19, description="of jobs, so that answers stay quick"
    )
    lease: float = Field(default=10.0, gt=0, description="a claim not renewed for so long is lost")
    heartbeat: float = Field(default=3.0, gt=0, description="between renewals")
    poll: float = Field(default=0.1, gt=0, description="between looks for work and cancellations")
    most_attempts: int = Field(default=3, ge=1, description="starts a job gets when workers die")
    retention_days: float | None = Field(
        default=None, gt=0, description="ended jobs are deleted after so long; default: kept"
    )

    open_mode: bool | None = Field(
        default=None,
        description="serve without API keys; only on a loopback address. Default: open there as "
        "long as no key exists",
    )
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Host names answered beside the address served on"
    )
    cors_origins: list[str] = Field(default_factory=list, description="none by default")
    requests_per_minute: int = Field(default=600, ge=1, description="per key")
    open_jobs: int = Field(default=1000, ge=1, description="queued or running, per tenant")
    stored_bytes: int = Field(default=20 * GIB, ge=0, description="uploads, per tenant")
    upload_bytes: int = Field(default=10 * GIB, ge=0, description="largest upload")
    body_bytes: int = Field(default=16 * MIB, ge=1024, description="largest JSON body")
    upload_hours: float = Field(default=24.0, gt=0, description="an unfinished upload is kept")

    solve_groups: int = Field(default=20_000, ge=1, description="largest /v1/solve problem, groups")
    solve_choices: int = Field(default=400_000, ge=1, description="largest, options in all")
    solve_seconds: float = Field(default=10.0, gt=0, description="hard limit of /v1/solve")
    solve_processes: int = Field(default=2, ge=1)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    ray_address: str | None = Field(
        default=None, description="HOST:PORT of the Ray cluster's head, for executor ray"
    )
    ray_shards: int = Field(
        default=64, ge=1, description="parts of one job that run on the Ray cluster at a time"
    )
    hub_downloads: bool = Field(default=False, description="allow specs that fetch from a hub")

    @field_validator("data_dir")
    @classmethod
    def _settle(cls, folder: Path) -> Path:
        # Jobs stand in folders of their own: a relative path would mean another place there.
        return folder.expanduser().absolute()

    @property
    def database(self) -> str:
        """The URL of the database, with its password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'mpsearch.db'}"
