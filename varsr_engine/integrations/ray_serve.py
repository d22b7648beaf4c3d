"""The server on Ray Serve: the routes of `varsr serve` on replicas of an engine, from one machine to many.

    serve run varsr_engine.integrations.ray_serve:build_app model=varsr-mini num_replicas=2

The engine makes the batches, as everywhere: Ray's own (`@serve.batch`) closes a batch before a replica is free for it.
"""

# No `from __future__ import annotations`: Ray looks at the class that `build_app` takes.
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import EngineDeadError
from varsr_engine.packaged import default_model
from varsr_engine.serving.errors import NotFoundError
from varsr_engine.serving.jobs import Job, JobStore
from varsr_engine.serving.lifecycle import Lifecycle
from varsr_engine.serving.service import Service
from varsr_engine.serving.settings import ServerSettings, read_api_keys

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from varsr_engine.serving.budget import Hold


class RayServeArgs(BaseModel):
    """Arguments of `build_app`. A name that is not one of them is an error.

    model: as of `Engine.from_pretrained`, to be found on every machine. num_replicas: a number, or auto: between
    min_replicas and max_replicas, by load. num_gpus, num_cpus: of a replica; num_cpus are its threads too.
    max_replicas_per_node: to spread them. max_batch: images that a replica works on at its best; how many may wait
    follows from it. device, dtype, numerics, config: of the engine, config a TOML file with fields of EngineConfig.
    host: where Ray's proxies listen. Where other machines reach it, a key is needed (api_key_file, or VARSR_API_KEY),
    or insecure. server_config: a TOML file with fields of ServerSettings. Files are read where `build_app` runs.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    num_replicas: int | Literal["auto"] = Field(default=1, union_mode="left_to_right")
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=8, ge=1)
    max_replicas_per_node: int | None = None
    num_gpus: float = Field(default=0.0, ge=0)
    num_cpus: float = Field(default=1.0, gt=0)
    max_batch: int = Field(default=8, ge=1)
    device: str | None = None
    dtype: str | None = None
    numerics: str | None = None
    config: str | None = None
    host: str | None = None
    api_key_file: str | None = None
    insecure: bool | None = None
    server_config: str | None = None

    def engine_config(self) -> EngineConfig:
        """Without a GPU of its own a replica runs on the CPU, with the same bits on every replica (`varsr serve`)."""
        own = {} if self.num_gpus else {"device": "cpu", "numerics": "batch_invariant"}
        given = {"device": self.device, "dtype": self.dtype, "numerics": self.numerics}
        return EngineConfig.resolve(self.config, **own | {name: value for name, value in given.items() if value})

    def server_settings(self) -> ServerSettings:
        """Raises InvalidParamsError where the network could use the server without a key."""
        settings = ServerSettings.resolve(
            self.server_config,
            host=self.host,
            insecure=self.insecure,
            api_keys=read_api_keys(self.api_key_file) or None,
        )
        settings.require_protection()
        return settings

    def deployment(self, settings: ServerSettings) -> dict[str, Any]:
        """Options of Ray's deployment."""
        options: dict[str, Any] = {
            "num_replicas": self.num_replicas,
            "max_ongoing_requests": 3 * self.max_batch,  # so that the next batch waits while one runs
            "max_queued_requests": 4 * self.max_batch,  # of each proxy; then 503. Ray's default has no end
            "health_check_period_s": 10,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": settings.drain_timeout,
            "ray_actor_options": {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(self.num_cpus)))}},
            },
        }
        if self.max_replicas_per_node is not None:
            options["max_replicas_per_node"] = self.max_replicas_per_node
        if self.num_replicas == "auto":
            options["autoscaling_config"] = {
                "min_replicas": self.min_replicas,
                "max_replicas": max(self.min_replicas, self.max_replicas),
                "target_ongoing_requests": self.max_batch,
                "upscale_delay_s": 30,
                "downscale_delay_s": 600,  # a replica that comes back loads its weights again
            }
        return options


class NoJobs(JobStore):
    """In place of jobs, whose state one process holds: the next request would meet another replica."""

    MESSAGE = "there are no jobs on Ray, where the next request meets another process; use varsr upscale-dataset"

    def add(self, job: Job, hold: "Hold") -> None:
        raise NotFoundError(self.MESSAGE)

    def get(self, id: str) -> Job:
        raise NotFoundError(self.MESSAGE)

    def remove(self, id: str) -> None:
        raise NotFoundError(self.MESSAGE)


class Replica:
    """One engine and its application. It exists once the engine is warm; until then Ray sends it nothing."""

    def __init__(self, model: str, config: EngineConfig, settings: ServerSettings) -> None:
        from varsr_engine.engine.engine import Engine

        self._engine = Engine.from_pretrained(model, config=settings.engine_config(config))
        self._engine.warmup()
        self._service = Service(Lifecycle.of(self._engine), settings)
        self._service.jobs.close()
        self._service.jobs = NoJobs(settings)

    async def __serve_build_asgi_app__(self) -> "FastAPI":
        """What Ray sends HTTP to. Its lifespan closes the service."""
        from varsr_engine.serving.app import create_app

        return create_app(self._service)

    async def upscale(self, image: Any, **changes: Any) -> Any:
        """For other deployments, by handle: an `ImageLike` in, the image (H, W, C) uint8 out. No HTTP, no file format.

        changes: fields of UpscaleParams.
        """
        return (await self._engine.aupscale(image, **changes)).array

    def check_health(self) -> None:
        """Raises EngineDeadError where Ray should replace this replica."""
        health = self._engine.health()
        if not health.ok:
            raise EngineDeadError(f"the engine is {health.state}: {health.reason}")

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)  # none where it could not be loaded
        if engine is not None:
            engine.close(5)


def build_app(args: RayServeArgs) -> "Application":
    """The application that `serve run` and the `import_path` of a Serve config name."""
    from ray import serve

    settings = args.server_settings()
    deployment = serve.deployment(serve.ingress()(Replica), name="varsr")
    return deployment.options(**args.deployment(settings)).bind(
        default_model(args.model), args.engine_config(), settings
    )
