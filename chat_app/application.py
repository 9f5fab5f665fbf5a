"""What a person can do here, without any page: ask, draw, try again, open what was said before.

One object for the whole process, shared by every browser session.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import openai

from chat_app.answering import Question, answer
from chat_app.attachments import SmallImage, data_url
from chat_app.catalog import ModelCard
from chat_app.client import Gateway, failure_of
from chat_app.conversation import messages_for_model, title_of
from chat_app.painting import paint
from chat_app.records import Failure, ImageRequest, Message, Picture, State
from chat_app.runs import Run, Runs
from chat_app.settings import Settings
from chat_app.store import Store


@dataclass(frozen=True)
class Listing:
    """The models as last seen. failure: why they could not be asked for just now."""

    cards: tuple[ModelCard, ...] = ()
    seen_at: float | None = None
    failure: Failure | None = None

    def card(self, name: str) -> ModelCard | None:
        return next((card for card in self.cards if card.name == name), None)


class Application:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.folder)
        self.store.interrupt_unfinished()
        self.gateway = Gateway(settings)
        self.runs = Runs(self.store)
        self._listing = Listing()

    def close(self) -> None:
        self.runs.close()
        self.gateway.close()
        self.store.close()

    def listing(self) -> Listing:
        """The gateway's models; while it is away, those of the last time, with the reason."""
        try:
            listing = Listing(tuple(self.gateway.models()), time.time())
        except openai.OpenAIError as error:
            listing = replace(self._listing, failure=failure_of(error))
        self._listing = listing
        return listing

    def ask(self, chat_id: str | None, card: ModelCard, text: str, pictures: tuple[Picture, ...] = (), thinking: bool | None = None) -> str:
        """Add a person's turn and start the answer. Returns the chat, a new one if none was given. Raises AlreadyRunning."""
        chat_id = chat_id or self.store.create_chat(title_of(text or "A picture"), card.name).id
        self._start_answer(chat_id, card, thinking, asked=(text, pictures))
        return chat_id

    def draw(self, chat_id: str | None, request: ImageRequest) -> str:
        """Add a person's wish for a picture and start making it. As `ask`."""
        chat_id = chat_id or self.store.create_chat(title_of(request.prompt), request.model).id
        self._start_painting(chat_id, request, asked=True)
        return chat_id

    def draw_again(self, message: Message, seed: int | None) -> None:
        """One more picture like that of `message`, beside it. seed None: a new one."""
        if message.request is not None:
            self._start_painting(message.chat_id, replace(message.request, seed=seed))

    def retry(self, message: Message, card: ModelCard) -> None:
        """Make the last message of a chat anew, in its place."""
        if message.request is not None:
            self._start_painting(message.chat_id, message.request, instead_of=message)
        else:
            self._start_answer(message.chat_id, card, message.thinking, instead_of=message)

    def keep(self, image: SmallImage) -> Picture:
        return self.store.keep_image(image.content, image.media_type, image.width, image.height)

    def _start_answer(
        self,
        chat_id: str,
        card: ModelCard,
        thinking: bool | None,
        *,
        asked: tuple[str, tuple[Picture, ...]] | None = None,
        instead_of: Message | None = None,
    ) -> None:
        question: list[Question] = []

        def create() -> Message:
            if instead_of is not None:
                self.store.delete_message(instead_of.id)
            if asked is not None:
                self.store.add_message(chat_id, "user", "text", text=asked[0], pictures=asked[1])
            question.append(self._question(chat_id, card, thinking))
            return self.store.add_message(chat_id, "assistant", "text", state=State.QUEUED, model=card.name, thinking=thinking)

        self.runs.start(create, chat_id, lambda run: answer(run, self.gateway, question[0]))

    def _question(self, chat_id: str, card: ModelCard, thinking: bool | None) -> Question:
        history = self.store.messages(chat_id)
        messages = messages_for_model(history, sees=card.sees, context_length=card.context_length, data_url=self._data_url)
        return Question(card.name, messages, thinking if card.reasoning else None)

    def _start_painting(self, chat_id: str, request: ImageRequest, *, asked: bool = False, instead_of: Message | None = None) -> None:
        def create() -> Message:
            if instead_of is not None:
                self.store.delete_message(instead_of.id)
            if asked:
                self.store.add_message(chat_id, "user", "image", text=request.prompt)
            return self.store.add_message(chat_id, "assistant", "image", state=State.QUEUED, model=request.model, request=request)

        def work(run: Run) -> None:
            paint(run, self.gateway, request, self.store.keep_image)

        self.runs.start(create, chat_id, work)

    def _data_url(self, picture: Picture) -> str:
        return data_url(self.store.image_path(picture).read_bytes(), picture.media_type)
