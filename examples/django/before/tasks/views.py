from pathlib import Path

from django.contrib.auth import login, logout
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from tasks.models import Member, Task


def page(request):
    return HttpResponse(Path(__file__).with_name("page.html").read_text())


@csrf_exempt
def sign_in(request, name):
    user, _ = User.objects.get_or_create(username=name)
    login(request, user)
    return HttpResponse(user.id)


@csrf_exempt
def sign_out(request):
    logout(request)
    return HttpResponse()


@csrf_exempt
@login_required
def join(request, board):
    Member.objects.get_or_create(board=board, user=request.user)
    return HttpResponse()


@csrf_exempt
@login_required
def tasks(request):
    if request.method == "POST":
        task = Task.objects.create(board=request.POST["board"], text=request.POST["text"])
        return HttpResponse(task.id, status=201)
    boards = Member.objects.filter(user=request.user).values("board")
    return JsonResponse(list(Task.objects.filter(board__in=boards).order_by("id").values()), safe=False)


@csrf_exempt
@login_required
def finish(request, number):
    Task.objects.filter(id=number).update(done=True)
    return HttpResponse()
