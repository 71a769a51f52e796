from django.urls import path
from tasks import views

urlpatterns = [
    path("", views.page),
    path("sign-in/<name>", views.sign_in),
    path("sign-out", views.sign_out),
    path("boards/<board>/join", views.join),
    path("tasks", views.tasks),
    path("tasks/<int:number>/done", views.finish),
]
