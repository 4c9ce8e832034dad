"""TRL's collator for images and text, which then makes sure that every row still has its images and can be learnt."""

from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from vift_hub.join import tokens_per_image

from .checks import check_batch, check_row, row_name


class CheckedCollator(DataCollatorForVisionLanguageModeling):
    """
    Raises:
        ValueError: a row whose placeholders, images and modality disagree, that has nothing to learn, or that is text
            where `trains_on_text` is False.
    """

    trains_on_text = True

    def torch_call(self, examples):
        rows = [dict(row) for row in examples]
        for number, row in enumerate(rows):
            check_row(row, number)
            if not row["images"] and not self.trains_on_text:
                raise ValueError(
                    f"{row_name(row, number)} is a text row, but the language model is not trained: such a "
                    "step would train nothing. Leave text rows out of this stage"
                )
        batch = super().torch_call(examples)
        images, pixel_values = sum(len(row["images"]) for row in rows), batch.get("pixel_values", ())
        if len(pixel_values) != images:
            raise ValueError(f"the rows hold {images} images, the batch {len(pixel_values)}")
        per_image = tokens_per_image(self.processor, *pixel_values.shape[-2:]) if images else 0
        check_batch(rows, batch, self.processor.image_token_id, per_image)
        return batch
