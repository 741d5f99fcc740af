"""The command line of the demo, and the order of its acts."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from contextlib import suppress

from examples.demo.play import play
from examples.demo.servers import FRAMEWORKS, serving
from examples.demo.transcript import Transcript
from upstash_middleware.local import LocalUpstash


def main() -> int:
    """Play the demo; the exit status is 0 only if every step was as it should be."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    transcript = Transcript(sys.stdout)
    with LocalUpstash() as upstash:
        transcript.title("A local Upstash is running", upstash.url)
        for framework in options.framework or FRAMEWORKS:
            upstash.flush()
            with serving(framework, upstash) as server:
                transcript.title(framework, server.url)
                play(server, upstash, transcript)
                if options.keep:
                    _keep(server.url, upstash)
    return transcript.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--framework", action="append", choices=FRAMEWORKS)
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    return parser.parse_args()


def _keep(url: str, upstash: LocalUpstash) -> None:
    print(
        "\nStill running; Ctrl-C ends it. Try, from another terminal:\n\n"
        f"  curl -i -X POST {url}/api/generate\n"
        f"  curl -i {url}/catalogue/tea\n"
        f"  curl -i -X PUT -H 'content-type: application/json' -d '{{\"price\": 5}}'"
        f" {url}/catalogue/tea\n"
        "  curl -i -c cookies -X POST -H 'content-type: application/json' -d '{\"name\": \"ada\"}'"
        f" {url}/login\n"
        f"  curl -i -b cookies {url}/account\n"
        f"  curl {upstash.url}/-/bill\n",
        flush=True,
    )
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    print()


if __name__ == "__main__":
    sys.exit(main())
