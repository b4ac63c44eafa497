"""What the page asks the server for."""

import asyncio
from pathlib import Path

import folder_paths
from aiohttp import web
from server import PromptServer

from ..loraclr_core.host.lora.file import LoRAFileError
from ..loraclr_core.host.lora.file_words import read_words

NOTHING = {"trigger": "", "class_word": "", "others": [], "picture_folder": None}


def add_routes(server: PromptServer) -> None:
    """Add `GET /loraclr/words?lora=<name>`: the words of a LoRA, as Load Concept LoRA finds them, and its picture.

    Of a file that is missing, as in a template, or damaged nothing is said: the node says so when it runs.
    """

    @server.routes.get("/loraclr/words")
    async def words(request: web.Request) -> web.Response:
        name = request.query.get("lora", "")
        path = folder_paths.get_full_path("loras", name)
        if path is None:
            return web.json_response(NOTHING)
        try:
            return web.json_response(await asyncio.to_thread(_describe, server, name, path))
        except LoRAFileError:
            return web.json_response(NOTHING)


def _describe(server: PromptServer, name: str, path: str) -> dict:
    """Return as JSON: trigger, class_word, the other phrases, and the number of the folder where a picture lies beside it."""
    trained, class_word = read_words(Path(path))
    folders = folder_paths.get_folder_paths("loras")
    number = next(number for number, folder in enumerate(folders) if Path(folder, name).is_file())
    has_picture = bool(server.model_file_manager.get_model_previews(path))
    return {
        "trigger": trained.trigger,
        "class_word": class_word,
        "others": trained.others,
        "picture_folder": number if has_picture else None,
    }
