"""A board of tasks that several people share. `uvicorn app:app`, with DATABASE_URL set."""

import os
import secrets
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

engine = create_engine(os.environ["DATABASE_URL"])


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    secret: Mapped[str]


class Member(Base):
    __tablename__ = "members"
    board: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(primary_key=True)


class Task(Base):
    __tablename__ = "tasks"
    id: Mapped[int] = mapped_column(primary_key=True)
    board: Mapped[str]
    text: Mapped[str]
    done: Mapped[bool] = mapped_column(default=False)


@asynccontextmanager
async def lifespan(app: FastAPI):
    Base.metadata.create_all(engine)
    yield


app = FastAPI(lifespan=lifespan)


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


Database = Annotated[Session, Depends(get_session)]


def current_user(session: Database, secret: Annotated[str, Cookie()] = "") -> User:
    user = session.scalar(select(User).where(User.secret == secret))
    if user is None:
        raise HTTPException(401, "sign in first")
    return user


CurrentUser = Annotated[User, Depends(current_user)]


class NewTask(BaseModel):
    board: str
    text: str


@app.get("/")
def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/sign-in/{name}")
def sign_in(name: str, session: Database, response: Response) -> int:
    user = User(name=name, secret=secrets.token_hex(16))
    session.add(user)
    session.commit()
    response.set_cookie("secret", user.secret, httponly=True, samesite="lax")
    return user.id


@app.post("/boards/{board}/join")
def join(board: str, user: CurrentUser, session: Database) -> None:
    session.add(Member(board=board, user_id=user.id))
    session.commit()


@app.get("/tasks")
def tasks(user: CurrentUser, session: Database) -> list[dict]:
    boards = select(Member.board).where(Member.user_id == user.id)
    return [
        {"id": task.id, "board": task.board, "text": task.text, "done": task.done}
        for task in session.scalars(select(Task).where(Task.board.in_(boards)).order_by(Task.id))
    ]


@app.post("/tasks", status_code=201)
def add(new: NewTask, user: CurrentUser, session: Database) -> int:
    task = Task(board=new.board, text=new.text)
    session.add(task)
    session.commit()
    return task.id


@app.post("/tasks/{number}/done")
def finish(number: int, user: CurrentUser, session: Database) -> None:
    session.get_one(Task, number).done = True
    session.commit()
