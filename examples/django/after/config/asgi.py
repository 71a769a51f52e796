import os

from django.core.asgi import get_asgi_application

from rowcast.contrib.django import mount

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

application = mount(get_asgi_application(), "/live")
