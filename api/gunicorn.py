"""Gunicorn's own configuration, read before it forks: the rest is on its command line.

Importing the application once here, without building it, spares every worker the seconds it takes;
what opens connections happens in each worker, in `api.wsgi`.
"""

import api.app  # noqa: F401
