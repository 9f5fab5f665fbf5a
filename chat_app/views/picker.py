"""Which model answers: every model with what it can do."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from chat_app.application import Listing
from chat_app.blocks import plain
from chat_app.catalog import ModelCard, ModelKind, badges_of
from chat_app.records import Chat

MODEL = "picked_model"  # session state: the model's name, the only truth about the mode too
PICKS = "picks"  # session state: how often it changed


def settle_model(listing: Listing, chat: Chat | None) -> ModelCard | None:
    """The model to use: the person's pick, else that of the chat just opened, else the first chat model."""
    state = st.session_state
    opened = chat.id if chat else None
    if state.get("model_of_chat", "") != opened:
        state["model_of_chat"] = opened
        if chat is not None and listing.card(chat.model) is not None:
            state[MODEL] = chat.model
    card = listing.card(state.get(MODEL, "")) or first_of(listing.cards, "chat") or next(iter(listing.cards), None)
    if card is not None:
        if state.get("shown_model") != card.name:
            state["shown_model"] = state[MODEL] = card.name
            state[PICKS] = state.get(PICKS, 0) + 1
        state[f"last_{card.kind}"] = card.name
    return card


def draw_picker(cards: Sequence[ModelCard], card: ModelCard) -> None:
    """A new list after each change: the browser does not take new values into widgets of a closed popover,
    and would send the old ones back. It also closes the popover after a pick."""
    by_name = {one.name: one for one in cards}
    picks = st.session_state[PICKS]
    icon = ":material/image:" if card.kind == "image" else ":material/forum:"
    with st.container(horizontal=True, vertical_alignment="center", key="model"):
        with st.popover(plain(card.name), icon=icon, key=f"picker-{picks}"):
            st.radio(
                "Model",
                list(by_name),
                index=list(by_name).index(card.name),
                key=f"models-{picks}",
                format_func=plain,
                captions=[_caption(one) for one in by_name.values()],
                on_change=_pick,
                args=(f"models-{picks}",),
            )
        st.markdown(badge_line(card), width="content")


def _pick(key: str) -> None:
    st.session_state[MODEL] = st.session_state[key]


def badge_line(card: ModelCard) -> str:
    return " ".join(f":{colour}-badge[{plain(label)}]" for label, colour in badges_of(card))


def _caption(card: ModelCard) -> str:
    description = f"{plain(card.description)}  \n" if card.description else ""
    reasons = [plain(one.reason) for one in card.deployments[:1] if one.reason]
    return f"{description}{badge_line(card)}{'  ' + chr(10) + reasons[0] if reasons else ''}"


def first_of(cards: Sequence[ModelCard], kind: ModelKind) -> ModelCard | None:
    return next((card for card in cards if card.kind == kind), None)


def pick_kind(cards: Sequence[ModelCard], kind: ModelKind) -> None:
    """Switch to the model of that kind used last in this session, or the first there is."""
    names = [card.name for card in cards if card.kind == kind]
    last = st.session_state.get(f"last_{kind}")
    if names:
        st.session_state[MODEL] = last if last in names else names[0]
