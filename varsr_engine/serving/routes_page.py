"""GET / and /static: the page, where this build has one."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from varsr_engine.serving.errors import NotFoundError

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
}


def page_router(folder: Path | None = None) -> APIRouter:
    """The routes: `index.html` of the folder at /, its files, listed once now, under /static."""
    router = APIRouter(include_in_schema=False)
    folder = folder or Path(str(files("varsr_engine.serving"))) / "static"
    known = {path.name: path for path in folder.glob("*") if path.is_file() and path.suffix in MEDIA_TYPES}

    def file(name: str) -> FileResponse:
        path = known.get(name)
        if path is None:
            raise NotFoundError("no such page")
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers={"cache-control": "no-cache"})

    @router.get("/")
    async def index() -> FileResponse:
        return file("index.html")

    @router.get("/static/{name}")
    async def static(name: str) -> FileResponse:
        return file(name)

    return router
