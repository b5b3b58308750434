"""The only exception whose text a visitor sees."""


class UserError(Exception):
    """A request that can't be served, in one sentence that says what to change.

    Raised by any layer below the interface; `pipelines.ui.guard` turns it into a message on the page, and everything
    else into a generic apology plus a log entry. The text must name no path of the server and no internals.
    """
