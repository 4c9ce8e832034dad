"""TRL's collator for images and text, which opens the pictures and makes sure that every row still has its own and can
be learnt."""

import random

from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from vift_hub.join import tokens_per_image
from vift_hub.pictures import open_stored

from .checks import check_batch, row_name, row_problem


class CheckedCollator(DataCollatorForVisionLanguageModeling):
    """
    A row whose picture can't be opened is left out of the batch, which then has `left_out`: [(row, reason)]. Of the
    `versions` of a row (conversations, where a picture has several captions) one is drawn by (seed, epoch, row).

    Raises:
        ValueError: a row whose placeholders, images and modality disagree, that has nothing to learn, or that is text
            where `trains_on_text` is False; no picture of the batch can be opened.
    """

    trains_on_text, seed, epoch = True, 0, 0

    def torch_call(self, examples):
        rows, left_out = [], []
        for number, row in enumerate(map(dict, examples)):
            name = row_name(row, number)
            if row.get("versions"):
                draw = random.Random(f"{self.seed}/{int(self.epoch)}/{row.get('id')}")
                row["messages"] = draw.choice(row["versions"])
            if problem := row_problem(row, self.processor.image_token):
                raise ValueError(f"{name}: {problem}")
            if not row["images"] and not self.trains_on_text:
                raise ValueError(
                    f"{name} is a text row, but the language model is not trained: such a "
                    "step would train nothing. Leave text rows out of this stage"
                )
            try:
                row["images"] = [open_stored(image) for image in row["images"]]
            except ValueError as error:
                left_out.append((name, str(error)))
            else:
                rows.append(row)
        if not rows:
            raise ValueError(
                f"no row of the batch has pictures that can be opened; {left_out[0][0]}: {left_out[0][1]}"
            )
        batch = super().torch_call(rows)
        images, pixel_values = sum(len(row["images"]) for row in rows), batch.get("pixel_values", ())
        if len(pixel_values) != images:
            raise ValueError(f"the rows hold {images} images, the batch {len(pixel_values)}")
        per_image = tokens_per_image(self.processor, *pixel_values.shape[-2:]) if images else 0
        check_batch(rows, batch, self.processor.image_token_id, per_image)
        if left_out:
            batch["left_out"] = left_out
        return batch
