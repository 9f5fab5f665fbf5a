"""The list of chats: new, open, rename, delete."""

from __future__ import annotations

import streamlit as st

from chat_app.application import Application
from chat_app.blocks import plain
from chat_app.records import Chat


def draw_sidebar(app: Application, current: Chat | None) -> None:
    st.button("New chat", icon=":material/edit_square:", key="new-chat", width="stretch", shortcut="Ctrl+Shift+O", on_click=open_chat)
    chats = app.store.chats()
    if not chats:
        st.caption("Your chats will be listed here.")
        return
    busy = app.runs.busy_chats()
    with st.container(key="chats", gap=None):
        for chat in chats:
            st.button(
                plain(chat.title),
                key=f"open-{chat.id}",
                type="secondary" if current and chat.id == current.id else "tertiary",
                icon="spinner" if chat.id in busy else None,
                width="stretch",
                on_click=open_chat,
                args=(chat.id,),
            )


def draw_chat_menu(app: Application, chat: Chat) -> None:
    with st.popover("", icon=":material/more_horiz:", type="tertiary", help="Rename or delete this chat"):
        st.text_input("Name", value=chat.title, key=f"title-{chat.id}", max_chars=80, on_change=_rename, args=(app, chat))
        st.button("Delete this chat", icon=":material/delete:", key=f"delete-{chat.id}", on_click=_delete, args=(app, chat))


def open_chat(chat_id: str | None = None) -> None:
    """Show that chat, or an empty one, and let the address say so: it can be kept, reloaded and opened twice."""
    if chat_id is None:
        st.query_params.pop("chat", None)
    else:
        st.query_params["chat"] = chat_id


def _rename(app: Application, chat: Chat) -> None:
    title = " ".join(str(st.session_state[f"title-{chat.id}"]).split())
    if title:
        app.store.rename_chat(chat.id, title)


def _delete(app: Application, chat: Chat) -> None:
    if (run := app.runs.of_chat(chat.id)) is not None:
        run.stop()
        run.finished.wait(2.0)
    app.store.delete_chat(chat.id)
    open_chat()
