"""What gunicorn serves. Importing this module reads the environment and builds the application."""

import os

from api.app import create_app
from api.config import Config

app = create_app(Config.from_env(os.environ))
