from django.conf import settings
from django.db import models


class Member(models.Model):
    board = models.CharField(max_length=100)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)


class Task(models.Model):
    board = models.CharField(max_length=100)
    text = models.CharField(max_length=1000)
    done = models.BooleanField(default=False)
