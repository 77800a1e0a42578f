"""Serve the app: python -m rolloutlib.app MODEL [MODEL …]. Prints its address, with a token."""

import argparse
import asyncio
import secrets
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from rolloutlib.app.desk import Desk
from rolloutlib.app.server import LARGEST_FILE, MOST_PICTURES, application, read_examples


async def serve(options: argparse.Namespace) -> None:
    desk = Desk(options.models, options.adapter, options.device_map, options.dtype)
    token, examples = secrets.token_hex(24), read_examples(options.examples)
    app = application(desk, token, examples, options.port)
    app.listen(options.port, "127.0.0.1", max_body_size=LARGEST_FILE * MOST_PICTURES)
    print(f"http://127.0.0.1:{options.port}/?token={token}", flush=True)
    try:
        await asyncio.wrap_future(desk.begin())  # or say now what is wrong with the model
        await asyncio.Event().wait()
    finally:
        desk.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rolloutlib.app", description=__doc__)
    parser.add_argument("models", nargs="+", help="folders or Hugging Face ids to choose from")
    parser.add_argument("--adapter", nargs="*", default=[], help="LoRA adapters to choose from")
    parser.add_argument("--device-map", nargs="+", default=["cpu"], help="devices to choose from")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--examples", type=Path, default=Path("data/examples"))
    disable_progress_bar()
    try:
        asyncio.run(serve(parser.parse_args()))
    except KeyboardInterrupt:
        pass
    except (FileNotFoundError, ValueError) as problem:  # of a model or an adapter
        raise SystemExit(str(problem)) from None


if __name__ == "__main__":
    main()
