"""Write both model directories from nothing: the architectures with random weights, for tests and for integration.

python -m local_models.demo.build --untrained --out DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from local_models.demo import chat_model, chat_tokenizer, image_model

WEIGHTS = Path(__file__).with_name("weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--untrained", action="store_true", required=True, help="random weights; train_chat and train_image make real ones")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="receives demo/ and demo-image/")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build_untrained_chat(options.out / "demo", options.seed)
    build_untrained_image(options.out / "demo-image", options.seed)
    print(f"wrote {options.out}/demo and {options.out}/demo-image with random weights")


def build_untrained_chat(folder: Path, seed: int = 0) -> None:
    tokenizer = chat_tokenizer.build_tokenizer(seed)
    chat_model.save(chat_model.build_model(tokenizer, seed), tokenizer, folder)


def build_untrained_image(folder: Path, seed: int = 0) -> None:
    image_model.save_pipeline(image_model.build_pipeline(folder, seed), folder)


if __name__ == "__main__":
    main()
