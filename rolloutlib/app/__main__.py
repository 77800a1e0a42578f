"""Serve the app: python -m rolloutlib.app MODEL [MODEL …]. Prints its address, with a token."""

import argparse
import asyncio
import secrets
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from rolloutlib.app.desk import Desk
from rolloutlib.app.server import LARGEST_FILE, MOST_PICTURES, application, read_examples


async def serve(options: argparse.Namespace) -> None:
    how = {"dtype": options.dtype, "device_map": options.device_map}
    desk = Desk(options.models, adapter_id=options.adapter, **how)
    token, examples = secrets.token_hex(24), read_examples(options.examples)
    app = application(desk, token, examples, options.port)
    app.listen(options.port, "127.0.0.1", max_body_size=LARGEST_FILE * MOST_PICTURES)
    print(f"http://127.0.0.1:{options.port}/?token={token}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        desk.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rolloutlib.app", description=__doc__)
    parser.add_argument("models", nargs="+", help="folders or Hugging Face ids to choose from")
    parser.add_argument("--adapter", default="", help="a LoRA adapter for them")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device-map", default="cpu")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--examples", type=Path, default=Path("data/examples"))
    disable_progress_bar()
    try:
        asyncio.run(serve(parser.parse_args()))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
