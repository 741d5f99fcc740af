"""The local Upstash's console in the browser, at ``/-/console``.

`handlers` answers requests with pages, which are templates; `auth` decides who may use it; `keys`
reads the database and decodes what the middleware stores there, by its documented formats.
"""
