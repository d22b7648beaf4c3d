"""The HTTP server, `varsr serve`: upscaling over a port (docs/serving.md). Needs the extra `server`.

`varsr_engine.serving.app` makes an application of an engine, or a router for another application.
"""
