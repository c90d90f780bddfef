"""The lines on which a forward failed: their words, and the names that are None there."""

import linecache
import re
from types import TracebackType


def _frames(error: BaseException) -> list[TracebackType]:
    """The frames that an exception passed, the innermost first."""
    found, entry = [], error.__traceback__
    while entry is not None:
        found.append(entry)
        entry = entry.tb_next
    return list(reversed(found))


def frames_of_models(error: BaseException) -> list[TracebackType]:
    """The frames in the code of modules, the innermost first."""
    ours = ("/torch/", "/shardproof/")
    return [one for one in _frames(error) if not any(part in one.tb_frame.f_code.co_filename for part in ours)]


def words_on_lines(error: BaseException) -> list[str]:
    """The words of the lines that failed; a call that covers several lines is read whole."""
    found: list[str] = []
    for frame in frames_of_models(error):
        path, first = frame.tb_frame.f_code.co_filename, frame.tb_lineno
        positions = list(frame.tb_frame.f_code.co_positions())
        at = positions[frame.tb_lasti // 2]
        last = max(first, at[1] or first)
        text = "".join(linecache.getline(path, line) for line in range(at[0] or first, last + 1))
        found += re.findall(r"\w+", text)
    return found


def none_on_lines(error: BaseException) -> list[str]:
    """Local names that are None on the lines that failed, and the arguments of the caller that they are."""
    found: list[str] = []
    for frame in _frames(error):
        local = frame.tb_frame.f_locals
        line = linecache.getline(frame.tb_frame.f_code.co_filename, frame.tb_lineno)
        found += [word for word in re.findall(r"\w+", line) if word in local and local[word] is None]
    return found
