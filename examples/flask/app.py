"""A board of tasks with Flask, or any WSGI application: streams are served by `rowcast serve`, beside it.

`flask run` and `rowcast serve`, both with ROWCAST_POSTGRES_URL, ROWCAST_AUTH_SECRET and ROWCAST_API_KEY set.
"""

import os
import time

import jwt
import psycopg
from flask import Flask, jsonify, request, send_file

from rowcast import Rowcast
from rowcast.contrib.psycopg import publish

DATABASE = os.environ["ROWCAST_POSTGRES_URL"]
SECRET = os.environ["ROWCAST_AUTH_SECRET"]

app = Flask(__name__)
# It signs what is published here; it is not started, since the server beside is.
cast = Rowcast(postgres=DATABASE, auth=SECRET, api=os.environ["ROWCAST_API_KEY"])

with psycopg.connect(DATABASE) as connection:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS tasks (id serial PRIMARY KEY, owner text NOT NULL, text text NOT NULL)"
    )


@app.get("/")
def page():
    return send_file("page.html")


@app.post("/sign-in/<name>")
def sign_in(name):
    """The token is a cookie: cookies go to every port of a host, and so to the server of the streams."""
    answer = jsonify(name)
    token = jwt.encode({"sub": name, "iat": time.time(), "exp": time.time() + 3600}, SECRET, algorithm="HS256")
    answer.set_cookie("rowcast", token, httponly=True, samesite="Lax", max_age=3600)
    return answer


@app.post("/tasks")
def add():
    name = jwt.decode(request.cookies["rowcast"], SECRET, algorithms=["HS256"])["sub"]
    with psycopg.connect(DATABASE) as connection:
        connection.execute("INSERT INTO tasks (owner, text) VALUES (%s, %s)", [name, request.form["text"]])
        publish(connection, cast, user=name, event="saved", data={"text": request.form["text"]})
    return "", 204
