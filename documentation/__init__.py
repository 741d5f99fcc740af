"""The programs behind the documentation: pictures, tables, the site's links and its check.

The pages are in docs/, their tests in tests/docs; nothing here is a part of the package.
"""
