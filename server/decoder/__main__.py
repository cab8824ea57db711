"""A decoder process: `python -m server.decoder --fd N …`, started by `server.decoders` on its socket pair.

It unpacks what strangers send, so it has little: no more memory than it needs, one picture at a time, nobody
to talk to but the front end, which ends it when it takes too long. A picture that kills it has killed
nothing else.
"""

import resource
import sys

from server.decoder.files import Unusable
from server.decoder.source import decode
from server.decoding import Answer, Decode, Idle, Refused, read_question
from server.inherited import arguments, bodies, take_end
from server.protocol import frame


def main() -> int:
    """Answer each question until the front end is gone."""
    parser = arguments("python -m server.decoder")
    parser.add_argument("--max-pixels", type=int, required=True, help="of a picture that is unpacked")
    parser.add_argument("--max-bytes", type=int, required=True, help="of a message")
    parser.add_argument("--memory-bytes", type=int, required=True, help="of all that it has")
    options = parser.parse_args()
    end = take_end(options.fd)
    if sys.platform == "linux":  # others count what is mapped in other ways, or refuse
        resource.setrlimit(resource.RLIMIT_AS, (options.memory_bytes, options.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would keep a client's picture
    end.sendall(frame(Idle()))
    for body in bodies(end, limit_bytes=options.max_bytes):
        end.sendall(frame(_answer(read_question(body), max_pixels=options.max_pixels)))
    return 0


def _answer(asked: Decode, *, max_pixels: int) -> Answer:
    try:
        return decode(asked, max_pixels=max_pixels)
    except Unusable as unusable:
        return Refused(about=unusable.about, found=unusable.found, allowed=unusable.allowed)
    except MemoryError:
        return Refused(
            about="image",
            found="a picture that takes more memory than there is for one",
            allowed="one of fewer pixels",
        )


if __name__ == "__main__":
    sys.exit(main())
