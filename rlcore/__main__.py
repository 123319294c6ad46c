"""The command `rlcore`, also as `python -m rlcore`."""

import signal
import sys


def main() -> int:
    """Run it; Ctrl-C is one line and code 130, while imports take their time and however often it comes."""
    try:
        from rlcore.cli import main as command  # noqa: PLC0415

        return command()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.stderr is not None:  # closed before we began
            print("rlcore: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
