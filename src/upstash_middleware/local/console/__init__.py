"""The local Upstash's console in the browser, at ``/-/console``.

Pages are made on the server; the script only brings what is live.  `routes` is the way in, `door`
says who may come; `keys` reads the database; `limits` and `entries` know what this project's
middleware keeps there, by its documented format and without a line of its code; the ``*_page``
modules make markup of values, and nothing else does.
"""
